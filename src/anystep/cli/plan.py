"""`anystep plan`: what an image, or training, takes before it is begun."""

import argparse
from dataclasses import asdict
from typing import TYPE_CHECKING

from anystep.bounds import BatchSize, SamplingSteps
from anystep.cli.options import Commands, add_options, refuse_without
from anystep.cli.output import print_facts, print_json
from anystep.cli.train import dry_run
from anystep.errors import InputError

if TYPE_CHECKING:
    from anystep.pipelines.plan import ModelSpec


def add(commands: Commands) -> None:
    parser = commands.add_parser("plan", help="what an image, or training, takes before it is begun")
    option = parser.add_argument
    add_options(parser, "--model", help="a preset, builtin, a folder, a run or a hub id")
    add_options(parser, "--size")
    option("--steps", type=SamplingSteps, help="of an image (default: 4)")
    option("--guided", action="store_true", help="two evaluations a step, unless the network is told the scale")
    add_options(parser, "--key-grid", "--on")
    add_options(parser, "--devices", only="training: ")
    add_options(parser, "--utilisation")
    add_options(parser, "--device", only="of this machine: ", default=None)
    option("--train", action="store_true", help="plan training of a preset, on squares of as many pixels")
    option("--batch", type=BatchSize, help="training: images a step (default: 256)")
    option("--parallel", choices=("none", "ddp", "fsdp", "hsdp"), help="training (default: ddp)")
    option("--checkpointing", action="store_true", help="training: compute blocks again")
    add_options(parser, "--json")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    from anystep.pipelines.plan import ModelSpec

    if options.on is not None and options.device is not None:
        raise InputError(f"--device {options.device}: is one of this machine, which --on {options.on} is not")
    model = ModelSpec.of(options.model)
    side = int(model.network["sample_size"]) * model.factor
    width, height = options.size or (side, side)
    if options.train:
        refuse_without(options, "a plan of an image", "steps", "guided", "key_grid")
        from anystep.training.dry_run import preset_recipe

        recipe = preset_recipe(
            options.model, width, height, options.batch or 256, options.parallel or "ddp", options.checkpointing,
            options.device or "auto",
        )  # fmt: skip
        dry_run(options, recipe)
    else:
        refuse_without(options, "--train", "batch", "devices", "parallel", "checkpointing")
        plan_image(options, model, width, height)


def plan_image(options: argparse.Namespace, model: "ModelSpec", width: int, height: int) -> None:
    import torch

    from anystep.device import planned_device
    from anystep.pipelines.plan import check_fits, describe

    device = planned_device(options.on, options.device or "auto", options.utilisation)
    plan = check_fits(
        model, width, height, options.steps or 4, device.memory, guided=options.guided, key_grid=options.key_grid,
        precision=torch.float32 if options.on is None else torch.bfloat16,
    )  # fmt: skip
    if not options.json:
        print_facts(describe(plan, device.memory, device.rate))
        return
    totals = {"peak_bytes": plan.peak_bytes, "flops": plan.flops, "seconds": plan.flops / device.rate}
    print_json({**asdict(plan), **totals, "memory_bytes": device.memory, "flops_per_second": device.rate})
