"""The command line, thin: it reads arguments, calls the library and prints. Heavy imports wait until a command runs."""

import argparse
import difflib
import json
import math
import os
import re
import secrets
import shlex
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from anystep import __version__
from anystep.bounds import (
    Aspect,
    AverageLength,
    BatchSize,
    Count,
    Guidance,
    PositiveShare,
    SamplingSteps,
    Seed,
    Share,
    Side,
    Threads,
    Time,
    TimeShift,
    check,
    cut,
    parse,
    shown,
)
from anystep.cli.option_types import input_file, input_folder, output_file, output_folder, size, spec, text
from anystep.console import say
from anystep.data_sheets import DEVICES
from anystep.errors import LONGEST, InputError, one_line
from anystep.files import check_output, make_folder

if TYPE_CHECKING:
    from PIL.Image import Image

    from anystep.compare import Comparison
    from anystep.pipelines.load import Model
    from anystep.pipelines.settings import Settings
    from anystep.training.config import Recipe


class OneLineParser(argparse.ArgumentParser):
    """Bad usage is one line and exit code 2. An option is its whole name: parts of names would hide typing errors."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{**options, "allow_abbrev": False})
        self.given: list[str] | None = None  # what it was asked to parse
        self.takes_overrides = False  # whether what is no option is `--section.key VALUE` of a recipe
        self.takes_more: str | None = None  # the positional arguments that words after options belong to

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        self.given = list(sys.argv[1:] if args is None else args)
        if not self.takes_overrides:
            parsed, rest = super().parse_known_args(args, namespace)
            if self.takes_more is not None and not any(word.startswith("-") for word in rest):
                more = [*getattr(parsed, LATE, ()), *(self._typed_text(word) for word in rest)]
                setattr(parsed, self.takes_more, [*(getattr(parsed, self.takes_more) or ()), *more])
                rest = []
            return parsed, rest
        # set aside before anything is taken for a positional argument, so that they may come first
        plain: list[str] = []
        overrides: list[str] = []
        words = iter(self.given)
        for word in words:
            if not word.startswith("--") or word == "--" or word.split("=")[0] in self._option_string_actions:
                plain.append(word)
            else:
                overrides += (
                    [word] if "=" in word else [word, *[value for value in [next(words, None)] if value is not None]]
                )
        parsed, rest = super().parse_known_args(plain, namespace)
        parsed.overrides = [*overrides, *rest]
        return parsed, []

    def _typed_text(self, word: str) -> str:
        try:
            return text(word)
        except argparse.ArgumentTypeError as error:
            self.error(str(error))

    @property
    def chosen(self) -> "OneLineParser":
        """The parser of the command that was given, or of its action."""
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                return next((each.chosen for each in action.choices.values() if each.given is not None), self)
        return self

    def did_you_mean(self, words: Iterable[str]) -> str:
        """What options were meant by words that are none but are near one."""
        known = [name for name in self._option_string_actions if name.startswith("--")]
        meant = {word: near for word in words if (near := nearest_option(word, known))}
        return "".join(f"; {cut(word)}: did you mean {near}?" for word, near in meant.items())

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            names = [str(each) for each in action.choices]
            near = difflib.get_close_matches(str(value), names, n=1)
            hint = f"did you mean {near[0]}? " if near else ""
            raise argparse.ArgumentError(action, f"{shown(value)}: {hint}expected one of {', '.join(names)}")

    def error(self, message: str) -> NoReturn:
        # a misspelt name may be why another is missing, so it is told with every error
        start = f"{self.prog}: error: "
        self.exit(2, f"{start}{one_line(message + self.did_you_mean(self.given or ()), LONGEST + 16 - len(start))}\n")


LATE = "late_text"


class NumbersThenText(argparse.Action):
    """Numbers of a kind; text behind them, as in `--steps 1 2 "a red apple"`, is kept for the positional arguments."""

    def __init__(self, *, kind: Any, **options: Any) -> None:
        super().__init__(**options)
        self.read = parse(kind)

    def __call__(self, parser: Any, namespace: argparse.Namespace, values: Any, option_string: Any = None) -> None:
        numbers: list[int] = []
        late: list[str] = []
        for word in values:
            try:
                if not (numbers and _is_text(word)):
                    numbers.append(self.read(word))
                else:
                    late.append(text(word))
            except argparse.ArgumentTypeError as error:
                raise argparse.ArgumentError(self, str(error)) from None
        setattr(namespace, self.dest, numbers)
        setattr(namespace, LATE, [*getattr(namespace, LATE, ()), *late])


def _is_text(word: str) -> bool:
    """Whether a word is no attempt at a number."""
    try:
        float(word)
    except ValueError:
        return any(each.isalpha() for each in word) and (" " in word or not word[0].isdigit())
    return False


def seed_or_random(value: str) -> int:
    """A seed, or `random`: one that nobody chose, of 32 bits so that it is easily typed again."""
    if value == "random":
        return secrets.randbelow(2**32)
    try:
        return int(parse(Seed)(value))
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(f"{error}, or random") from None


# what other programs call our options
OTHER_NAMES = {
    "width": "--size", "height": "--size", "resolution": "--size", "num-images": "--count", "n": "--count",
    "cfg": "--guidance", "cfg-scale": "--guidance", "init-image": "--image", "checkpoint": "--model", "ckpt": "--model",
    "num-images-per-prompt": "--count", "batch-size": "--batch", "num-samples": "--samples",
}  # fmt: skip


def nearest_option(word: str, known: Sequence[str]) -> str | None:
    """The option that was meant by a word that looks like one and is none."""
    if not re.fullmatch(r"--?[A-Za-z][\w-]*(=.*)?", word, re.DOTALL):
        return None
    name = word.split("=")[0].lower().replace("_", "-").strip("-")
    if f"--{name}" in known:
        return None
    plain = [each[2:] for each in known]
    near = [each for each in known if OTHER_NAMES.get(name) == each or (len(name) == 1 and each[2:].startswith(name))]
    near += [f"--{each}" for each in difflib.get_close_matches(name, plain, n=1, cutoff=0.7)]
    near += [f"--{each}" for each in plain if each in name.split("-")]
    near += [f"--{each}" for each in difflib.get_close_matches(name, plain, n=1)]
    return near[0] if near else None


def build_parser() -> OneLineParser:
    parser = OneLineParser(
        prog="anystep",
        description="Transition models: one set of weights generates in any number of steps.",
        epilog="`anystep COMMAND --help` explains a command.",
    )
    parser.add_argument("--version", action="version", version=f"anystep {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=OneLineParser)

    generate = commands.add_parser("generate", help="draw prompts at several step counts, side by side")
    generate.takes_more = "prompts"
    generate.add_argument(
        "prompts",
        type=text,
        nargs="*",
        metavar="PROMPT",
        help='what to draw, for example "a red apple"; - reads prompts from standard input, one a line',
    )
    generate.add_argument(
        "--prompts-file", type=input_file, metavar="FILE", help="more prompts, one a line; empty lines are passed over"
    )
    generate.add_argument(
        "--like", type=input_file, metavar="IMAGE", help="as this image of anystep was drawn, but for what is given"
    )
    generate.add_argument(
        "--steps", action=NumbersThenText, kind=SamplingSteps, nargs="+", help="step counts (default: 1 2 4 8)"
    )
    generate.add_argument(
        "--out", type=output_file, help="the sheet, or a single image (default: anystep.png, or the next free name)"
    )
    generate.add_argument(
        "--separate", type=output_folder, metavar="FOLDER", help="also write every image to its own file"
    )
    generate.add_argument("--size", type=size, metavar="WxH", help="in pixels (default: the training size)")
    generate.add_argument("--image", type=input_file, help="start from this image instead of noise alone")
    generate.add_argument("--strength", type=parse(PositiveShare), help="how far back to begin, with --image (0.6)")
    generate.add_argument(
        "--rope-scaling", choices=("plain", "interpolation", "ntk", "by_parts", "yarn"),
        help="what becomes of positions beyond those of training (default: the model's)",
    )  # fmt: skip
    generate.add_argument(
        "--key-grid",
        type=parse(Side),
        metavar="TOKENS",
        help="attend to at most so many along the longer side (default: all)",
    )
    generate.add_argument("--seed", type=seed_or_random, help="of the noise, or random (default: 0)")
    generate.add_argument("--count", type=parse(Count), help="images of each prompt, with seeds from --seed on (1)")
    generate.add_argument(
        "--seeds", action=NumbersThenText, kind=Seed, nargs="+", help="an image of each prompt with each of them"
    )
    generate.add_argument(
        "--guidance", type=parse(Guidance), help="guidance scale, none at 1 and below (default: the model's)"
    )
    generate.add_argument(
        "--guidance-interval", type=parse(Time), nargs=2, metavar=("LOW", "HIGH"), help="guide inside it only"
    )
    generate.add_argument(
        "--stochasticity", type=parse(Share), help="0 to 1: jump below the target and re-noise (default: the model's)"
    )
    generate.add_argument(
        "--shift", type=parse(TimeShift), help="of the times, above 1 towards noise (default: the plan's)"
    )
    add_plan(generate)
    generate.add_argument("--force", action="store_true", help="draw prompts that the model does not know")
    add_model(generate)
    generate.set_defaults(run=run_generate, model=None)

    train = commands.add_parser("train", help="train a transition model from a recipe")
    add_recipe(train, out_required=False)
    train.add_argument("--dry-run", action="store_true", help="print what it takes, and train nothing")
    train.add_argument("--on", choices=DEVICES, help="dry run: devices (default: this machine)")
    train.add_argument("--devices", type=parse(Count), help="dry run: how many (default: 1)")
    train.add_argument(
        "--utilisation", type=parse(PositiveShare), help="dry run: of a data sheet's rate (default: 0.4)"
    )
    train.set_defaults(run=run_train)
    plan = commands.add_parser("plan", help="what an image, or training, takes before it is begun")
    plan.add_argument("--model", type=spec, default="builtin", help="a preset, builtin, a folder, a run or a hub id")
    plan.add_argument("--size", type=size, metavar="WxH", help="in pixels (default: the training size)")
    plan.add_argument("--steps", type=parse(SamplingSteps), help="of an image (default: 4)")
    plan.add_argument(
        "--guided", action="store_true", help="two evaluations a step, unless the network is told the scale"
    )
    plan.add_argument(
        "--key-grid", type=parse(Side), metavar="TOKENS", help="attend to at most so many along the longer side"
    )
    plan.add_argument("--on", choices=DEVICES, help="a device (default: this machine)")
    plan.add_argument(
        "--utilisation", type=parse(PositiveShare), help="of the data sheet's rate of a device (default: 0.4)"
    )
    plan.add_argument("--train", action="store_true", help="plan training of a preset, on squares of as many pixels")
    plan.add_argument("--batch", type=parse(BatchSize), help="training: images a step (default: 256)")
    plan.add_argument("--devices", type=parse(Count), help="training: how many (default: 1)")
    plan.add_argument("--parallel", choices=("none", "ddp", "fsdp", "hsdp"), help="training (default: ddp)")
    plan.add_argument("--checkpointing", action="store_true", help="training: compute blocks again")
    plan.set_defaults(run=run_plan)
    codec = commands.add_parser("train-codec", help="train a latent autoencoder from a recipe")
    add_recipe(codec)
    codec.set_defaults(run=run_train_codec)

    evaluate = commands.add_parser("evaluate", help="measure quality against network evaluations")
    add_evaluation(evaluate)
    evaluate.set_defaults(run=run_evaluate)
    planner = commands.add_parser("plan-steps", help="choose what each number of steps is best spent on")
    add_plan_search(planner)
    planner.set_defaults(run=run_plan_steps)
    benchmark = commands.add_parser("benchmark", help="GenEval, DPG-Bench, MJHQ-30K, ImageNet samples, scenes")
    add_benchmarks(benchmark)
    detector = commands.add_parser("train-scene-detector", help="train the detector that judges scenes")
    detector.add_argument("--out", type=output_file, required=True, help="a .safetensors file")
    detector.add_argument("--steps", type=parse(Count), default=4000, help="default: 4000")
    detector.set_defaults(run=run_train_scene_detector)
    alignment = commands.add_parser("train-alignment", help="train the offline caption alignment score")
    alignment.add_argument("--out", type=output_file, required=True, help="a .safetensors file")
    alignment.set_defaults(run=run_train_alignment)
    classifier = commands.add_parser("train-classifier", help="train a small feature extractor on labelled data")
    classifier.add_argument("data", type=spec, help="classes:FOLDER or idx:FOLDER")
    classifier.add_argument("--out", type=output_file, required=True, help="a .safetensors file, for --extractor")
    classifier.add_argument("--size", type=parse(Side), default=28, help="side of the images in pixels (default: 28)")
    classifier.add_argument("--epochs", type=parse(Count), default=3, help="default: 3")
    classifier.set_defaults(run=run_train_classifier)
    average = commands.add_parser("average", help="a model of any average of a run's weights, and which length is best")
    add_average(average)
    average.set_defaults(run=run_average)
    compare = commands.add_parser("compare", help="train several objectives alike and draw their curves")
    compare.add_argument(
        "recipe", type=spec, help="a name of `anystep recipes`, for example fashion-mnist, or a YAML file"
    )
    compare.add_argument("--out", type=output_folder, required=True, help="the folder; the same command resumes")
    compare.add_argument("--only", type=text, nargs="+", metavar="NAME", help="some of the variants")
    compare.add_argument(
        "--vary", type=text, nargs="+", default=[], metavar="KEY=VALUES", help="more variants of the first one"
    )
    compare.add_argument(
        "--jobs", type=parse(Threads), default=1, help="runs at a time, each in its process (default: 1)"
    )
    compare.add_argument("--debug", action="store_true", help="the file's laptop size")
    add_allow_code(compare)
    compare.takes_overrides = True
    compare.epilog = (
        'Any value of the file: --section.key VALUE, for example --recipe.data.source idx:FOLDER, --seeds "[0, 1]", or '
        '--milestones "[0.25, 0.5, 1]" to measure along the training as well.'
    )
    compare.set_defaults(run=run_compare)

    data = commands.add_parser("data", help="look at data, and prepare them for training")
    actions = data.add_subparsers(dest="action", required=True, metavar="ACTION", parser_class=OneLineParser)
    show = actions.add_parser("show", help="a contact sheet of a source")
    show.add_argument(
        "source", type=spec, help="builtin, scenes, a folder, or classes:, idx:, parquet: or shards:FOLDER"
    )
    show.add_argument("--out", type=output_file, help="the picture (default: sheet.png, or the next free name)")
    show.add_argument("--count", type=parse(Count), default=120, help="examples, spread over the source (default: 120)")
    show.add_argument("--size", type=parse(Side), default=96, help="side of an image in pixels (default: 96)")
    show.set_defaults(run=run_data_show)

    prepare = actions.add_parser("prepare", help="encode a source once, into tar shards that training reads")
    prepare.add_argument(
        "source", type=spec, help="a folder, classes:FOLDER, parquet:FOLDER, shards:URL of images, ..."
    )
    prepare.add_argument("--out", type=output_folder, required=True, help="the folder; the same command resumes")
    prepare.add_argument("--size", type=parse(Side), required=True, help="side of the images in pixels")
    prepare.add_argument(
        "--native", action="store_true", help="images keep their shape: --size is that of a square of the most area"
    )
    prepare.add_argument("--longest", type=parse(Side), help="with --native: the most pixels along one side")
    prepare.add_argument(
        "--aspect", type=parse(Aspect), default=5.0, help="with --native: longest over shortest (default: 5)"
    )
    prepare.add_argument("--codec", type=spec, default="builtin", help="builtin, identity, a folder or a hub id")
    prepare.add_argument(
        "--text-encoder", type=spec, help="also keep the token states of captions: builtin, a folder or hub id"
    )
    prepare.add_argument(
        "--features", type=spec, help="also keep features for alignment: DINOv2, SigLIP by id, or radio:VERSION"
    )
    prepare.add_argument("--patch-size", type=parse(Side), default=1, help="of the network that the features are for")
    prepare.add_argument("--mirror", action="store_true", help="also keep every image turned left to right")
    prepare.add_argument("--dtype", choices=("float16", "float32"), default="float16", help="default: float16")
    prepare.add_argument("--shard-size", type=parse(Count), default=1000, help="examples in a tar (default: 1000)")
    prepare.add_argument("--device", type=spec, default="auto", help="auto, cpu, cuda, mps (default: auto)")
    prepare.set_defaults(run=run_data_prepare)

    objectives = commands.add_parser(
        "objectives", help="what can be trained, what it costs, and from which paper it is"
    )
    objectives.set_defaults(run=run_objectives)
    recipes = commands.add_parser("recipes", help="the recipes that come with anystep")
    recipes.set_defaults(run=run_recipes)
    shown_or_listed = recipes.add_subparsers(dest="action", metavar="ACTION", parser_class=OneLineParser)
    shown_recipe = shown_or_listed.add_parser("show", help="print one, to change it: `recipes show emoji > mine.yaml`")
    shown_recipe.add_argument("name", type=spec, help="for example emoji or compare/fashion-mnist")
    shown_recipe.set_defaults(run=run_recipes)

    info = commands.add_parser("info", help="versions, device, and what a model is and knows")
    add_model(info)
    info.add_argument("--json", action="store_true", help="for machines")
    info.set_defaults(run=run_info)
    return parser


def add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model", type=spec, default="builtin", help="builtin, a folder, or a hub id (default: builtin)"
    )
    parser.add_argument("--device", type=spec, default="auto", help="auto, cpu, cuda, mps (default: auto)")


def add_plan(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--plan", choices=("model", "uniform"), help="what steps are spent on: the model's plans (default), or uniform"
    )


def add_extractor(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--extractor",
        type=spec,
        default="effnetlite0",
        help="effnetlite0, inception:PATH, a .safetensors, .onnx or .pt file",
    )
    add_allow_code(parser)


def add_allow_code(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--allow-code", action="store_true", help="run a .pt extractor, a program that can do all that you can"
    )


def add_evaluation(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", type=spec, nargs="+", default=[], help="default: builtin, unless --images is given")
    parser.add_argument(
        "--images",
        type=spec,
        nargs="+",
        default=[],
        metavar="STEPS[:NFE]=FOLDER",
        help="images made elsewhere, a folder each",
    )
    parser.add_argument(
        "--steps", type=parse(SamplingSteps), nargs="+", default=[1, 2, 4, 8, 16, 32], help="default: 1 2 4 8 16 32"
    )
    parser.add_argument("--samples", type=parse(Count), default=2000, help="images a step count (default: 2000)")
    parser.add_argument(
        "--out", type=output_folder, required=True, help="the report's folder; the same command resumes"
    )
    parser.add_argument("--data", type=spec, default="builtin", help="real images and captions (default: builtin)")
    parser.add_argument("--metrics", type=spec, nargs="+", help="default: all that the extractor and the data allow")
    add_extractor(parser)
    parser.add_argument("--reference", type=input_file, metavar="NPZ", help="mu and sigma for the Frechet distance")
    parser.add_argument(
        "--save-reference", type=output_file, metavar="NPZ", help="write mu and sigma of the real images"
    )
    parser.add_argument(
        "--alignment", type=spec, help="builtin, none, or a file of train-alignment (default: builtin if it fits)"
    )
    parser.add_argument(
        "--clip-score", type=spec, metavar="MODEL", help="a CLIP model of transformers, by id or folder"
    )
    parser.add_argument("--size", type=size, metavar="WxH", help="in pixels (default: the training size)")
    parser.add_argument(
        "--guidance", type=parse(Guidance), help="guidance scale, none at 1 and below (default: the model's)"
    )
    add_plan(parser)
    parser.add_argument(
        "--seed", type=parse(Seed), default=0, help="of the first image, the next has the next (default: 0)"
    )
    parser.add_argument("--keep-images", action="store_true", help="also write every image as a PNG file")
    parser.add_argument("--batch", type=parse(BatchSize), default=50, help="images drawn at a time (default: 50)")
    parser.add_argument(
        "--threads", type=parse(Threads), default=1, help="of each process; other numbers change last bits (default: 1)"
    )
    parser.add_argument("--device", type=spec, default="auto", help="auto, cpu, cuda, mps (default: auto)")


def add_plan_search(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", type=spec, help="a folder, a training run or a hub id")
    parser.add_argument(
        "--out", type=output_folder, required=True, help="of the search and a copy of the model; the command resumes"
    )
    parser.add_argument(
        "--in-place", action="store_true", help="write the plans into the model's own folder, and make no copy"
    )
    parser.add_argument("--data", type=spec, default="builtin", help="real images and captions (default: builtin)")
    parser.add_argument(
        "--budgets",
        type=parse(SamplingSteps),
        nargs="+",
        default=[1, 2, 4, 8, 16, 32, 64],
        help="numbers of steps (default: 1 2 4 8 16 32 64)",
    )
    parser.add_argument("--samples", type=parse(Count), default=1000, help="images a plan (default: 1000)")
    parser.add_argument("--metric", type=spec, default="frechet_distance", help="to choose by (frechet_distance)")
    add_extractor(parser)
    parser.add_argument(
        "--guidance", type=parse(Guidance), help="guidance scale, none at 1 and below (default: the model's)"
    )
    parser.add_argument("--seed", type=parse(Seed), default=0, help="of the noise (default: 0)")
    parser.add_argument("--batch", type=parse(BatchSize), default=50, help="images drawn at a time (default: 50)")
    parser.add_argument("--threads", type=parse(Threads), default=1, help="of each process (default: 1)")
    parser.add_argument("--device", type=spec, default="auto", help="auto, cpu, cuda, mps (default: auto)")


def add_average(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=input_folder, metavar="RUN", help="of a run trained with ema_lengths")
    lengths = parser.add_mutually_exclusive_group(required=True)
    lengths.add_argument(
        "--length", type=parse(AverageLength), help="of the average: the deviation of its profile over the run"
    )
    lengths.add_argument(
        "--choose", type=parse(AverageLength), nargs="+", metavar="LENGTH", help="measure these, and take the best"
    )
    parser.add_argument("--out", type=output_folder, required=True, help="the model's folder")
    parser.add_argument("--step", type=parse(Count), help="the snapshot that it ends at (default: the last)")
    parser.add_argument("--data", type=spec, help="with --choose: images to compare with, not those of training")
    parser.add_argument(
        "--steps", type=parse(SamplingSteps), nargs="+", help="with --choose: step counts to measure (default: 1 4 32)"
    )
    parser.add_argument(
        "--samples", type=parse(Count), help="with --choose: images a length and step count (default: 1000)"
    )
    parser.add_argument("--extractor", type=spec, help="with --choose: as of `anystep evaluate` (default: effnetlite0)")
    parser.add_argument("--allow-code", action="store_true", help="with --choose: run a .pt extractor")
    parser.add_argument(
        "--guidance", type=parse(Guidance), help="with --choose: none at 1 and below (default: the model's)"
    )
    parser.add_argument("--seed", type=parse(Seed), help="with --choose: of the first image (default: 0)")
    parser.add_argument("--batch", type=parse(BatchSize), help="with --choose: images drawn at a time (default: 50)")
    parser.add_argument("--device", type=spec, help="with --choose: auto, cpu, cuda, mps (default: auto)")


def add_benchmarks(parser: argparse.ArgumentParser) -> None:
    kinds = parser.add_subparsers(dest="benchmark", required=True, metavar="BENCHMARK", parser_class=OneLineParser)
    scenes = kinds.add_parser("scenes", help="GenEval's tasks in the built-in art; needs nothing else")
    scenes.add_argument("--each", type=parse(Count), default=50, help="scenes of each of the six tasks (default: 50)")
    scenes.add_argument("--detector", type=spec, default="builtin", help="builtin, or a file of train-scene-detector")
    geneval = kinds.add_parser("geneval", help="object-focused prompts, judged by a detector")
    geneval.add_argument("--metadata", type=input_file, required=True, help="evaluation_metadata.jsonl")
    geneval.add_argument("--samples", type=parse(Count), default=4, help="images of each prompt (default: 4)")
    geneval.add_argument(
        "--detector", type=spec, help="transformers object detection model, by id or folder; only draw without"
    )
    geneval.add_argument("--clip", type=spec, help="CLIP model that names colours, by id or folder")
    dpg = kinds.add_parser("dpg", help="long prompts, judged by questions")
    dpg.add_argument("--prompts", type=input_folder, required=True, help="folder of ID.txt files")
    dpg.add_argument("--questions", type=input_file, help="dpg_bench.csv")
    dpg.add_argument(
        "--vqa", type=spec, help="transformers question answering model, by id or folder; only draw without"
    )
    mjhq = kinds.add_parser("mjhq", help="FID and CLIP score on high-quality images")
    mjhq.add_argument("--metadata", type=input_file, required=True, help="meta_data.json")
    mjhq.add_argument("--real", type=input_folder, help="folder of CATEGORY/ID.jpg; only draw without")
    add_extractor(mjhq)
    mjhq.add_argument("--clip", type=spec, help="CLIP model for the CLIP score, by id or folder")
    mjhq.add_argument("--count", type=parse(Count), help="the first so many prompts (default: all)")
    imagenet = kinds.add_parser("imagenet", help="samples in the .npz that ADM's evaluator reads")
    imagenet.add_argument("--samples", type=parse(Count), default=50_000, help="default: 50000")
    imagenet.add_argument("--classes", choices=("balanced", "random"), default="balanced", help="default: balanced")
    for kind in (scenes, geneval, dpg, mjhq, imagenet):
        add_model(kind)
        kind.add_argument(
            "--steps", type=parse(SamplingSteps), nargs="+", default=[1, 2, 4, 8], help="default: 1 2 4 8"
        )
        kind.add_argument("--out", type=output_folder, required=True, help="folder; the same command resumes")
        if kind is not imagenet:
            kind.add_argument(
                "--images", type=input_folder, help="score this folder, made elsewhere, and generate nothing"
            )
        if kind not in (imagenet, scenes):
            kind.add_argument("--size", type=size, metavar="WxH", help="in pixels (default: the training size)")
        kind.add_argument(
            "--guidance", type=parse(Guidance), help="guidance scale, none at 1 and below (default: the model's)"
        )
        add_plan(kind)
        kind.add_argument("--seed", type=parse(Seed), default=0, help="of the first image (default: 0)")
        kind.add_argument("--threads", type=parse(Threads), default=1, help="of each process (default: 1)")
        kind.set_defaults(run=run_benchmark)


def add_recipe(parser: OneLineParser, out_required: bool = True) -> None:
    parser.add_argument("recipe", type=spec, help="a name of `anystep recipes`, for example emoji, or a YAML file")
    parser.add_argument(
        "--out", type=output_folder, required=out_required, help="the run folder; an existing run is resumed"
    )
    parser.add_argument("--debug", action="store_true", help="the recipe's laptop size")
    parser.takes_overrides = True
    parser.epilog = "Any value of the recipe: --section.key VALUE, for example --run.steps 2000."


MOST_IMAGES = 1000  # of one call, which holds them all


def run_generate(options: argparse.Namespace) -> int:
    for name in ("seed", "count"):
        if options.seeds is not None and getattr(options, name) is not None:
            raise InputError(f"--{name} {getattr(options, name)}: --seeds names them all, give one of the two")
    prompts = read_prompts(options)
    if prompts and not any(prompt.strip() for prompt in prompts):
        raise InputError('empty prompt: say what to draw, for example "a red apple"')
    say_loading(options)

    from anystep.contact_sheet import check_writable, free_name, save_image

    check_writable(options.out or DEFAULT_OUT)
    if options.separate is not None:
        make_folder(options.separate)

    from rich.console import Console
    from rich.progress import Progress
    from rich.table import Table

    from anystep.pipelines.describe import model_digest
    from anystep.pipelines.load import Generated, load
    from anystep.pipelines.plan import check_room
    from anystep.pipelines.settings import Settings, read_settings
    from anystep.pipelines.step_sheet import any_step_sheet

    like = None if options.like is None else read_settings(options.like)

    def setting(name: str, default: Any = None) -> Any:
        """As given, else as in the image that is to be like, else the default."""
        return next((each for each in (getattr(options, name), getattr(like, name, None)) if each is not None), default)

    prompts = prompts or list(like.prompts if like else ())
    if not prompts:
        raise InputError('required: PROMPT, what to draw, for example "a red apple"; or --prompts-file, or --like')
    if options.seed is not None or options.count is not None:
        first = options.seed or (like.seeds[0] if like and options.seed is None else 0)
        seeds = [check("--seed", first + number, Seed) for number in range(check_images(options.count or 1))]
    else:
        seeds = setting("seeds", [0])
    steps = setting("steps", [1, 2, 4, 8])
    check_images(len(prompts) * len(seeds) * len(steps))
    given, image_digest = start_image(options, like)
    strength = setting("strength", 0.6) if given is not None else None

    model = load(model_name(options, like), options.device)
    pipeline = model.pipeline
    if like is not None and like.model_digest != model_digest(model):
        told = f"{shown(str(options.like))} was drawn by another model than {shown(model.name)} is now"
        if options.model is None and not options.force:
            raise InputError(f"{told}: --model names the right one, --force draws with this one")
        warn(told)
    width, height = setting("size", (pipeline.base_size,) * 2)
    for count in steps:
        pipeline.check_inputs(["a prompt"], height, width, count, "pil")
    prompts, wrong = known_prompts(model, prompts, options.force)
    guidance = pipeline.resolve_guidance(setting("guidance"))
    interval = setting("guidance_interval")
    check_room(model, width, height, guidance, setting("key_grid"))
    plans = planned_as(options, like, steps)
    how: dict[str, Any] = {
        "size": (width, height),
        "guidance": guidance,
        "guidance_interval": None if interval is None else tuple(interval),
        "stochasticity": setting("stochasticity"),
        "rope_scaling": setting("rope_scaling"),
        "key_grid": setting("key_grid"),
    }

    def separate_file(row: int, seed: int, count: int) -> Path:
        named = f"-seed-{seed}" * (len(seeds) > 1)
        return Path(options.separate) / f"{row:02d}{named}-steps-{count:03d}.png"

    if options.separate is not None:
        for row, seed, count in product(range(len(prompts)), seeds, steps):
            refuse_foreign(separate_file(row, seed, count))

    def texts(prompts: Sequence[str], seeds: Sequence[int], cells: Sequence[Generated]) -> dict[str, str]:
        uniform = {cell.asked: pipeline.plan(cell.asked, "uniform", how["stochasticity"]) for cell in cells}
        special = {cell.asked: cell.plan.plain() for cell in cells if cell.plan and cell.plan != uniform[cell.asked]}
        return Settings(
            version=__version__, model=model.name, model_digest=digest, prompts=tuple(prompts), seeds=tuple(seeds),
            steps=tuple(cell.asked for cell in cells), nfe=tuple(cell.nfe for cell in cells), plans=special or None,
            strength=strength, image=None if given is None else options.image.name, image_digest=image_digest, **how,
        ).texts()  # fmt: skip

    digest = model_digest(model)
    with Progress(transient=True, disable=not sys.stderr.isatty(), console=Console(stderr=True)) as bar:
        task = bar.add_task("drawing", total=len(prompts) * len(seeds) * len(steps))

        def keep(cell: Generated, row: int, place: int) -> None:
            bar.advance(task)
            if options.separate is not None:
                path = separate_file(row, seeds[place], cell.asked)
                save_image(cell.images[0], path, texts([prompts[row]], [seeds[place]], [cell]))

        start = {} if given is None else {"image": given, "strength": strength}
        sheet = any_step_sheet(model, prompts, steps, seeds, keep, plans, shift=options.shift, **how, **start)
    out = options.out or free_name(DEFAULT_OUT)
    save_image(sheet.picture(), out, texts(prompts, seeds, [cells[0] for cells in sheet.columns]))
    title = f"{len(prompts)} prompt{'s' * (len(prompts) > 1)}, {width}x{height}"
    table = Table("steps", "NFE", "ms per image", title=title)
    for label, (_, nfe, ms) in zip(sheet.labels(), sheet.costs(), strict=True):
        table.add_row(label.replace(" steps", "").replace(" step", ""), str(nfe), f"{ms:.0f}")
    Console().print(table)
    print(f"wrote {out} (seed{'s' * (len(seeds) > 1)} {cut(' '.join(map(str, seeds)), 200)})")
    for message in wrong:
        complain(message)
    return 2 if wrong else 0


DEFAULT_OUT, DEFAULT_SHEET = Path("anystep.png"), Path("sheet.png")


def refuse_foreign(path: Path) -> None:
    """Raise `InputError` where a file that anystep has not drawn has the name of one that it is to write."""
    from anystep.pipelines.settings import read_settings

    try:
        if path.exists():
            read_settings(path)
    except InputError as error:
        raise InputError(f"{shown(str(path))} would be overwritten, choose another --separate: {error}") from None


def warn(message: str) -> None:
    print(f"anystep: warning: {one_line(message)}", file=sys.stderr)


def read_prompts(options: argparse.Namespace) -> list[str]:
    """Those of the command line, of standard input for `-` alone, and of a file."""
    from anystep.files import TEXT_LIMIT, decode_text, read_text

    prompts, lines = list(options.prompts), ""
    if prompts == ["-"]:
        content = sys.stdin.buffer.read(TEXT_LIMIT + 1)
        if len(content) > TEXT_LIMIT:
            raise InputError(f"standard input has more than the {TEXT_LIMIT:,} bytes that are read")
        prompts, lines = [], decode_text(content, "standard input") + "\n"
    if options.prompts_file is not None:
        lines += read_text(options.prompts_file)
    try:
        prompts += [text(line.strip()) for line in lines.split("\n") if line.strip()]
    except argparse.ArgumentTypeError as error:
        raise InputError(f"prompt {error}") from None
    if not prompts and (options.prompts or options.prompts_file is not None):
        raise InputError("there is no prompt in what was read: expected one a line")
    return prompts


def check_images(count: int) -> int:
    if count > MOST_IMAGES:
        raise InputError(f"{count:,} images: expected at most {MOST_IMAGES:,} of one call, prompts x seeds x steps")
    return count


def start_image(options: argparse.Namespace, like: "Settings | None") -> "tuple[Image | None, str | None]":
    """The image to start from, and what tells it from others; a file is opened only where the user names it."""
    if options.image is None:
        if like is not None and like.image_digest is not None:
            raise InputError(
                f"{shown(str(options.like))} was begun with the image {shown(like.image or '')}: give it with --image"
            )
        if options.strength is not None:
            raise InputError(f"--strength {options.strength}: goes with --image only")
        return None, None
    from anystep.data.example import BrokenExample
    from anystep.data.images import read_image
    from anystep.fingerprint import file_digest

    try:
        given = read_image(options.image, None)
    except BrokenExample as error:
        raise InputError(f"--image {error}") from None
    digest = file_digest(options.image)
    if like is not None and like.image_digest not in (None, digest):
        warn(f"--image {shown(str(options.image))} is not the image that {shown(str(options.like))} was begun with")
    return given, digest


def planned_as(options: argparse.Namespace, like: "Settings | None", steps: Sequence[int]) -> dict[int, Any]:
    """The plans of some of the steps that are not to be the model's: as given, else as in the image to be like."""
    if options.plan is not None:
        return dict.fromkeys(steps, options.plan)
    if like is None:
        return {}
    from anystep.pipelines.scheduler import parse_plans

    try:
        recorded = parse_plans(like.plans)
    except InputError as error:
        raise InputError(f"the settings in {shown(str(options.like))}: {error}") from None
    return {count: recorded.get(count, "uniform") for count in steps if count in like.steps}


