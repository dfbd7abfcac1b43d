"""Time and memory of one network evaluation against the number of tokens, measured and planned.

    python benchmarks/growth.py        # writes benchmarks/results/growth.json and docs/images/growth.png

The built-in network on latents of 8 x 8 to 128 x 128 tokens, whole and with keys of 32 x 32 of them, each in a
process of its own. Memory is what the evaluation adds to a process: allocated on CUDA; resident on the CPU, there in a
second process whose freed memory goes back at once, because what the heap keeps for later is not the evaluation's.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from record import write_record
from resident import GIVEN_BACK, forget_peak, held, peak

from anystep.device import pick_device
from anystep.files import replacing
from anystep.models.presets import build_transformer
from anystep.pipelines.plan import ModelSpec, plan_generation

ROOT = Path(__file__).parent.parent
SIDES = (8, 16, 32, 64, 128)
KEYS = 32
WORDS = 12  # tokens of the caption


def alone(side: int, key_grid: int | None, device: torch.device) -> dict[str, float]:
    """Seconds and bytes of one evaluation in this process."""
    torch.set_num_threads(1)
    network = build_transformer("t2i-emoji").eval().to(device)
    inputs = [torch.randn(1, 32, side, side), torch.rand(1), torch.zeros(1), torch.randn(1, WORDS, 384)]
    with torch.no_grad():
        small = [each.to(device) for each in (inputs[0][..., :8, :8], *inputs[1:])]
        network(*small)  # brings the code of the libraries into memory
        before = held(device)
        forget_peak(device)
        begin = time.perf_counter()
        network(*(each.to(device) for each in inputs), key_grid=key_grid)
        if device.type == "cuda":
            torch.cuda.synchronize()
    return {"seconds": time.perf_counter() - begin, "bytes": peak(device) - before}


def measured(command: list[str], environment: dict[str, str]) -> dict[str, float]:
    """What the command prints."""
    said = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env={**os.environ, **environment})
    found: dict[str, float] = json.loads(said.stdout)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sides", type=int, nargs="+", default=list(SIDES))
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "growth.json")
    parser.add_argument("--picture", type=Path, default=ROOT / "docs" / "images" / "growth.png")
    parser.add_argument("--alone", type=int, nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    device = pick_device("auto")
    if options.alone:
        side, key_grid = options.alone
        print(json.dumps(alone(side, key_grid or None, device)))
        return

    rows: list[dict[str, Any]] = []
    for side in options.sides:
        for key_grid in (None, KEYS) if side > KEYS else (None,):
            command = [sys.executable, __file__, "--alone", str(side), str(key_grid or 0)]
            found, tight = (measured(command, more) for more in ({}, GIVEN_BACK))
            found["bytes"] = tight["bytes"]
            plan = plan_generation(
                ModelSpec.of("builtin"), 8 * side, 8 * side, 1, key_grid=key_grid, caption_tokens=WORDS
            )
            row = {"tokens": side**2, "key_grid": key_grid, **found, "planned": plan.sampling_bytes}
            row["flops"] = plan.evaluation_flops
            rows.append(row)
            print(
                f"{side**2:6} tokens{'' if key_grid is None else ', fewer keys':10}{found['seconds']:9.3f} s"
                f"{found['bytes'] / 1e6:9.1f} MB, planned {plan.sampling_bytes / 1e6:.1f} MB"
            )
    # first: it names the commit, of a tree that the picture changes
    write_record(options.out, {"device": str(device), "rows": rows})
    draw(rows, options.picture)


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9.6, 4.0), layout="constrained")
    for key_grid, label, colour in ((None, "all keys", "#3b6ea5"), (KEYS, f"{KEYS} x {KEYS} keys", "#d0743c")):
        mine = [row for row in rows if row["key_grid"] == key_grid]
        tokens = [row["tokens"] for row in mine]
        left.loglog(tokens, [row["seconds"] for row in mine], "o-", color=colour, label=label)
        seen = [row for row in mine if row["tokens"] >= 256]  # what less takes drowns in pages
        right.loglog(
            [row["tokens"] for row in seen], [row["bytes"] / 1e6 for row in seen], "o-", color=colour, label=label
        )
    whole = [row for row in rows if row["key_grid"] is None]
    tokens = [row["tokens"] for row in whole]
    right.loglog(tokens, [row["planned"] / 1e6 for row in whole], "--", color="0.5", label="planned")
    right.loglog(tokens, [4 * 4 * n**2 / 1e6 for n in tokens], ":", color="0.7", label="a stored N x N matrix, 4 heads")
    left.set(title="one evaluation", xlabel="tokens", ylabel="seconds")
    right.set(title="memory of one evaluation", xlabel="tokens", ylabel="megabytes", ylim=(0.5, None))
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as part:
        figure.savefig(part, format="png", dpi=120)


if __name__ == "__main__":
    main()
