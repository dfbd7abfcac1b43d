"""Quality against network evaluations: the same seeds at every number of steps, measured against real images."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from anystep.environment import environment, peak_megabytes, reset_peak
from anystep.errors import InputError
from anystep.evaluation.collect import Cost, collect
from anystep.evaluation.finite import check_finite
from anystep.evaluation.metrics.base import (
    ImageFeatures,
    Images,
    Metric,
    interval,
    measure,
    probability_not_worse,
    verdict,
)
from anystep.evaluation.metrics.frechet_distance import FrechetDistance, Moments
from anystep.evaluation.metrics.movement import movement
from anystep.evaluation.reference import Reference
from anystep.evaluation.settings import Evaluation, GenerationSettings, MeasurementSettings
from anystep.pipelines.image_model import ImageModel
from anystep.pipelines.plan import check_room

NOTES = (
    "NFE counts network evaluations of one image; a guided step costs two.",
    "Intervals are 95 %, from redrawing images with replacement. All step counts share their seeds and these draws, "
    "so that neighbours in a curve are compared on the same images. The Fréchet distance redraws the generated images "
    "only.",
    "Distances of few images are biased upwards (the Fréchet distance) or noisy (all): compare equal numbers of images "
    "only, and with the control of real images against real images.",
    "Figures depend on the extractor that is part of their names; only `inception` figures are the field's FID. Those "
    "of pixels need none: `pixel_frechet_distance` is of pixels in [0, 1], of images averaged to 32 a side if they are "
    "larger, and `sharpness` the energy of fine detail over that of the real images.",
    "Movement is from the images of one step count to those of the same seeds at the next: the distance of their "
    "features over that of two different images (0: the same picture, 1: as far as any other), and the root mean "
    "square of the difference of their pixels.",
)


@dataclass
class Point:
    """One model at one number of steps."""

    steps: int
    nfe: int
    images: ImageFeatures
    seconds_per_image: float = 0.0
    peak_megabytes: float = 0.0
    replicates: dict[str, Tensor] = field(default_factory=dict)


def prompts_of(model: ImageModel, reference: Reference, settings: MeasurementSettings) -> list[str | int]:
    """What the model is to draw. Raises `InputError`: it reads captions, or classes, that the data has not."""
    return reference.prompts(settings.samples, settings.data_seed, f"model {model.name!r}", model.class_names)


def check_prompts(
    model: ImageModel, prompts: Sequence[str | int], width: int, height: int, steps: int, guidance: float | None = None
) -> None:
    """Raise `InputError`, before anything is drawn, for prompts that the model cannot read or a size it cannot draw."""
    model.check(prompts, width, height, steps)
    check_room(model, width, height, guidance)
    model.check_conditions(prompts[:1] if model.class_names is None else list(dict.fromkeys(prompts)))


def generate_images(
    model: ImageModel, prompts: Sequence[str | int], numbers: Sequence[int], steps: int, settings: GenerationSettings
) -> tuple[Images, int]:
    """The images of these numbers, in memory of the CPU, and the network evaluations spent on each.

    Image `i` has prompt `i` and the seed `i` after the first one; as many as a batch has are drawn together. Raises
    `InputError`: an image is not finite.
    """
    made: list[Tensor] = []
    width, height = settings.size or (model.base_size,) * 2
    for first in range(0, len(numbers), settings.batch):
        batch = numbers[first : first + settings.batch]
        asked, seeds = [prompts[number] for number in batch], [settings.first_seed + number for number in batch]
        output = model.draw(asked, width, height, steps, seeds, settings.guidance, settings.plan, "pt")
        check_finite(output.images, f"model {model.name!r} at {steps} steps", batch)
        made.append((output.images * 255).round().to(torch.uint8).cpu())
    return torch.cat(made), output.nfe


def generate_points(
    evaluation: Evaluation,
    model: ImageModel,
    steps: Sequence[int],
    prompts: Sequence[str | int],
    captions: Sequence[str] = (),
) -> list[Point]:
    """The same seeds and prompts at every number of steps; `check_prompts` comes first.

    Args:
        captions: that the scorers compare the images with.
    """
    settings, points, warm = evaluation.settings, [], False
    digest, scale = model.digest, model.resolve_guidance(settings.guidance)
    width, height = settings.size or (model.base_size,) * 2
    for count in steps:

        def make(chunk: range, count: int = count) -> tuple[Images, Cost]:
            nonlocal warm
            if not warm:  # loading the text encoder, for one, is no part of what an image costs
                generate_images(model, prompts, chunk[:1], 1, replace(settings, plan=None))
                warm = True
            reset_peak()
            begin = time.perf_counter()
            images, nfe = generate_images(model, prompts, chunk, count, settings)
            return images, Cost(nfe, time.perf_counter() - begin, peak_megabytes())

        planned = model.plan_settings(settings.plan, count)
        key = [digest, prompts, width, height, count, scale, evaluation.seed, settings.batch]
        key += [model.device.type, model.dtype, settings.threads]  # of what an image costs, and of last bits
        key += [list(captions)] * bool(captions)
        folder = evaluation.chunk_folder(*key, *[planned] * (planned is not None), scored=bool(captions))
        what = f"{model.name}, {count} steps"
        images, costs = collect(evaluation, what, folder, len(prompts), make, captions)
        seconds, megabytes = sum(cost.seconds for cost in costs), max(cost.megabytes for cost in costs)
        points.append(Point(count, costs[0].nfe, images, seconds / len(prompts), megabytes))
    return points


def model_report(evaluation: Evaluation, name: str, points: Sequence[Point], real: ImageFeatures) -> dict[str, Any]:
    """What was measured of one model, as plain values; the replicates stay with the points."""
    metrics = evaluation.named_metrics()
    points = sorted(points, key=lambda point: point.steps)
    for point in points:
        for metric_name, metric in metrics.items():
            point.replicates[metric_name] = measure(metric, real, point.images, evaluation.seed)
    return {
        "name": name,
        "points": [
            {
                "steps": point.steps,
                "nfe": point.nfe,
                "seconds_per_image": point.seconds_per_image,
                "images_per_second": 1 / point.seconds_per_image if point.seconds_per_image else None,
                "peak_megabytes": point.peak_megabytes or None,
                "metrics": {each: asdict(interval(values)) for each, values in point.replicates.items()},
            }
            for point in points
        ],
        "monotone": {metric_name: _monotone(points, metric_name, metric) for metric_name, metric in metrics.items()},
        "movement": _movements(points, evaluation.seed),
    }


def _monotone(points: Sequence[Point], metric_name: str, metric: Metric) -> dict[str, Any]:
    """Whether a metric gets better with every number of steps."""
    neighbours = list(pairwise(point.replicates[metric_name] for point in points))
    probability = [probability_not_worse(fewer, more, metric.direction) for fewer, more in neighbours]
    level = [place for place, pair in enumerate(neighbours) if torch.equal(*pair)]  # in every replicate
    told = verdict([point.steps for point in points], probability, level) if probability else "one step count only"
    return {"probability": probability, "verdict": told}


def whole_report(
    evaluation: Evaluation, models: Sequence[dict[str, Any]], real: ImageFeatures, controls: Mapping[str, ImageFeatures]
) -> dict[str, Any]:
    """Everything measured, as plain values, from the reports of models; docs/evaluate.md explains the fields."""
    metrics = evaluation.named_metrics()
    return {
        "models": list(models),
        "controls": {
            control: {
                name: asdict(interval(measure(metric, real, images, evaluation.seed)))
                for name, metric in metrics.items()
            }
            for control, images in controls.items()
        },
        "better": {name: metric.direction for name, metric in metrics.items()},
        "samples": evaluation.settings.samples,
        "real_images": len(real),
        "seed": evaluation.seed,
        "notes": [*NOTES, *(scorer.note for scorer in evaluation.scorers)],
        "versions": environment(),
    }


def _movements(points: Sequence[Point], seed: int) -> list[dict[str, Any]]:
    """Between neighbouring step counts that have as many images."""
    return [
        {
            "from": fewer.steps,
            "to": more.steps,
            **{what: asdict(interval(moved)) for what, moved in movement(fewer.images, more.images, seed).items()},
        }
        for fewer, more in pairwise(points)
        if len(fewer.images) == len(more.images)
    ]


def with_reference_statistics(metrics: Sequence[Metric], path: Path | None) -> list[Metric]:
    """The same metrics, the Fréchet distance measured against statistics in a file."""
    if path is None:
        return list(metrics)
    if not any(isinstance(metric, FrechetDistance) for metric in metrics):
        raise InputError(f"reference statistics {path} serve frechet_distance only: add it to --metrics")
    moments = Moments.load(path)
    return [FrechetDistance(moments) if isinstance(metric, FrechetDistance) else metric for metric in metrics]
