"""How noisy each target is, where the exact answer is known: a mixture of two Gaussians on a line.

    python benchmarks/target_noise.py

At a pair (t, r), points x_t are drawn with the data and noise behind them, and the root mean square of target minus
exact answer is taken: all of it is noise, since every target's mean is the answer (`tests/objective/test_targets.py`).
An implicit target's error in f is as much smaller than that of the others as its ratio says, so it is divided by that.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import torch
from record import write_record
from torch import Tensor

from anystep.objective import Identity, Implicit, SelfConsistency, Target, Terminal, TransitionPoints, derivative
from anystep.transport import make_transport

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))
from mixture import MEANS, SPREAD, WEIGHTS, exact_jump, instantaneous  # noqa: E402

PAIRS = ((0.9, 0.05), (0.9, 0.5), (0.5, 0.4))
TARGETS: dict[str, Target] = {
    "identity along (x, z)": Identity(derivative("central", 1e-4)),
    "identity along v": Identity(derivative("central", 1e-4), along="velocity"),
    "identity along v, half of v in it": Identity(derivative("central", 1e-4), along="velocity", velocity_share=0.5),
    "implicit, ratio 0.1": Implicit(0.1, 0.1),
    "implicit, ratio 0.005": Implicit(0.005, 0.005),
    "two halves": SelfConsistency(),
    "terminal": Terminal(1e-4),
}


def noise(target: Target, t_at: float, r_at: float, count: int) -> float:
    """Root mean square of target minus exact answer over `count` points."""
    transport, generator = make_transport("ot_fm"), torch.Generator().manual_seed(0)
    which = torch.multinomial(WEIGHTS, count, replacement=True, generator=generator)
    x = MEANS[which] + SPREAD * torch.randn(count, generator=generator, dtype=torch.float64)
    z = torch.randn(count, generator=generator, dtype=torch.float64)
    t, r = torch.full_like(x, t_at), torch.full_like(x, r_at)
    x_t = transport.interpolate(x[:, None], z[:, None], t)

    def evaluate(x_t: Tensor, t: Tensor, r: Tensor, sample_index: Tensor) -> Tensor:
        same = t - r < 1e-9
        far = exact_jump(transport, x_t[:, 0], t, torch.where(same, 0.9 * t, r))
        return torch.where(same, instantaneous(transport, x_t[:, 0], t), far)[:, None]

    f = evaluate(x_t, t, r, torch.arange(count))
    F = transport.target(x[:, None], z[:, None], t)
    at = TransitionPoints(transport, x[:, None], z[:, None], F, t, r, torch.arange(count), x_t, f)
    made = target(at, evaluate, evaluate, progress=1.0)
    scale = target.ratio(1.0) if isinstance(target, Implicit) else 1.0
    return float((made.value - f).square().mean().sqrt()) / scale


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=4000, help="points of each pair (default: 4000)")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "target_noise.json")
    options = parser.parse_args()
    figures: dict[str, Any] = {
        name: {f"{t:g}, {r:g}": noise(target, t, r, options.count) for t, r in PAIRS}
        for name, target in TARGETS.items()
    }
    print(f"{'':36}" + "".join(f"{f'({t:g}, {r:g})':>14}" for t, r in PAIRS))
    for name, row in figures.items():
        print(f"{name:36}" + "".join(f"{value:14.3f}" for value in row.values()))
    write_record(options.out, {"points": options.count, "noise": figures})


if __name__ == "__main__":
    main()
