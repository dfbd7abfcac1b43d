"""`anystep plan`: what an image, or training, takes before it is begun."""

import argparse
from dataclasses import asdict
from typing import TYPE_CHECKING

from anystep.bounds import BatchSize, SamplingSteps, parse
from anystep.cli import options as common
from anystep.cli.option_types import spec
from anystep.cli.output import print_facts, print_json
from anystep.errors import InputError

if TYPE_CHECKING:
    from anystep.pipelines.plan import ModelSpec


def add(commands: common.Commands) -> None:
    parser = commands.add_parser("plan", help="what an image, or training, takes before it is begun")
    parser.add_argument("--model", type=spec, default="builtin", help="a preset, builtin, a folder, a run or a hub id")
    common.add_size(parser)
    parser.add_argument("--steps", type=parse(SamplingSteps), help="of an image (default: 4)")
    parser.add_argument(
        "--guided", action="store_true", help="two evaluations a step, unless the network is told the scale"
    )
    common.add_key_grid(parser)
    common.add_planned_devices(parser, only_count="training: ")
    common.add_device(parser, "of this machine: ", default=None)
    parser.add_argument("--train", action="store_true", help="plan training of a preset, on squares of as many pixels")
    parser.add_argument("--batch", type=parse(BatchSize), help="training: images a step (default: 256)")
    parser.add_argument("--parallel", choices=("none", "ddp", "fsdp", "hsdp"), help="training (default: ddp)")
    parser.add_argument("--checkpointing", action="store_true", help="training: compute blocks again")
    common.add_json(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    from anystep.pipelines.plan import ModelSpec

    if options.on is not None and options.device is not None:
        raise InputError(f"--device {options.device}: is one of this machine, which --on {options.on} is not")
    model = ModelSpec.of(options.model)
    side = int(model.network["sample_size"]) * model.factor
    width, height = options.size or (side, side)
    if options.train:
        common.refuse_without(options, "a plan of an image", "steps", "guided", "key_grid")
        plan_training(options, width, height)
    else:
        common.refuse_without(options, "--train", "batch", "devices", "parallel", "checkpointing")
        plan_image(options, model, width, height)


def plan_training(options: argparse.Namespace, width: int, height: int) -> None:
    from anystep.training.dry_run import DryRun, preset_recipe

    recipe = preset_recipe(
        options.model, width, height, options.batch or 256, options.parallel or "ddp", options.checkpointing,
        options.device or "auto",
    )  # fmt: skip
    planned = DryRun.of(recipe, options.on, options.devices or 1, options.utilisation)
    if options.json:
        print_json(planned.figures())
    else:
        print_facts(planned.describe())


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
    print_json(
        {
            **asdict(plan),
            "peak_bytes": plan.peak_bytes,
            "flops": plan.flops,
            "memory_bytes": device.memory,
            "flops_per_second": device.rate,
            "seconds": plan.flops / device.rate,
        }
    )
