"""Time and memory of one training step, as ratios to plain flow matching of the same network.

    python benchmarks/step_cost.py                                            # the emoji recipe
    python benchmarks/step_cost.py configs/t2i-865m.yaml --length 256 --run.batch_size 16 --run.compile true    # a GPU
    python benchmarks/step_cost.py configs/t2i-865m.yaml --debug              # the same in small

A step is forward, backward, clipping, update and EMA on random latents and captions, in the recipe's precision,
compiled and with checkpointing as it says. The variants take turns in one run, so that what the machine is doing
meanwhile weighs on all alike. As many samples of each batch have t > r as are expected (half with the paper's
objective, 3 % with ours, in whole samples), because the cost depends on nothing else of the draw. Peak memory is of a
process that runs one variant alone: resident on the CPU, where `megabytes_before` is Python and its imports; allocated
on CUDA. The utilisation counts the operations of all evaluations against the peak of the device, where that is known.
"""

import argparse
import copy
import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from record import write_record
from resident import held, peak

from anystep.device import pick_device, pick_precision
from anystep.models.cost import forward_flops
from anystep.models.presets import PRESETS, build_transformer
from anystep.objective import Identity, TrainingBatch, derivative
from anystep.training.config import Recipe
from anystep.training.objective import make_objective
from anystep.training.optimizers import make_optimizers
from anystep.training.recipe_files import load_recipe
from anystep.training.step_metrics import peak_flops, utilisation

ROOT = Path(__file__).parent.parent
PLAIN = "flow_matching"
# the target of samples with t > r, and their share of the batch
VARIANTS = {
    PLAIN: (Identity(), 0.0),
    "transition_central": (Identity(), 0.5),
    "transition_one_sided": (Identity(derivative("one_sided")), 0.5),
    "any_step": (Identity(derivative("one_sided"), along="velocity", velocity_share=0.5), 0.03),
}
WARM_UP = 2


def moving(variant: str, count: int) -> int:
    """How many of a batch have t > r."""
    return round(VARIANTS[variant][1] * count)


def build_step(recipe: Recipe, variant: str, device: torch.device, length: int) -> Callable[[], None]:
    """A function that makes one training step of the variant, as `anystep.training.train` does.

    Args:
        length: of the captions, at most, in tokens.
    """
    torch.manual_seed(0)
    network = build_transformer(recipe.model.preset, **recipe.model.options).to(device)
    ema = copy.deepcopy(network).requires_grad_(False)
    if recipe.model.gradient_checkpointing:
        network.enable_gradient_checkpointing()
    if recipe.run.compile:
        network.compile_repeated_blocks()
    parameters, averaged = list(network.parameters()), list(ema.parameters())
    optimizers = make_optimizers(network, recipe.optimizer, device)
    objective = replace(make_objective(recipe), target=VARIANTS[variant][0])
    count, config = recipe.run.batch_size, network.config
    x, z = torch.randn(2, count, config.in_channels, config.sample_size, config.sample_size).to(device)
    condition = torch.randn(count, length, config.text_width).to(device)
    shortest = min(5, length)
    mask = (torch.arange(length) < torch.arange(count)[:, None] % (length - shortest + 1) + shortest).to(device)
    t = torch.linspace(0.3, 0.95, count)
    t, r = t.to(device), torch.where(torch.arange(count) < moving(variant, count), t - 0.2, t).to(device)
    bf16 = pick_precision(recipe.run.precision, device) == torch.bfloat16

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            record = objective.evaluate(network, TrainingBatch(x, z, t, r, condition, mask))
        record.loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, recipe.optimizer.clip)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        torch._foreach_lerp_(averaged, parameters, 1e-3)
        if device.type == "cuda":
            torch.cuda.synchronize()

    return step


def memory(recipe: Recipe, variant: str, device: torch.device, length: int) -> dict[str, float]:
    """Megabytes before and at the peak of three steps, of this process."""
    before = held(device)
    step = build_step(recipe, variant, device, length)
    for _ in range(3):
        step()
    return {"megabytes_before": before / 2**20, "peak_megabytes": peak(device) / 2**20}