def model_name(options: argparse.Namespace, like: "Settings | None") -> str:
    """The model that was named, else that of the image to be like: a hub id in a file of others fetches nothing."""
    from anystep.pipelines.load import BUILTIN, find

    if options.model is not None or like is None:
        return options.model or BUILTIN
    try:
        if Path(find(like.model)).is_dir():
            return like.model
    except InputError:
        pass
    raise InputError(
        f"{shown(str(options.like))} was drawn by model {shown(like.model)}, which is not here: name it with --model"
    )


def known_prompts(model: "Model", prompts: list[str], force: bool) -> tuple[list[str], list[str]]:
    """Those that can be drawn, and what is wrong with the others; all that can be said without stopping is a warning.

    Raises:
        InputError: none can be drawn.
    """
    from anystep.pipelines.vocabulary import unknown

    conditioner: Any = model.pipeline.conditioner
    good, wrong = [], []
    for prompt, said in zip(prompts, unknown(model.pipeline, prompts), strict=True):
        try:
            model.pipeline.check_inputs([prompt], model.pipeline.base_size, model.pipeline.base_size, 1, "pil")
            if model.pipeline.config.class_names is not None:
                conditioner([prompt])
            if said is not None and not force:
                raise InputError(f"{said}; --force draws it")
        except InputError as error:
            wrong.append(str(error))
            continue
        if said is not None:
            warn(said)
        good.append(prompt)
    if not good:
        raise InputError(wrong[0] + f" (and {len(wrong) - 1} more prompts that cannot be drawn)" * (len(wrong) > 1))
    return good, wrong


