"""`anystep evaluate`: from what was asked for to a report in a folder."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from torch import nn

from anystep.bounds import BatchSize, Count, SamplingSteps, Seed, Threads, check
from anystep.console import progress_bar
from anystep.contact_sheet import contact_sheet
from anystep.data.sizing import Fixed
from anystep.data.sources import open_source
from anystep.device import pick_device
from anystep.errors import InputError
from anystep.evaluation.caption_scores import AlignmentHeads, CLIPScore
from anystep.evaluation.collect import Scorer, try_scorers
from anystep.evaluation.evaluate import (
    VALIDATION_SEED,
    Evaluation,
    check_prompts,
    describe_model,
    generate_points,
    observe_reference,
    report,
    with_reference_statistics,
)
from anystep.evaluation.extractors.registry import EfficientNetLite0, FeatureExtractor, load_extractor, try_extractor
from anystep.evaluation.image_folders import check_folders, folder_points, parse_folder
from anystep.evaluation.metrics.frechet_distance import FrechetDistance, Moments
from anystep.evaluation.metrics.registry import METRICS, check_measurable, choose_metrics
from anystep.evaluation.reference import Reference
from anystep.evaluation.report import check_drawing, write_report
from anystep.files import check_output, remove_parts
from anystep.pipelines.load import Model, load
from anystep.pipelines.scheduler import Planning
from anystep.ranks import Ranks

SHEET_ROWS = 6


@dataclass(frozen=True)
class Request:
    """The options of the command; `anystep evaluate --help` says what they mean.

    Of `model`, those that are loaded already are taken as they are. With `validation`, real images and seeds are those
    that a later evaluation does not use: something is to be chosen.
    """

    out: Path
    model: Sequence[str | Model]
    images: list[str]
    steps: list[int]
    samples: int
    data: str = "builtin"
    metrics: list[str] | None = None
    extractor: str | nn.Module | FeatureExtractor = "effnetlite0"
    reference: Path | None = None
    save_reference: Path | None = None
    alignment: str | None = None
    clip_score: str | None = None
    size: tuple[int, int] | None = None
    guidance: float | None = None
    plan: Planning | None = None
    seed: int = 0
    validation: bool = False
    keep_images: bool = False
    allow_code: bool = False
    batch: int = 50
    threads: int = 1
    device: str = "auto"


def evaluate_models(request: Request) -> dict[str, Any]:
    """Measure everything asked for, write the report and return it; {} in all processes but the first."""
    torch.set_num_threads(check("threads", request.threads, Threads))
    check_drawing()
    folders = [parse_folder(text) for text in request.images]
    steps = sorted({check("steps", count, SamplingSteps) for count in request.steps})
    if not steps:
        raise InputError("no steps: expected at least one number of them")
    check("seed", request.seed, Seed)
    data_seed, noise_seed = (0, VALIDATION_SEED + request.seed) if request.validation else (request.seed, request.seed)
    check("batch", request.batch, BatchSize)
    check("samples", request.samples, Count)
    if request.save_reference is not None:
        check_output(request.save_reference, ".npz", Moments.load)
    theirs, notes = check_folders(folders, request.samples)
    if folders and (request.clip_score or request.alignment not in (None, "none")):
        raise InputError("--images have no captions: --clip-score and --alignment serve models only")
    device, ranks = pick_device(request.device), Ranks()
    extractor = load_extractor(request.extractor, device if device.type == "cuda" else "cpu", request.allow_code)
    names = request.metrics or [name for name in METRICS if name != "inception_score" or extractor.classifies]
    metrics = with_reference_statistics(choose_metrics(names), request.reference)
    check_measurable(metrics, extractor, request.samples)
    scorers = _scorers(request, extractor, device, bool(folders))
    asked = request.model or ([] if folders else ["builtin"])
    models = [
        Model(each.name, each.pipeline.to(device)) if isinstance(each, Model) else load(each, device) for each in asked
    ]
    width, height = _shape(models, theirs, request.size)
    features = try_extractor(extractor, width, height)
    for metric in metrics:
        if isinstance(metric, FrechetDistance):
            metric.check_width(features)
    try_scorers(scorers, features, width, height)
    shape: Fixed = width if width == height else (width, height)
    options = {"vocabulary": "everyday", "split": "train"} if request.data == "builtin" else {}
    part: Literal["whole", "validation"] = "validation" if request.validation else "whole"
    reference = Reference.draw(open_source(request.data, shape, **options), shape, request.samples, data_seed, part)
    try:
        check_measurable(metrics, extractor, len(reference.real))
    except InputError as error:
        raise InputError(
            f"data {request.data!r} has {len(reference.source)} images, "
            f"{'a quarter' if request.validation else 'half'} for each side: {error}"
        ) from None
    prompts = reference.prompts(request.samples, data_seed)
    for model in models:
        check_prompts(model, prompts, width, height, steps[-1], request.guidance)

    with (
        ranks.claimed(request.out, "evaluation report", _made_before(request.out)),
        progress_bar(ranks.is_main) as bar,
    ):
        ranks.on_main(lambda: remove_parts(request.out))
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
            noise_seed,
            scorers,
            request.keep_images,
            request.batch,
            ranks,
            on_images,
        )
        real, controls = observe_reference(evaluation, reference)
        given = folder_points(evaluation, folders)  # first: one of their images may be damaged
        found = {
            model.name: generate_points(evaluation, model, steps, prompts, request.size, request.guidance, request.plan)
            for model in models
        } | given
        if not ranks.is_main:
            return {}
        if request.save_reference is not None:
            Moments.of(real.features).save(request.save_reference)
        bar.add_task("measuring", total=None)
        described = [describe_model(evaluation, name, points, real) for name, points in found.items()]
        figures = report(evaluation, described, real, controls)
        figures["notes"] += notes
        figures["settings"] = {
            "data": request.data,
            "size": [width, height],
            "guidance": request.guidance,
            "plan": request.plan,
            "extractor": request.extractor if isinstance(request.extractor, str) else extractor.name,
            "extractor_digest": extractor.digest,
            "reference": None if request.reference is None else str(request.reference),
            "device": str(device),
            "threads": request.threads,
            "batch": request.batch,
        }
        write_report(figures, request.out, _sheet(models, steps, prompts, request) if models else None)
    return figures


def _scorers(request: Request, extractor: FeatureExtractor, device: torch.device, folders: bool) -> list[Scorer]:
    """CLIP where asked for; alignment where asked for, and with the built-in data where nothing speaks against it."""
    scorers: list[Scorer] = []
    fits = request.data == "builtin" and extractor.name == EfficientNetLite0.name and not folders
    heads = request.alignment or ("builtin" if fits else "none")
    if heads != "none":
        scorers.append(AlignmentHeads.load(heads))
    if request.clip_score is not None:
        scorers.append(CLIPScore(request.clip_score, device))
    return scorers


def _made_before(folder: Path) -> tuple[str, ...]:
    """What tells a report of the time before folders were marked: chunks of features under keys."""
    keys = "[0-9a-f]" * 16
    return ("work",) if any((folder / "work").glob(f"{keys}/*.safetensors")) else ()


def _shape(models: list[Model], theirs: tuple[int, int] | None, size: tuple[int, int] | None) -> tuple[int, int]:
    """Width and height of the real images: as large as those that are compared with them.

    Raises:
        InputError: images of several sizes.
    """
    sizes = {size or (model.pipeline.base_size,) * 2 for model in models} | ({theirs} if theirs else set())
    if len(sizes) > 1:
        told = ", ".join(f"{width}x{height}" for width, height in sorted(sizes))
        raise InputError(f"images of {told} cannot be compared with the same real images: give one --size")
    return sizes.pop()


def _sheet(models: list[Model], steps: list[int], prompts: list[str | int], request: Request) -> Image.Image:
    """The first images, prompts down and steps across, model by model: one seed along each row."""
    shown, names = prompts[:SHEET_ROWS], [(len(models) > 1 and f"{model.name}: ") or "" for model in models]
    rows, labels = [], []
    for model, name in zip(models, names, strict=True):
        seeds = [request.seed + number for number in range(len(shown))]
        columns = [
            model.generate(shown, count, seeds, request.size, request.guidance, plan=request.plan).images
            for count in steps
        ]
        rows += [[column[row] for column in columns] for row in range(len(shown))]
        labels += [f"{name}{prompt}" for prompt in shown]
    return contact_sheet(rows, labels, [f"{count} step{'s' * (count > 1)}" for count in steps])
