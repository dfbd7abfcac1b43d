"""Options that several commands have, each stated once."""

import argparse
from typing import Any

from anystep.bounds import BatchSize, Count, Guidance, PositiveShare, SamplingSteps, Seed, Side, Threads
from anystep.cli.option_types import output_folder, size, spec
from anystep.data_sheets import DEVICES, PRECISIONS, UTILISATION
from anystep.errors import InputError

Commands = Any  # what argparse's add_subparsers returns, a private class

BASELINES = "builtin, a folder or a hub id; or a text-to-image pipeline of diffusers, with its options after ?"
# what `OneLineParser.add_argument` is given
OPTIONS: dict[str, dict[str, Any]] = {
    "--model": {"type": spec, "default": "builtin", "help": "builtin, a folder, or a hub id"},
    "--device": {"type": spec, "default": "auto", "help": "auto, cpu, cuda, mps"},
    "--precision": {
        "choices": PRECISIONS, "default": "auto",
        "help": "of the network's blocks and the codec; auto is bfloat16 on a GPU that has it, else float32",
    },
    "--size": {
        "type": size, "metavar": "WxH", "help": "in pixels, or one number for a square (default: the training size)",
    },
    "--steps": {"type": SamplingSteps, "nargs": "+", "help": "numbers of steps"},
    "--guidance": {"type": Guidance, "help": "guidance scale, none at 1 and below (default: the model's)"},
    "--plan": {
        "choices": ("model", "uniform"), "help": "what steps are spent on: the model's plans (default), or uniform",
    },
    "--key-grid": {
        "type": Side, "metavar": "TOKENS",
        "help": "attend to at most so many tokens along the longer side (default: all)",
    },
    "--seed": {"type": Seed, "default": 0, "help": "seed of the first image, the next has the next"},
    "--batch": {"type": BatchSize, "default": 50, "help": "images drawn at a time"},
    "--threads": {"type": Threads, "default": 1, "help": "of each process; other numbers change last bits"},
    "--extractor": {
        "type": spec, "default": "effnetlite0",
        "help": "effnetlite0, inception:PATH, a .safetensors, .onnx or .pt file",
    },
    "--allow-code": {"action": "store_true", "help": "run a .pt extractor, a program that can do all that you can"},
    "--data": {"type": spec, "default": "builtin", "help": "real images and captions"},
    "--out": {"type": output_folder, "required": True, "help": "the folder; the same command resumes"},
    "--dry-run": {
        "action": "store_true",
        "help": "check everything but the weights of baselines, say what drawing takes, and draw nothing",
    },
    "--json": {"action": "store_true", "help": "print JSON, for other programs"},
    "--on": {"choices": DEVICES, "help": "plan for this device (default: this machine)"},
    "--devices": {"type": Count, "help": "how many of them (default: 1)"},
    "--utilisation": {
        "type": PositiveShare,
        "help": f"share of the rate in a device's data sheet that is reached (default: {UTILISATION})",
    },
}  # fmt: skip


def add_options(parser: argparse.ArgumentParser, *names: str, only: str = "", **changes: Any) -> None:
    """Add some of `OPTIONS` to a command, with changes that all of them take.

    Args:
        only: what they go with, at the start of their help.
    """
    for name in names:
        option = {**OPTIONS[name], **changes}
        if option.get("default") is None and "default" in OPTIONS[name]:  # left to what the command runs
            option["help"] += f" (default: {OPTIONS[name]['default']})"
        parser.add_argument(name, **{**option, "help": only + option["help"]})


def as_fields(options: argparse.Namespace, kind: Any) -> dict[str, Any]:
    """The options that are fields of a dataclass."""
    return {name: value for name, value in vars(options).items() if name in kind.__dataclass_fields__}


def refuse_without(options: argparse.Namespace, needed: str, *names: str) -> None:
    """Options that would be passed over in silence are refused."""
    for name in names:
        if (value := getattr(options, name)) not in (None, False):
            flag = f"--{name.replace('_', '-')}"
            raise InputError(f"{flag if value is True else f'{flag} {value}'}: goes with {needed} only")