def read_recipe(options: argparse.Namespace, kind: Any) -> Any:
    """The recipe, of that kind, that a command was given by name or path, with its overrides."""
    from anystep.training.recipe_files import load_recipe
    from anystep.training.recipes import find_recipe

    try:
        return load_recipe(find_recipe(options.recipe, options.command), kind, options.overrides, options.debug)
    except InputError as error:  # perhaps what was taken for an override was meant to be an option
        raise InputError(f"{error}{getattr(options, 'did_you_mean', '')}") from None


def run_recipes(options: argparse.Namespace) -> None:
    from anystep.training.recipes import command_of, description, find_recipe, recipe_names

    if options.action == "show":
        sys.stdout.write(find_recipe(options.name).read_text("utf-8"))
        return
    rows = [
        (f"anystep {command_of(name)} {name.removeprefix('compare/')}", description(name)) for name in recipe_names()
    ]
    width = max(len(command) for command, _ in rows)
    for command, words in rows:
        print(f"{command:{width}}  {words}")
    print("`anystep recipes show NAME` prints one (comparisons: compare/NAME); a changed copy is given by its path")


def run_objectives(options: argparse.Namespace) -> None:
    from anystep.objective.presets import OBJECTIVES
    from anystep.training.objective_config import ObjectiveConfig
    from anystep.training.plan import evaluations_per_sample

    print(
        "objective.kind of a recipe, network evaluations a sample (a backward pass is two), and the target where t > r:"
    )
    for kind, preset in OBJECTIVES.items():
        cost = evaluations_per_sample(ObjectiveConfig.model_validate({"kind": kind}))
        print(f"{kind:20}{cost:5.2f}  {preset.equation}\n{'':27}{preset.label}: {preset.source}")


