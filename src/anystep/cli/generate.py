"""`anystep generate`: prompts at several numbers of steps, side by side."""

import argparse
import secrets
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anystep.bounds import Count, OptionalCount, PositiveShare, Seed, Share, Time, TimeShift, cut, parse
from anystep.cli.option_types import (
    STANDARD_INPUT,
    input_file,
    input_text,
    output_file,
    output_folder,
    text,
    weighted_spec,
)
from anystep.cli.options import BASELINES, Commands, add_options, as_fields
from anystep.cli.output import complain, print_json, say_loading, warn
from anystep.errors import InputError
from anystep.files import make_folder

if TYPE_CHECKING:
    from anystep.pipelines.generate import Drawn
    from anystep.pipelines.step_sheet import AnyStepSheet

DEFAULT_OUT = Path("anystep.png")
LINES = "- reads prompts from standard input, one a line"
ROPE_SCALINGS = ("plain", "interpolation", "ntk", "by_parts", "yarn")


def add(commands: Commands) -> None:
    parser = commands.add_parser("generate", help="draw prompts at several step counts, side by side")
    option = parser.add_argument
    option("prompts", type=text, nargs="*", metavar="PROMPT", help=f'what to draw, for example "a red apple"; {LINES}')
    option("--prompts-file", type=input_text, metavar="FILE", help="more prompts, one a line; - is standard input")
    option("--like", type=input_file, metavar="IMAGE", help="as this image of anystep was drawn, but for what is given")
    add_options(parser, "--steps", help="step counts (default: 1 2 4 8)")
    sheet = "a .png, .jpg or .webp of the sheet, or a single image (default: anystep.png, or the next free name)"
    option("--out", type=output_file, help=sheet)
    option("--separate", type=output_folder, metavar="FOLDER", help="also write every image to its own file")
    add_options(parser, "--size")
    option("--image", type=input_file, help="start from this image instead of noise alone")
    option("--strength", type=PositiveShare, help="how far back to begin, with --image (default: 0.6)")
    beyond = "what becomes of positions beyond those of training (default: the model's)"
    option("--rope-scaling", choices=ROPE_SCALINGS, help=beyond)
    add_options(parser, "--key-grid")
    option("--seed", type=seed_or_random, help="of the noise, or random (default: 0)")
    option("--count", type=Count, help="images of each prompt, with seeds from --seed on (default: 1)")
    option("--seeds", type=Seed, nargs="+", help="an image of each prompt with each of them")
    add_options(parser, "--guidance")
    option("--guidance-interval", type=Time, nargs=2, metavar=("LOW", "HIGH"), help="guided times (default: plan's)")
    option("--stochasticity", type=Share, help="0 to 1: jump below the target and re-noise (default: the model's)")
    option("--shift", type=TimeShift, help="of the times, above 1 towards noise (default: the plan's)")
    add_options(parser, "--plan")
    option("--finish-after", type=OptionalCount, metavar="N", help="jump to the end in one step after N transitions")
    option("--force", action="store_true", help="draw prompts that the model does not know")
    add_options(parser, "--model", default=None, help=BASELINES)
    adapter = "an adapter (LoRA) on the model, a file, folder, run or hub id, and how much of it (default: 1)"
    option("--lora", type=weighted_spec, nargs="+", metavar="PATH[:SCALE]", help=adapter)
    add_options(parser, "--device")
    add_options(parser, "--precision", default=None)
    add_options(parser, "--json")
    parser.set_defaults(run=run)


def seed_or_random(value: str) -> int:
    """A seed, or `random`: one that nobody chose, of 32 bits so that it is easily typed again."""
    if value == "random":
        return secrets.randbelow(2**32)
    try:
        return int(parse(Seed)(value))
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(f"{error}, or random") from None


def run(options: argparse.Namespace) -> int:
    prompts = read_prompts(options)
    if prompts and not any(prompt.strip() for prompt in prompts):
        raise InputError('empty prompt: say what to draw, for example "a red apple"')
    say_loading(options)

    from anystep.contact_sheet import check_writable, free_name, save_image
    from anystep.pipelines.generate import Request, generate

    check_writable(options.out or DEFAULT_OUT)
    if options.separate is not None:
        make_folder(options.separate)
    drawn = generate(Request(**{**as_fields(options, Request), "prompts": prompts}), warn)
    out = options.out or free_name(DEFAULT_OUT)
    save_image(drawn.sheet.picture(), out, drawn.texts)
    if options.json:
        print_json(summary(drawn, out))
    else:
        print_table(drawn.sheet)
        seeds = drawn.sheet.seeds
        print(f"wrote {out} (seed{'s' * (len(seeds) > 1)} {cut(' '.join(map(str, seeds)), 200)})")
    for message in drawn.refused:
        complain(message)
    return 2 if drawn.refused else 0


def read_prompts(options: argparse.Namespace) -> list[str]:
    """Those of the command line, of standard input for `-` alone, and of a file."""
    from anystep.files import read_text

    given, file = list(options.prompts), options.prompts_file
    prompts, lines = ([], standard_input() + "\n") if given == ["-"] else (given, "")
    if file == STANDARD_INPUT and given != ["-"]:
        lines += standard_input()
    elif file is not None and file != STANDARD_INPUT:
        lines += read_text(file)
    try:
        prompts += [text(line.strip()) for line in lines.split("\n") if line.strip()]
    except argparse.ArgumentTypeError as error:
        raise InputError(f"prompt {error}") from None
    if not prompts and (given or file is not None):
        raise InputError("there is no prompt in what was read: expected one a line")
    return prompts


def standard_input() -> str:
    from anystep.files import TEXT_LIMIT, decode_text

    content = sys.stdin.buffer.read(TEXT_LIMIT + 1)
    if len(content) > TEXT_LIMIT:
        raise InputError(f"standard input has more than the {TEXT_LIMIT:,} bytes that are read")
    return decode_text(content, "standard input")


def print_table(sheet: "AnyStepSheet") -> None:
    """What each number of steps cost."""
    from rich.console import Console
    from rich.table import Table

    class Output(Console):
        def on_broken_pipe(self) -> None:  # in place of leaving at once, with code 1
            raise BrokenPipeError

    count, (width, height) = len(sheet.prompts), sheet.columns[0][0].images[0].size
    table = Table("steps", "NFE", "ms per image", title=f"{count} prompt{'s' * (count > 1)}, {width}x{height}")
    for label, (_, nfe, ms) in zip(sheet.labels(), sheet.costs(), strict=True):
        table.add_row(label.replace(" steps", "").replace(" step", ""), str(nfe), f"{ms:.0f}")
    Output().print(table)


def summary(drawn: "Drawn", out: Path) -> dict[str, Any]:
    """What was drawn, where it is and what it cost, for other programs."""
    sheet = drawn.sheet
    return {
        "out": str(out),
        "separate": [str(path) for path in drawn.separate],
        "prompts": sheet.prompts,
        "seeds": sheet.seeds,
        "size": list(sheet.columns[0][0].images[0].size),
        "steps": [
            {"steps": asked, "made": cells[0].steps, "nfe": nfe, "milliseconds": ms}
            for (asked, nfe, ms), cells in zip(sheet.costs(), sheet.columns, strict=True)
        ],
        "refused": drawn.refused,
    }
