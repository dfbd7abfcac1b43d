"""Time and memory of one training step of the emoji recipe, as ratios to plain flow matching of the same network.

    python benchmarks/step_cost.py

A step is forward, backward, AdamW and EMA on random latents and captions. The variants take turns in one run, so that
what the machine is doing meanwhile weighs on all alike. Half of each batch has t > r, exactly, as the recipe has on
average; plain flow matching has none. Peak memory is of a process that runs one variant alone.
"""

import argparse
import copy
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from record import write_record

from anystep.models.presets import build_transformer
from anystep.objective import TransitionObjective, derivative
from anystep.training.config import Recipe, load_recipe
from anystep.training.train import make_objective

ROOT = Path(__file__).parent.parent
VARIANTS = ("flow_matching", "transition_central", "transition_one_sided")


def step(recipe: Recipe, variant: str) -> Callable[[], None]:
    """A function that makes one step of the variant."""
    torch.manual_seed(0)
    network = build_transformer(recipe.model.preset, **recipe.model.options)
    ema = copy.deepcopy(network)
    parameters, averaged = list(network.parameters()), list(ema.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, fused=True)
    kind = "one_sided" if variant.endswith("one_sided") else "central"
    objective: TransitionObjective = make_objective(recipe)
    objective.estimate = derivative(kind)
    count, config = recipe.run.batch_size, network.config
    x, z = torch.randn(2, count, config.in_channels, config.sample_size, config.sample_size)
    condition, mask = (
        torch.randn(count, 12, config.text_width),
        torch.arange(12)[None] < torch.arange(count)[:, None] % 8 + 5,
    )
    t = torch.linspace(0.2, 0.95, count)
    moving = (torch.arange(count) % 2 == 0) & (variant != "flow_matching")
    r = torch.where(moving, t - 0.2, t)

    def run() -> None:
        record = objective.evaluate(network, x, z, t, r, condition, mask)
        optimizer.zero_grad()
        record.loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        torch._foreach_lerp_(averaged, parameters, 0.001)

    return run


def peak_megabytes(variant: str) -> float:
    """Peak resident memory of a fresh process that makes three steps."""
    out = subprocess.run(
        [sys.executable, __file__, "--memory-of", variant], capture_output=True, text=True, check=True, cwd=ROOT
    )
    return float(json.loads(out.stdout.splitlines()[-1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--memory-of", choices=VARIANTS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    recipe = load_recipe(ROOT / "configs" / "emoji.yaml", Recipe)
    if options.memory_of:
        run = step(recipe, options.memory_of)
        for _ in range(3):
            run()
        print(json.dumps(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024))
        return

    runs = {variant: step(recipe, variant) for variant in VARIANTS}
    seconds: dict[str, list[float]] = {variant: [] for variant in VARIANTS}
    for turn in range(options.rounds + 2):
        for variant, run in runs.items():
            begin = time.perf_counter()
            run()
            if turn >= 2:
                seconds[variant].append(time.perf_counter() - begin)
    plain = seconds["flow_matching"]
    figures = {}
    for variant in VARIANTS:
        figures[variant] = {
            "seconds": median(seconds[variant]),
            "ratio": median(mine / theirs for mine, theirs in zip(seconds[variant], plain, strict=True)),
            "peak_megabytes": peak_megabytes(variant),
        }
        print(
            f"{variant:24}" + "  ".join(f"{name} {value:.3g}" for name, value in figures[variant].items()), flush=True
        )
    write_record(
        ROOT / "benchmarks" / "results" / "step_cost.json",
        {"batch_size": recipe.run.batch_size, "share_with_interval": 0.5, "threads": options.threads, "steps": figures},
    )


if __name__ == "__main__":
    main()
