"""`anystep evaluate`: from what was asked for to a report in a folder."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from rich.console import Console
from rich.progress import Progress

from anystep.contact_sheet import contact_sheet
from anystep.data.sources import open_source
from anystep.device import pick_device
from anystep.errors import InputError
from anystep.evaluation.alignment import AlignmentHeads, CLIPScore
from anystep.evaluation.collect import Scorer
from anystep.evaluation.evaluate import (
    Evaluation,
    Reference,
    generate_points,
    observe_reference,
    report,
    with_reference_statistics,
)
from anystep.evaluation.features import EfficientNetLite0, load_extractor
from anystep.evaluation.frechet_distance import Moments
from anystep.evaluation.image_folders import folder_points, parse_folder
from anystep.evaluation.metrics import METRICS, check_measurable, choose_metrics
from anystep.evaluation.report import write_report
from anystep.pipelines.load import Model, load
from anystep.ranks import Ranks

SHEET_ROWS = 6


@dataclass(frozen=True)
class Request:
    """The options of the command; `anystep evaluate --help` says what they mean."""

    out: Path
    model: list[str]
    images: list[str]
    steps: list[int]
    samples: int
    data: str = "builtin"
    metrics: list[str] | None = None
    extractor: str = "effnetlite0"
    reference: Path | None = None
    save_reference: Path | None = None
    alignment: str | None = None
    clip_score: str | None = None
    size: tuple[int, int] | None = None
    guidance: float | None = None
    seed: int = 0
    keep_images: bool = False
    device: str = "auto"


def evaluate_models(request: Request) -> dict[str, Any]:
    """Measure everything asked for, write the report and return it."""
    folders = [parse_folder(text) for text in request.images]
    steps = sorted(set(request.steps))
    if steps[0] < 1:
        raise InputError(f"steps {steps[0]}: expected whole numbers of at least 1")
    device, ranks = pick_device(request.device), Ranks()
    extractor = load_extractor(request.extractor, device if device.type == "cuda" else "cpu")
    names = request.metrics or [name for name in METRICS if name != "inception_score" or extractor.classifies]
    metrics = with_reference_statistics(choose_metrics(names), request.reference)
    check_measurable(metrics, extractor, request.samples)
    scorers: list[Scorer] = []
    heads = request.alignment
    if heads is None and request.data == "builtin" and extractor.name == EfficientNetLite0.name:
        heads = "builtin"
    if heads not in (None, "none"):
        scorers.append(AlignmentHeads.load(heads))
    if request.clip_score is not None:
        scorers.append(CLIPScore(request.clip_score, device))
    models = [load(name, device) for name in request.model or ([] if folders else ["builtin"])]
    try:
        request.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot write to folder {str(request.out)!r}: {error.strerror}") from None

    side = models[0].pipeline.base_size if models else _side(folders[0][2])
    options = {"vocabulary": "everyday", "split": "train"} if request.data == "builtin" else {}
    reference = Reference.draw(open_source(request.data, side, **options), side, request.samples, request.seed)
    prompts = reference.prompts(request.samples, request.seed)
    quiet = not (ranks.first and sys.stderr.isatty())
    with Progress(transient=True, disable=quiet, console=Console(stderr=True)) as bar:
        tasks: dict[str, Any] = {}

        def on_images(what: str, images: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=request.samples)
            bar.advance(tasks[what], images * ranks.count)

        evaluation = Evaluation(
            extractor,
            metrics,
            request.out,
            request.samples,
            request.seed,
            scorers,
            request.keep_images,
            ranks,
            on_images,
        )
        real, controls = observe_reference(evaluation, reference)
        found = {
            model.name: generate_points(evaluation, model, steps, prompts, request.size, request.guidance)
            for model in models
        }
        if folders:
            found["images"] = folder_points(evaluation, folders)
    if not ranks.first:
        return {}
    if request.save_reference is not None:
        Moments.of(real.features).save(request.save_reference)
    figures = report(evaluation, found, real, controls)
    write_report(figures, request.out, _sheet(models, steps, prompts, request) if models else None)
    return figures


def _side(folder: Path) -> int:
    """Of the images of a folder."""
    from anystep.data.folders import find_images

    if not folder.is_dir():
        raise InputError(f"images {str(folder)!r}: no such folder")
    with Image.open(folder / find_images(folder)[0]) as image:
        return min(image.size)


def _sheet(models: list[Model], steps: list[int], prompts: list[str | int], request: Request) -> Image.Image:
    """The first images, prompts down and steps across, model by model: one seed along each row."""
    shown, names = prompts[:SHEET_ROWS], [(len(models) > 1 and f"{model.name}: ") or "" for model in models]
    rows, labels = [], []
    for model, name in zip(models, names, strict=True):
        seeds = [request.seed + number for number in range(len(shown))]
        columns = [model.generate(shown, count, seeds, request.size, request.guidance).images for count in steps]
        rows += [[column[row] for column in columns] for row in range(len(shown))]
        labels += [f"{name}{prompt}" for prompt in shown]
    return contact_sheet(rows, labels, [f"{count} step{'s' * (count > 1)}" for count in steps])