def run_train(options: argparse.Namespace) -> None:
    from anystep.training.config import Recipe

    recipe = read_recipe(options, Recipe)
    if options.dry_run:
        dry_run(recipe, options.on, options.devices or 1, options.utilisation)
        return
    refuse_without(options, "--dry-run", "on", "devices", "utilisation")
    if options.out is None:
        raise InputError("--out is missing: the run folder; or --dry-run")
    from anystep.training.train import train

    report(train(recipe, options.out), recipe.run.steps, options.out)


def refuse_without(options: argparse.Namespace, needed: str, *names: str) -> None:
    """Options that would be passed over in silence are refused."""
    for name in names:
        if (value := getattr(options, name)) not in (None, False):
            flag = f"--{name.replace('_', '-')}"
            raise InputError(f"{flag if value is True else f'{flag} {value}'}: goes with {needed} only")


def dry_run(recipe: "Recipe", on: str | None, devices: int, utilisation: float | None) -> None:
    """Print what the recipe takes, on this machine or on devices that are named."""
    import torch

    from anystep.device import planned_device
    from anystep.training.objective import make_objective
    from anystep.training.plan import describe
    from anystep.training.train import parts_of, pick_precision

    make_objective(recipe)
    parts_of(recipe, devices)
    planned = planned_device(on, recipe.run.device, utilisation)
    if planned.device is not None:
        precision = pick_precision(recipe.run.precision, planned.device)
    else:
        precision = torch.float32 if recipe.run.precision == "float32" else torch.bfloat16
    for name, told in describe(recipe, devices, planned.memory, planned.rate, precision, planned.kind).items():
        print(f"{name:22}{told}")