def memory_alone(variant: str) -> dict[str, float]:
    """`memory` in a fresh process of the same command."""
    command = [sys.executable, *sys.argv, "--memory-of", variant]
    found: dict[str, float] = json.loads(
        subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()[-1]
    )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", nargs="?", type=Path, default=Path("configs/emoji.yaml"))
    parser.add_argument("--debug", action="store_true", help="the recipe's laptop size")
    parser.add_argument("--length", type=int, default=12, help="of captions, in tokens (default: 12)")
    parser.add_argument("--rounds", type=int, default=9)
    others = [variant for variant in VARIANTS if variant != PLAIN]
    parser.add_argument("--variants", choices=others, nargs="+", default=others, help=f"beside {PLAIN} (default: all)")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "step_cost.json")
    parser.add_argument("--memory-of", choices=VARIANTS, help=argparse.SUPPRESS)
    options, overrides = parser.parse_known_args()
    recipe = load_recipe(ROOT / options.recipe, Recipe, overrides, options.debug)
    torch.set_num_threads(recipe.run.threads or 1)
    device = pick_device(recipe.run.device)
    if options.memory_of:
        print(json.dumps(memory(recipe, options.memory_of, device, options.length)))
        return

    variants = {variant: VARIANTS[variant] for variant in [PLAIN, *options.variants]}
    used = {variant: memory_alone(variant) for variant in variants}
    steps = {variant: build_step(recipe, variant, device, options.length) for variant in variants}
    seconds: dict[str, list[float]] = {variant: [] for variant in variants}
    for turn in range(WARM_UP + options.rounds):
        for variant, step in steps.items():
            begin = time.perf_counter()
            step()
            if turn >= WARM_UP:
                seconds[variant].append(time.perf_counter() - begin)

    count, rated = recipe.run.batch_size, peak_flops(recipe.run, device)
    side = int({**PRESETS[recipe.model.preset], **recipe.model.options}["sample_size"])
    flops = forward_flops(recipe.model.preset, **recipe.model.options)(side, side, options.length)
    figures: dict[str, dict[str, Any]] = {}
    print(f"{'':22}{'s / step':>9}{'images/s':>10}{'ratio':>7}{'min':>6}{'max':>6}{'peak MB':>9}{'ratio':>7}{'MFU':>7}")
    for variant, (target, _) in variants.items():
        ratios = [mine / plain for mine, plain in zip(seconds[variant], seconds[PLAIN], strict=True)]
        typical = median(seconds[variant])
        evaluations = count + moving(variant, count) * target.cost
        row = figures[variant] = {
            "seconds": typical,
            "images_per_second": count / typical,
            "time_ratio": median(ratios),
            "time_ratio_range": [min(ratios), max(ratios)],
            **used[variant],
            "memory_ratio": used[variant]["peak_megabytes"] / used[PLAIN]["peak_megabytes"],
            "share_with_interval": moving(variant, count) / count,
            "mfu": None if rated is None else utilisation(flops, evaluations, count, typical, rated),
        }
        cells = [f"{typical:9.3f}{count / typical:10.1f}{row['time_ratio']:7.2f}{min(ratios):6.2f}{max(ratios):6.2f}"]
        cells += [
            f"{row['peak_megabytes']:9.0f}{row['memory_ratio']:7.2f}",
            f"{row['mfu']:7.1%}" if rated else f"{'-':>7}",
        ]
        print(f"{variant:22}" + "".join(cells))
    write_record(
        options.out,
        {
            "recipe": str(options.recipe),
            "overrides": overrides,
            "debug": options.debug,
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
            "batch_size": count,
            "caption_tokens": options.length,
            "rounds": options.rounds,
            "diffusion_phase": recipe.objective.diffusion_phase,
            "steps": figures,
        },
    )


if __name__ == "__main__":
    main()
