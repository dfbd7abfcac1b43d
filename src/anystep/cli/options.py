"""Options that several commands have, each stated once."""

import argparse
from collections.abc import Sequence
from typing import Any

from anystep.bounds import BatchSize, Count, Guidance, PositiveShare, SamplingSteps, Seed, Side, Threads, parse
from anystep.cli.option_types import output_folder, size, spec
from anystep.data_sheets import DEVICES, UTILISATION
from anystep.errors import InputError

Commands = Any  # what argparse's add_subparsers returns, a private class


def add_device(parser: argparse.ArgumentParser, only: str = "", default: str | None = "auto") -> None:
    parser.add_argument("--device", type=spec, default=default, help=f"{only}auto, cpu, cuda, mps (default: auto)")


def add_model(parser: argparse.ArgumentParser) -> None:
    """The model that draws, and the device that it draws on."""
    parser.add_argument(
        "--model", type=spec, default="builtin", help="builtin, a folder, or a hub id (default: builtin)"
    )
    add_device(parser)


def add_size(parser: argparse.ArgumentParser, **options: Any) -> None:
    told = {"help": "in pixels, or one number for a square (default: the training size)", **options}
    parser.add_argument("--size", **{"type": size, "metavar": "WxH", **told})


def add_steps(parser: argparse.ArgumentParser, default: Sequence[int] | None, what: str = "numbers of steps") -> None:
    shown = "" if default is None else f" (default: {' '.join(map(str, default))})"
    parser.add_argument("--steps", type=parse(SamplingSteps), nargs="+", default=default, help=what + shown)


def add_guidance(parser: argparse.ArgumentParser, only: str = "") -> None:
    parser.add_argument(
        "--guidance", type=parse(Guidance), help=f"{only}guidance scale, none at 1 and below (default: the model's)"
    )


def add_plan(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--plan", choices=("model", "uniform"), help="what steps are spent on: the model's plans (default), or uniform"
    )


def add_key_grid(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--key-grid",
        type=parse(Side),
        metavar="TOKENS",
        help="attend to at most so many tokens along the longer side (default: all)",
    )


def add_seed(parser: argparse.ArgumentParser, only: str = "", default: int | None = 0) -> None:
    parser.add_argument(
        "--seed", type=parse(Seed), default=default, help=f"{only}seed of the first image, the next has the next (0)"
    )


def add_batch(parser: argparse.ArgumentParser, only: str = "", default: int | None = 50) -> None:
    parser.add_argument(
        "--batch", type=parse(BatchSize), default=default, help=f"{only}images drawn at a time (default: 50)"
    )


def add_threads(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--threads", type=parse(Threads), default=1, help="of each process; other numbers change last bits (default: 1)"
    )


def add_extractor(parser: argparse.ArgumentParser, only: str = "", default: str | None = "effnetlite0") -> None:
    """Also `--allow-code`, which some extractors need."""
    parser.add_argument(
        "--extractor",
        type=spec,
        default=default,
        help=f"{only}effnetlite0, inception:PATH, a .safetensors, .onnx or .pt file (default: effnetlite0)",
    )
    add_allow_code(parser, only)


def add_allow_code(parser: argparse.ArgumentParser, only: str = "") -> None:
    parser.add_argument(
        "--allow-code",
        action="store_true",
        help=f"{only}run a .pt extractor, a program that can do all that you can",
    )


def add_data(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", type=spec, default="builtin", help="real images and captions (default: builtin)")


def add_out_folder(parser: argparse.ArgumentParser, what: str = "the folder; the same command resumes") -> None:
    parser.add_argument("--out", type=output_folder, required=True, help=what)


def add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON, for other programs")


def add_planned_devices(parser: argparse.ArgumentParser, only: str = "", only_count: str = "") -> None:
    """The devices that something is planned for, and how much of their rate is believed."""
    parser.add_argument("--on", choices=DEVICES, help=f"{only}plan for this device (default: this machine)")
    parser.add_argument("--devices", type=parse(Count), help=f"{only_count}how many of them (default: 1)")
    parser.add_argument(
        "--utilisation",
        type=parse(PositiveShare),
        help=f"{only}share of the rate in a device's data sheet that is reached (default: {UTILISATION})",
    )


def as_fields(options: argparse.Namespace, kind: Any) -> dict[str, Any]:
    """The options that are fields of a dataclass."""
    return {name: value for name, value in vars(options).items() if name in kind.__dataclass_fields__}


def refuse_without(options: argparse.Namespace, needed: str, *names: str) -> None:
    """Options that would be passed over in silence are refused."""
    for name in names:
        if (value := getattr(options, name)) not in (None, False):
            flag = f"--{name.replace('_', '-')}"
            raise InputError(f"{flag if value is True else f'{flag} {value}'}: goes with {needed} only")