def run_plan(options: argparse.Namespace) -> None:
    import torch

    from anystep.device import planned_device
    from anystep.pipelines.plan import Blueprint, check_fits, describe

    model = Blueprint.of(options.model)
    side = int(model.network["sample_size"]) * model.factor
    width, height = options.size or (side, side)
    if options.train:
        refuse_without(options, "a plan of an image", "steps", "guided", "key_grid")
        plan_training(options, model.name, width, height)
        return
    refuse_without(options, "--train", "batch", "devices", "parallel", "checkpointing")
    planned = planned_device(options.on, "auto", options.utilisation)
    plan = check_fits(
        model, width, height, options.steps or 4, planned.memory, guided=options.guided, key_grid=options.key_grid,
        precision=torch.float32 if options.on is None else torch.bfloat16,
    )  # fmt: skip
    for name, told in describe(plan, planned.memory, planned.rate).items():
        print(f"{name:22}{told}")


def plan_training(options: argparse.Namespace, preset: str, width: int, height: int) -> None:
    """Print what training a preset takes on squares of as many pixels."""
    from anystep.models.presets import PRESETS
    from anystep.pipelines.plan import Blueprint
    from anystep.training.config import Recipe

    if preset not in PRESETS:
        raise InputError(f"--train --model {preset!r}: expected a preset, one of {', '.join(PRESETS)}")
    model = Blueprint.of(preset)
    side = max(1, round(math.sqrt(width * height) / model.multiple)) * model.patch  # in latent pixels
    recipe = Recipe.model_validate(
        {
            "model": {"preset": preset, "codec": "identity", "gradient_checkpointing": options.checkpointing},
            "data": {"size": side},
            "run": {"batch_size": options.batch or 256},
            "parallel": options.parallel or "ddp",
        }
    )
    dry_run(recipe, options.on, options.devices or 1, options.utilisation)


