"""`anystep benchmark`: images for published benchmarks, and their scores."""

import argparse

from anystep.bounds import Count, parse
from anystep.cli import options as common
from anystep.cli.option_types import input_file, input_folder, spec
from anystep.cli.output import is_main, print_file
from anystep.cli.parser import OneLineParser

# by benchmark, its own options in the order that its function takes them
OWN_OPTIONS = {
    "scenes": ("each", "detector"),
    "geneval": ("metadata", "samples", "detector", "clip"),
    "dpg": ("prompts", "questions", "vqa"),
    "mjhq": ("metadata", "real", "extractor", "clip", "count", "allow_code"),
    "imagenet": ("samples", "classes"),
}


def add(commands: common.Commands) -> None:
    parser = commands.add_parser("benchmark", help="GenEval, DPG-Bench, MJHQ-30K, ImageNet samples, scenes")
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
    common.add_extractor(mjhq)
    mjhq.add_argument("--clip", type=spec, help="CLIP model for the CLIP score, by id or folder")
    mjhq.add_argument("--count", type=parse(Count), help="the first so many prompts (default: all)")
    imagenet = kinds.add_parser("imagenet", help="samples in the .npz that ADM's evaluator reads")
    imagenet.add_argument("--samples", type=parse(Count), default=50_000, help="default: 50000")
    imagenet.add_argument("--classes", choices=("balanced", "random"), default="balanced", help="default: balanced")
    for name, kind in kinds.choices.items():
        add_common(kind, drawn_only=name == "imagenet", sized=name not in ("imagenet", "scenes"))


def add_common(parser: argparse.ArgumentParser, drawn_only: bool, sized: bool) -> None:
    """What every benchmark has; `--images` unless it draws only, and `--size` where it does not say it itself."""
    common.add_model(parser)
    common.add_steps(parser, [1, 2, 4, 8])
    common.add_out_folder(parser)
    if not drawn_only:
        parser.add_argument(
            "--images", type=input_folder, help="score this folder, made elsewhere, and generate nothing"
        )
    if sized:
        common.add_size(parser)
    common.add_guidance(parser)
    common.add_plan(parser)
    common.add_seed(parser)
    common.add_batch(parser, default=8)
    common.add_threads(parser)
    common.add_json(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    from anystep.evaluation.benchmarks import run
    from anystep.evaluation.benchmarks.scores import table

    request = run.BenchmarkRequest(**common.as_fields(options, run.BenchmarkRequest))
    own = (getattr(options, name) for name in OWN_OPTIONS[options.benchmark])
    found = getattr(run, f"run_{options.benchmark}")(request, *own)
    if options.json:
        if found and is_main():
            print_file(options.out / "report.json")
        return
    if options.benchmark == "imagenet":
        for path in found:
            print(f"wrote {path}")
        return
    if found:
        print(table(found))
    print(f"wrote {options.out}")
