"""Time and memory of one training step of the emoji recipe, as ratios to plain flow matching of the same network.

    python benchmarks/step_cost.py

A step is forward, backward, clipping, AdamW and EMA on random latents and captions. The variants take turns in one
run, so that what the machine is doing meanwhile weighs on all alike. Exactly half of each batch has t > r, the
expected share of the recipe's main phase (its opening phase of plain diffusion has none), because the cost depends on
nothing else of the draw. Peak memory is of a process that runs one variant alone: resident on the CPU, where
`megabytes_before` is Python and its imports; allocated on CUDA.
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

from anystep.device import pick_device
from anystep.models.presets import build_transformer
from anystep.objective import derivative
from anystep.training.config import Recipe, load_recipe
from anystep.training.train import make_objective

ROOT = Path(__file__).parent.parent
PLAIN = "flow_matching"
DERIVATIVES = {PLAIN: "central", "transition_central": "central", "transition_one_sided": "one_sided"}
SHARE = 0.5  # of the batch with t > r
TOKENS = 12  # of a caption, at most
WARM_UP = 2


def build_step(recipe: Recipe, variant: str, device: torch.device) -> Callable[[], None]:
    """A function that makes one training step of the variant, as `anystep.training.train` does."""
    torch.manual_seed(0)
    network = build_transformer(recipe.model.preset, **recipe.model.options).to(device)
    ema = copy.deepcopy(network).requires_grad_(False)
    parameters, averaged = list(network.parameters()), list(ema.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, fused=device.type != "mps")
    objective = make_objective(recipe)
    objective.estimate = derivative(DERIVATIVES[variant], recipe.objective.eps)
    count, config = recipe.run.batch_size, network.config
    x, z = torch.randn(2, count, config.in_channels, config.sample_size, config.sample_size).to(device)
    condition = torch.randn(count, TOKENS, config.text_width).to(device)
    mask = (torch.arange(TOKENS) < torch.arange(count)[:, None] % 8 + 5).to(device)
    t = torch.linspace(0.3, 0.95, count)
    moving = torch.arange(count) < (0 if variant == PLAIN else round(SHARE * count))
    t, r = t.to(device), torch.where(moving, t - 0.2, t).to(device)
    bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported()

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            record = objective.evaluate(network, x, z, t, r, condition, mask)
        optimizer.zero_grad()
        record.loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, recipe.optimizer.clip)
        optimizer.step()
        torch._foreach_lerp_(averaged, parameters, 1 - recipe.ema_decay)
        if device.type == "cuda":
            torch.cuda.synchronize()

    return step


def resident_megabytes() -> float:
    """Peak resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def memory(recipe: Recipe, variant: str, device: torch.device) -> dict[str, float]:
    """Megabytes before and at the peak of three steps, of this process."""
    before = 0.0 if device.type == "cuda" else resident_megabytes()
    step = build_step(recipe, variant, device)
    for _ in range(3):
        step()
    peak = torch.cuda.max_memory_allocated() / 2**20 if device.type == "cuda" else resident_megabytes()
    return {"megabytes_before": before, "peak_megabytes": peak}


def memory_alone(variant: str, options: argparse.Namespace) -> dict[str, float]:
    """`memory` in a fresh process."""
    command = [sys.executable, __file__, "--memory-of", variant, "--device", options.device]
    command += ["--threads", str(options.threads)]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, mps (default: auto)")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "step_cost.json")
    parser.add_argument("--memory-of", choices=DERIVATIVES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    recipe = load_recipe(ROOT / "configs" / "emoji.yaml", Recipe)
    device = pick_device(options.device)
    if options.memory_of:
        print(json.dumps(memory(recipe, options.memory_of, device)))
        return

    # first, while this process is small: on Linux a child's ru_maxrss starts from the peak of the parent it came from
    used = {variant: memory_alone(variant, options) for variant in DERIVATIVES}
    steps = {variant: build_step(recipe, variant, device) for variant in DERIVATIVES}
    seconds: dict[str, list[float]] = {variant: [] for variant in DERIVATIVES}
    for turn in range(WARM_UP + options.rounds):
        for variant, step in steps.items():
            begin = time.perf_counter()
            step()
            if turn >= WARM_UP:
                seconds[variant].append(time.perf_counter() - begin)

    figures = {}
    print(f"{'':22}{'s / step':>9}{'ratio':>7}{'min':>6}{'max':>6}{'peak MB':>9}{'ratio':>7}")
    for variant in DERIVATIVES:
        ratios = [mine / plain for mine, plain in zip(seconds[variant], seconds[PLAIN], strict=True)]
        figures[variant] = {
            "seconds": median(seconds[variant]),
            "time_ratio": median(ratios),
            "time_ratio_range": [min(ratios), max(ratios)],
            **used[variant],
            "memory_ratio": used[variant]["peak_megabytes"] / used[PLAIN]["peak_megabytes"],
            "share_with_interval": 0.0
            if variant == PLAIN
            else round(SHARE * recipe.run.batch_size) / recipe.run.batch_size,
        }
        row = figures[variant]
        print(
            f"{variant:22}{row['seconds']:9.3f}{row['time_ratio']:7.2f}{min(ratios):6.2f}{max(ratios):6.2f}"
            f"{row['peak_megabytes']:9.0f}{row['memory_ratio']:7.2f}"
        )
    write_record(
        options.out,
        {
            "recipe": "configs/emoji.yaml",
            "device": str(device),
            "threads": options.threads,
            "batch_size": recipe.run.batch_size,
            "rounds": options.rounds,
            "diffusion_phase": recipe.objective.diffusion_phase,
            "steps": figures,
        },
    )


if __name__ == "__main__":
    main()