def run_train_codec(options: argparse.Namespace) -> None:
    from anystep.training.config import CodecRecipe

    recipe = read_recipe(options, CodecRecipe)
    from anystep.training.train_codec import train_codec

    report(train_codec(recipe, options.out), recipe.run.steps, options.out)


def report(record: dict[str, Any], steps: int, out: Path) -> None:
    from anystep.console import say

    if int(os.environ.get("RANK", 0)) != 0:  # one of several processes speaks
        return
    state = "finished" if record["step"] >= steps else "interrupted, the same command resumes"
    say(f"{state} at step {record['step']} of {steps}: {out}")


def run_average(options: argparse.Namespace) -> None:
    measuring = ("steps", "samples", "data", "extractor", "allow_code", "guidance", "seed", "batch", "device")
    if options.choose is None:
        refuse_without(options, "--choose", *measuring)
        from anystep.average import write_average

        made = write_average(options.folder, options.length, options.out, options.step)
        count = len(made.weights)
        print(
            f"wrote {options.out}: length {made.length:g} at step {made.step}, of {count} snapshot{'s' * (count > 1)}; "
            f"its profile is {made.misfit:.2%} off"
        )
        return
    if options.data is None:
        raise InputError("--data is missing: images to compare with, better not those of training")
    from anystep.average import REPORT, choose_length, table
    from anystep.evaluation.run import Request

    given = {name: value for name in measuring if (value := getattr(options, name)) is not None}
    request = Request(**{"steps": [1, 4, 32], "samples": 1000, **given, "out": options.out, "model": [], "images": []})
    found = choose_length(options.folder, options.choose, options.out, request, options.step)
    if found:
        print(table(found))
        print(
            f"wrote {options.out}: length {found[0].length:g}; {options.folder / REPORT}: report.md, report.json, ..."
        )


