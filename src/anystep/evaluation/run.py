"""`anystep evaluate`: from what was asked for to a report in a folder."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from anystep.errors import InputError
from anystep.evaluation.collect import try_scorers
from anystep.evaluation.evaluate import (
    check_prompts,
    generate_points,
    model_report,
    prompts_of,
    whole_report,
    with_reference_statistics,
)
from anystep.evaluation.extractors.registry import EfficientNetLite0, FeatureExtractor, try_extractor
from anystep.evaluation.image_folders import ListedFolder, folder_points, list_folders, parse_folder
from anystep.evaluation.metrics.base import Scorer
from anystep.evaluation.metrics.caption_scores import AlignmentHeads, CLIPScore
from anystep.evaluation.metrics.frechet_distance import FrechetDistance, Moments
from anystep.evaluation.reference import Reference, control_features, open_reference, real_features
from anystep.evaluation.report import check_drawing, write_report
from anystep.evaluation.settings import Evaluation, MeasurementSettings, image_counter, output_folder, step_counts
from anystep.files import check_output
from anystep.pipelines.dry_run import dry_run
from anystep.pipelines.image_model import ImageModel
from anystep.pipelines.load_image_model import load_image_model
from anystep.pipelines.step_sheet import models_sheet
from anystep.sampling import StepPlan

KIND = "evaluation report"
SHEET_ROWS = 6


@dataclass(frozen=True, kw_only=True)
class Request(MeasurementSettings):
    """The options of the command; `anystep evaluate --help` says what they mean.

    Of `model`, those that are loaded already are taken as they are.
    """

    model: Sequence[str | ImageModel]
    images: list[str]
    steps: list[int]
    metrics: list[str] | None = None
    reference: Path | None = None
    save_reference: Path | None = None
    alignment: str | None = None
    clip_score: str | None = None


@dataclass(frozen=True)
class _Prepared:
    """What a request names, loaded and found to go together."""

    request: Request
    evaluation: Evaluation
    models: list[ImageModel]
    prompts: list[list[str | int]]  # of each model
    captions: list[str]  # that scorers compare with
    folders: list[ListedFolder]
    reference: Reference
    steps: list[int]
    size: tuple[int, int]
    device: torch.device
    notes: list[str]


def evaluate_models(request: Request) -> dict[str, Any]:
    """Measure everything asked for, write the report and return it; {} in all processes but the first.

    Of a dry run it is what `anystep.pipelines.dry_run` tells, and nothing is written.
    """
    prepared = _prepare(request)
    if request.dry_run:
        return dry_run(prepared.models, prepared.steps, prepared.size, request.guidance, request.plan)
    evaluation, reference, ranks = prepared.evaluation, prepared.reference, prepared.evaluation.ranks
    with output_folder(ranks, request.out, KIND, _made_before(request.out)) as bar:
        count = image_counter(bar, ranks)
        evaluation = replace(evaluation, on_images=lambda what, images: count(what, request.samples, images))
        real, controls = real_features(evaluation, reference), control_features(evaluation, reference)
        given = folder_points(evaluation, prepared.folders)  # first: one of their images may be damaged
        points = {
            model.name: generate_points(evaluation, model, prepared.steps, prompts, prepared.captions)
            for model, prompts in zip(prepared.models, prepared.prompts, strict=True)
        }
        if not ranks.is_main:
            return {}
        if request.save_reference is not None:
            Moments.of(real.features).save(request.save_reference)
        bar.add_task("measuring", total=None)
        models = [model_report(evaluation, name, each, real) for name, each in {**points, **given}.items()]
        report = whole_report(evaluation, models, real, controls)
        report["notes"] += [*prepared.notes, *reference.notes, *(model.note for model in prepared.models if model.note)]
        report["settings"] = _reported_settings(prepared)
        write_report(report, request.out, _sheet(prepared) if prepared.models else None)
    return report


def _prepare(request: Request) -> _Prepared:
    """Load everything. Raises `InputError`, before anything is generated, for what does not go together."""
    check_drawing()
    listed = [parse_folder(text) for text in request.images]
    steps, device = step_counts(request.steps), request.begin()
    if request.save_reference is not None:
        check_output(request.save_reference, ".npz", Moments.load)
    names = [each if isinstance(each, str) else each.name for each in request.model]
    for name in names:
        if names.count(name) > 1 or name in {folder.model for folder in listed}:
            raise InputError(f"model {name!r} was given twice, a report has one of a name: leave it out or rename it")
    folders, notes = list_folders(listed, request.samples)
    if folders and (request.clip_score or request.alignment not in (None, "none")):
        raise InputError("--images have no captions: --clip-score and --alignment serve models only")
    evaluation = Evaluation.open(request, device, request.metrics or None)
    extractor, metrics = evaluation.extractor, with_reference_statistics(evaluation.metrics, request.reference)
    scorers = _scorers(request, extractor, device)
    models = [
        each.to(device)
        if isinstance(each, ImageModel)
        else load_image_model(each, device, request.dry_run, request.precision)
        for each in request.model or ([] if folders else ["builtin"])
    ]
    size = width, height = _common_size(models, folders, request.size)
    features = try_extractor(extractor, width, height)
    for metric in metrics:
        if isinstance(metric, FrechetDistance):
            metric.check_width(features)
    try_scorers(scorers, features, width, height)
    reference = open_reference(request, size, metrics, extractor)
    prompts = [prompts_of(model, reference, request) for model in models]
    for model, each in zip(models, prompts, strict=True):
        check_prompts(model, each, width, height, steps[-1], request.guidance)
    captions = reference.captions(request.samples if scorers else 0, request.data_seed)
    evaluation = replace(evaluation, metrics=metrics, scorers=scorers)
    return _Prepared(request, evaluation, models, prompts, captions, folders, reference, steps, size, device, notes)


def _reported_settings(prepared: _Prepared) -> dict[str, Any]:
    request, extractor = prepared.request, prepared.evaluation.extractor
    return {
        "data": request.data,
        "size": list(prepared.size),
        "guidance": request.guidance,
        "plan": request.plan.plain() if isinstance(request.plan, StepPlan) else request.plan,
        "extractor": request.extractor if isinstance(request.extractor, str) else extractor.name,
        "extractor_digest": extractor.digest,
        "reference": None if request.reference is None else str(request.reference),
        "device": str(prepared.device),
        "threads": request.threads,
        "models": {
            model.name: {**model.facts(), "guidance": model.resolve_guidance(request.guidance)}
            for model in prepared.models
        },
        "batch": request.batch,
    }


def _scorers(request: Request, extractor: FeatureExtractor, device: torch.device) -> list[Scorer]:
    """CLIP where asked for; alignment where asked for, and with the built-in data where nothing speaks against it."""
    scorers: list[Scorer] = []
    fits = request.data == "builtin" and extractor.name == EfficientNetLite0.name and not request.images
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


def _common_size(
    models: Sequence[ImageModel], folders: Sequence[ListedFolder], size: tuple[int, int] | None
) -> tuple[int, int]:
    """Width and height of all images that are compared. Raises `InputError`: they have several sizes."""
    sizes = {size or (model.base_size,) * 2 for model in models} | {folder.size for folder in folders}
    if len(sizes) > 1:
        named = ", ".join(f"{width}x{height}" for width, height in sorted(sizes))
        raise InputError(f"images of {named} cannot be compared with the same real images: give one --size")
    return sizes.pop()


def _sheet(prepared: _Prepared) -> Image.Image:
    """The first images of every model."""
    request, several = prepared.request, len(prepared.models) > 1
    models = [
        (f"{model.name}: " * several, model, prompts[:SHEET_ROWS])
        for model, prompts in zip(prepared.models, prepared.prompts, strict=True)
    ]
    seeds = [request.seed + number for number in range(min(SHEET_ROWS, request.samples))]
    return models_sheet(models, prepared.steps, seeds, size=request.size, guidance=request.guidance, plan=request.plan)
