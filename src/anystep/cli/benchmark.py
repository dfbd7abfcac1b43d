"""`anystep benchmark`: images for published benchmarks, and their scores."""

import argparse

from anystep.bounds import Count
from anystep.cli.option_types import input_file, input_folder, spec
from anystep.cli.options import BASELINES, Commands, add_options, as_fields
from anystep.cli.output import is_main, print_dry_run, print_file
from anystep.cli.parser import OneLineParser

# by benchmark, its own options in the order that its function takes them
OWN_OPTIONS = {
    "scenes": ("each", "detector"),
    "geneval": ("metadata", "samples", "detector", "clip"),
    "dpg": ("prompts", "questions", "vqa"),
    "mjhq": ("metadata", "real", "extractor", "clip", "count", "allow_code"),
    "imagenet": ("samples", "classes"),
}
DRAW_ONLY = "by id or folder; only draw without"


def add(commands: Commands) -> None:
    parser = commands.add_parser("benchmark", help="GenEval, DPG-Bench, MJHQ-30K, ImageNet samples, scenes")
    kinds = parser.add_subparsers(dest="benchmark", required=True, metavar="BENCHMARK", parser_class=OneLineParser)
    scenes = kinds.add_parser("scenes", help="GenEval's tasks in the built-in art; needs nothing else")
    scenes.add_argument("--each", type=Count, default=50, help="scenes of each of the six tasks")
    scenes.add_argument("--detector", type=spec, default="builtin", help="builtin, or a file of train-scene-detector")
    geneval = kinds.add_parser("geneval", help="object-focused prompts, judged by a detector")
    geneval.add_argument("--metadata", type=input_file, required=True, help="evaluation_metadata.jsonl")
    geneval.add_argument("--samples", type=Count, default=4, help="images of each prompt")
    geneval.add_argument("--detector", type=spec, help=f"transformers object detection model, {DRAW_ONLY}")
    geneval.add_argument("--clip", type=spec, help="CLIP model that names colours, by id or folder")
    dpg = kinds.add_parser("dpg", help="long prompts, judged by questions")
    dpg.add_argument("--prompts", type=input_folder, required=True, help="folder of ID.txt files")
    dpg.add_argument("--questions", type=input_file, help="dpg_bench.csv")
    dpg.add_argument("--vqa", type=spec, help=f"transformers question answering model, {DRAW_ONLY}")
    mjhq = kinds.add_parser("mjhq", help="FID and CLIP score on high-quality images")
    mjhq.add_argument("--metadata", type=input_file, required=True, help="meta_data.json")
    mjhq.add_argument("--real", type=input_folder, help="folder of CATEGORY/ID.jpg; only draw without")
    add_options(mjhq, "--extractor", "--allow-code")
    mjhq.add_argument("--clip", type=spec, help="CLIP model for the CLIP score, by id or folder")
    mjhq.add_argument("--count", type=Count, help="the first so many prompts (default: all)")
    imagenet = kinds.add_parser("imagenet", help="samples in the .npz that ADM's evaluator reads")
    imagenet.add_argument("--samples", type=Count, default=50_000, help="images drawn")
    imagenet.add_argument(
        "--classes", choices=("balanced", "random"), default="balanced", help="all alike often, or by chance"
    )
    for name, kind in kinds.choices.items():
        add_options(kind, "--model", **({} if name == "imagenet" else {"help": BASELINES}))
        add_options(kind, "--device", "--precision")
        add_options(kind, "--steps", default=[1, 2, 4, 8])
        add_options(kind, "--out")
        if name != "imagenet":  # which is drawn only
            add_options(kind, "--dry-run")
            kind.add_argument("--images", type=input_folder, help="score this folder, made elsewhere, and draw nothing")
        if name not in ("imagenet", "scenes"):  # which say it themselves
            add_options(kind, "--size")
        add_options(kind, "--guidance", "--plan", "--seed")
        add_options(kind, "--batch", default=8)
        add_options(kind, "--threads", "--json")
        kind.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    from anystep.evaluation.benchmarks import run
    from anystep.evaluation.benchmarks.scores import table

    request = run.BenchmarkRequest(**as_fields(options, run.BenchmarkRequest))
    own = (getattr(options, name) for name in OWN_OPTIONS[options.benchmark])
    found = getattr(run, f"run_{options.benchmark}")(request, *own)
    if getattr(options, "dry_run", False):
        print_dry_run(options, found)
    elif options.json:
        if found and is_main():
            print_file(options.out / "report.json")
    elif options.benchmark == "imagenet":
        for path in found:
            print(f"wrote {path}")
    else:
        if found:
            print(table(found))
        print(f"wrote {options.out}")