def run_evaluate(options: argparse.Namespace) -> None:
    from anystep.evaluation.run import Request, evaluate_models

    fields = {name: value for name, value in vars(options).items() if name in Request.__dataclass_fields__}

    def told(metrics: dict[str, dict[str, float]]) -> str:
        return ", ".join(f"{name} {figure['value']:.3f}" for name, figure in metrics.items())

    figures = evaluate_models(Request(**fields))
    if not figures:  # one of several processes speaks
        return
    for what, control in figures["controls"].items():
        print(f"{what}: {told(control)}")
    for model in figures["models"]:
        print(model["name"])
        for point in model["points"]:
            print(f"  {point['steps']:4} steps {point['nfe']:4} NFE  {told(point['metrics'])}")
        for name, monotone in model["monotone"].items():
            print(f"  {name}: {monotone['verdict']}")
    sheet = ", sheet.png" * (options.out / "sheet.png").exists()
    print(f"wrote {options.out}: report.md, report.json, curve.png{sheet}")


def run_plan_steps(options: argparse.Namespace) -> None:
    from anystep.evaluation.step_plans import PlanRequest, plan_steps, table

    fields = {name: value for name, value in vars(options).items() if name in PlanRequest.__dataclass_fields__}
    figures = plan_steps(PlanRequest(**fields))
    if figures:  # one of several processes speaks
        print(table(figures))
        where = "the model's folder" if options.in_place else f"--model {options.out}"
        print(f"wrote {options.out}: plans.md, plans.json; the plans are used by {where}")


def run_benchmark(options: argparse.Namespace) -> None:
    from anystep.evaluation.benchmarks import run
    from anystep.evaluation.benchmarks.scores import table

    given = vars(options)
    task = run.Task(**{name: given[name] for name in run.Task.__dataclass_fields__ if name in given})
    if options.benchmark == "imagenet":
        for path in run.run_imagenet(task, options.samples, options.classes):
            print(f"wrote {path}")
        return
    own = {
        "scenes": ("each", "detector"),
        "geneval": ("metadata", "samples", "detector", "clip"),
        "dpg": ("prompts", "questions", "vqa"),
        "mjhq": ("metadata", "real", "extractor", "clip", "count", "allow_code"),
    }[options.benchmark]
    figures = getattr(run, f"run_{options.benchmark}")(task, *(given[name] for name in own))
    if figures:
        print(table(figures))
    print(f"wrote {options.out}")


def run_train_scene_detector(options: argparse.Namespace) -> None:
    from anystep.evaluation.benchmarks.scene_detector import SceneDetector, train_scene_detector

    check_output(options.out, ".safetensors", SceneDetector.load)

    def show(done: int, total: int, loss: float) -> None:
        if done % 100 == 0 or done == total:
            say(f"{done}/{total}  loss {loss:.3f}")

    train_scene_detector(options.steps, on_progress=show).save(options.out)
    print(
        f"wrote {options.out}: `anystep benchmark scenes --detector {options.out}` reports its score on true pictures"
    )


def run_train_alignment(options: argparse.Namespace) -> None:
    from anystep.evaluation.caption_scores import AlignmentHeads, train_alignment

    check_output(options.out, ".safetensors", AlignmentHeads.load)
    heads = train_alignment()
    heads.save(options.out)
    recall = heads.recall
    assert recall is not None
    print(f"wrote {options.out}: of {recall.captions} held-out captions the right one is nearest to")
    print(f"{recall.at_1:.1%} of the images, and among the nearest five to {recall.at_5:.1%}")


def run_train_classifier(options: argparse.Namespace) -> None:
    from anystep.evaluation.extractors.classifier import load_classifier, save_classifier, train_classifier

    check_output(options.out, ".safetensors", load_classifier)
    network, accuracy = train_classifier(options.data, options.size, options.epochs)
    save_classifier(network, options.out)
    print(f"wrote {options.out}: right on {accuracy:.1%} of the held-out images")


def chosen_comparison(options: argparse.Namespace) -> "Comparison":
    """The variants that were named, and then those that `--vary` makes of the first of them."""
    from anystep.compare import Comparison, vary

    comparison = read_recipe(options, Comparison)
    if options.only is not None:
        unknown = sorted(set(options.only) - set(comparison.variants))
        if unknown:
            raise InputError(f"--only {unknown[0]!r}: expected some of {', '.join(comparison.variants)}")
        chosen = {name: comparison.variants[name] for name in options.only}
        comparison = comparison.model_copy(update={"variants": chosen})
    return vary(comparison, options.vary)


def run_compare(options: argparse.Namespace) -> None:
    from anystep.compare import compare

    compare(
        chosen_comparison(options),
        options.out,
        options.jobs,
        on_run=say,
        command=shlex.join(["anystep", *options.typed]),
        allow_code=options.allow_code,
    )
    print(f"wrote {options.out}: report.md, report.json, curve.png, sheet.png")


def run_data_show(options: argparse.Namespace) -> None:
    from anystep.contact_sheet import check_writable, free_name, save_image
    from anystep.data.folders import SHEET
    from anystep.data.overview import overview
    from anystep.data.summary import left_out

    check_writable(options.out or DEFAULT_SHEET)
    sheet = overview(options.source, options.size, options.count)
    save_image(sheet.picture, out := options.out or free_name(DEFAULT_SHEET), software=SHEET)
    for line in (*sheet.passed_over.lines, *left_out(sheet.left_out)):
        print(line)
    print(f"wrote {out}: {sheet.shown} of {sheet.total} examples")


def run_data_prepare(options: argparse.Namespace) -> None:
    from anystep.codecs import load_codec
    from anystep.conditioning import load_text_encoder
    from anystep.data.encoders import make_encoders
    from anystep.data.image_encoder import load_image_encoder
    from anystep.data.prepare import KIND, prepare
    from anystep.data.sizing import ResolutionLimits
    from anystep.data.sources import open_source
    from anystep.data.summary import picture_of_sizes, summary
    from anystep.data.tar_folder import DATASET
    from anystep.device import pick_device
    from anystep.files import check_claim
    from anystep.ranks import Ranks

    ranks, device = Ranks(), pick_device(options.device)
    ranks.on_main(lambda: check_claim(options.out, KIND, legacy=(DATASET,)))  # before anything large is loaded
    codec = load_codec(options.codec, device)
    if options.size % (multiple := codec.factor * options.patch_size):
        raise InputError(f"--size {options.size}: must be a multiple of {multiple}")
    size: int | ResolutionLimits = options.size
    if options.native:
        if (options.longest or options.size) < multiple:
            raise InputError(f"--longest {options.longest}: expected at least {multiple}")
        size = ResolutionLimits.within(multiple, options.size, options.longest, options.aspect)
    source = open_source(options.source, size)
    encoders = make_encoders(
        codec,
        size,
        device,
        None if options.text_encoder is None else load_text_encoder(options.text_encoder),
        None if options.features is None else load_image_encoder(options.features),
        options.patch_size,
        dtype=options.dtype,
        mirror=options.mirror,
    )
    encoders = replace(encoders, made_by={**encoders.made_by, "source": options.source})
    from rich.console import Console
    from rich.progress import Progress

    with Progress(transient=True, disable=not sys.stderr.isatty(), console=Console(stderr=True)) as bar:
        task = bar.add_task("encoding", total=None)
        made = prepare(
            source, options.out, encoders, ranks, options.shard_size,
            on_progress=lambda done, total: bar.update(task, completed=done, total=total),
        )  # fmt: skip
    if ranks.is_main:
        drawn = picture_of_sizes(made, codec.factor, options.out / "sizes.png")
        print("\n".join(summary(made, codec.factor)))
        print(f"wrote {options.out}" + ", sizes.png in it" * drawn)
        native = " --data.native true" * options.native
        print(f"train with --data.source shards:{options.out} --data.size {options.size}{native}")


def run_info(options: argparse.Namespace) -> None:
    from anystep.environment import environment
    from anystep.pipelines.describe import describe
    from anystep.pipelines.load import load

    facts = {**environment(), **describe(load(options.model, options.device))}
    if options.json:
        print(json.dumps(facts, indent=1))
        return
    concepts = facts.pop("concepts") or []
    for name, value in facts.items():
        if value is not None:
            print(f"{name.replace('_', ' '):24}{', '.join(value) if isinstance(value, list) else value}")
    if concepts:
        print(f"knows {len(concepts)} concepts: {', '.join(concepts)}")
        print('prompts it was trained on look like "a red apple on a blue background, flat style"')


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; 0 on success, 2 on bad input, 130 when interrupted."""
    # large tensors in huge pages: faster to come by than small ones, and given back when freed (PyTorch, on Linux)
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    for library in ("TRANSFORMERS", "DIFFUSERS"):  # their notices are not for the reader of one line
        os.environ.setdefault(f"{library}_VERBOSITY", "critical")
    parser = build_parser()
    try:
        options, rest = parser.parse_known_args(arguments)
        if rest:
            parser.chosen.error(f"unknown arguments: {cut(' '.join(rest), 160)}")
    except SystemExit as stop:  # argparse has said what is wrong, or has helped
        return int(stop.code or 0)
    options.typed = sys.argv[1:] if arguments is None else arguments
    options.did_you_mean = parser.chosen.did_you_mean(getattr(options, "overrides", ()))
    try:
        if options.command not in ("generate", "objectives", "recipes"):  # which say it later, and never
            say_loading(options)
        code = options.run(options)
        sys.stdout.flush()
    except InputError as error:
        return complain(str(error))
    except BrokenPipeError:  # whoever read our output has gone; nobody is left to be told
        _close_stdout()
        return 141
    except OSError as error:  # a full disk, too many open files, no permission: wherever it came up
        _close_stdout()
        where = f"{error.filename}: " if error.filename else ""
        return complain(f"{where}{error.strerror or error}")
    except MemoryError:
        return complain("there is not enough memory: fewer or smaller images at a time take less")
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return int(code or 0)


def say_loading(options: argparse.Namespace) -> None:
    """Say at once that the command has begun, since importing PyTorch alone takes seconds.

    On a terminal the cursor goes back to the start of the line, which whatever comes next writes over. Elsewhere it is
    a line of the output: one line on the error stream is an error. Nothing is said where machines read, or by other
    processes than the first.
    """
    if getattr(options, "json", False) or os.environ.get("RANK", "0") != "0":
        return
    if sys.stderr.isatty():
        print("loading...", end="\r", file=sys.stderr, flush=True)
    else:
        with suppress(OSError, ValueError):  # not `say`, which drops what follows: that may be all that was asked for
            print(f"anystep {options.command}: loading", flush=True)


def complain(message: str) -> int:
    """One line on the error stream, of the first of several processes: what stops one stops all. Returns 2."""
    if os.environ.get("RANK", "0") == "0":
        print(f"anystep: error: {one_line(message)}", file=sys.stderr)
    return 2


def _close_stdout() -> None:
    """Python flushes it once more when it ends, which would fail again."""
    with suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    sys.exit(main())
