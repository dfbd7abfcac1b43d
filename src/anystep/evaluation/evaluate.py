"""Quality against network evaluations: the same seeds at every number of steps, measured against real images."""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageFilter
from torch import Tensor

from anystep import __version__
from anystep.codecs import to_uint8
from anystep.data.images import to_tensor
from anystep.environment import environment, peak_megabytes, reset_peak
from anystep.errors import InputError
from anystep.evaluation.collect import Cost, Images, Scorer, collect
from anystep.evaluation.extractors.registry import FeatureExtractor
from anystep.evaluation.finite import check_finite
from anystep.evaluation.metrics.base import Metric, Observed, interval, measure, probability_not_worse, tied, verdict
from anystep.evaluation.metrics.frechet_distance import FrechetDistance, Moments
from anystep.evaluation.metrics.movement import movement
from anystep.evaluation.metrics.registry import WITHOUT_FEATURES, MeanScore
from anystep.evaluation.reference import Reference
from anystep.fingerprint import text_digest
from anystep.pipelines.describe import model_digest
from anystep.pipelines.load import Model
from anystep.pipelines.plan import check_room
from anystep.pipelines.scheduler import Planning
from anystep.ranks import Ranks
from anystep.sampling import StepPlan

NOTES = (
    "NFE counts network evaluations of one image; a guided step costs two.",
    "Intervals are 95 %, from redrawing images with replacement. All step counts share their seeds and these draws, "
    "so that neighbours in a curve are compared on the same images. The Fréchet distance redraws the made images only.",
    "Distances of few images are biased upwards (the Fréchet distance) or noisy (all): compare equal numbers of images "
    "only, and with the control of real images against real images.",
    "Figures depend on the extractor that is part of their names; only `inception` figures are the field's FID. Those "
    "of pixels need none: `pixel_frechet_distance` is of pixels in [0, 1], of images averaged to 32 a side if they are "
    "larger, and `sharpness` the energy of fine detail over that of the real images.",
    "Movement is from the images of one step count to those of the same seeds at the next: the distance of their "
    "features over that of two different images (0: the same picture, 1: as far as any other), and the root mean "
    "square of the difference of their pixels.",
)
BLUR = 1.0  # standard deviation in pixels, of the degraded control
NOISE = 25.0  # standard deviation in levels, of the other
VALIDATION_SEED = 2**40  # of the first noise where something is chosen: seeds of evaluations begin at 0
LAYOUT = 2  # of the chunks: another one is kept in other folders
REAL = "real images against real images"


@dataclass
class Point:
    """One model at one number of steps."""

    steps: int
    nfe: int
    observed: Observed
    seconds_per_image: float = 0.0
    peak_megabytes: float = 0.0
    replicates: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Evaluation:
    """What to measure, and with what."""

    extractor: FeatureExtractor
    metrics: Sequence[Metric]
    folder: Path
    samples: int
    seed: int = 0
    scorers: Sequence[Scorer] = ()
    keep_images: bool = False
    batch: int = 50
    ranks: Ranks = field(default_factory=Ranks)
    on_images: Callable[[str, int], None] = lambda what, images: None

    def named(self, metric: Metric) -> str:
        """A distance means nothing without the features that it was measured on."""
        return metric.name if isinstance(metric, WITHOUT_FEATURES) else f"{metric.name}_{self.extractor.name}"

    def work(self, *settings: object, scored: bool = False) -> Path:
        """The folder of the chunks that depend on these settings and nothing else."""
        scorers = [(each.name, each.digest) for each in self.scorers] if scored else []
        shared = [LAYOUT, self.extractor.name, self.extractor.digest, scorers, __version__]
        text = json.dumps([*shared, *map(str, settings)])
        return self.folder / "work" / text_digest(text)

    def collect(
        self,
        what: str,
        folder: Path,
        count: int,
        make: Any,
        captions: Sequence[str] = (),
        called: Callable[[int], str] | None = None,
    ) -> tuple[Observed, list[Cost]]:
        return collect(
            folder, count, make, self.extractor, self.ranks, self.scorers if captions else (), captions,
            self.keep_images, lambda images: self.on_images(what, images),
            called or (lambda number: f"image {number} of {what}"),
        )  # fmt: skip

    def all_metrics(self) -> list[Metric]:
        return [*self.metrics, *(MeanScore(scorer.name) for scorer in self.scorers)]


def check_prompts(
    model: Model, prompts: Sequence[str | int], width: int, height: int, steps: int, guidance: float | None = None
) -> None:
    """Raise `InputError`, before anything is drawn, for prompts that the model cannot read or a size it cannot draw."""
    names = model.pipeline.config.class_names
    if names is None and not all(isinstance(prompt, str) for prompt in prompts):
        raise InputError(f"model {model.name!r} draws captions, but the data has classes only")
    model.pipeline.check_inputs(prompts, height, width, steps, "pt")
    check_room(model, width, height, guidance)
    model.pipeline.conditioner(prompts[:1] if names is None else list(dict.fromkeys(prompts)))


def generate_points(
    evaluation: Evaluation,
    model: Model,
    steps: Sequence[int],
    prompts: Sequence[str | int],
    size: tuple[int, int] | None = None,
    guidance: float | None = None,
    plan: StepPlan | Planning | None = None,
) -> list[Point]:
    """Image `i` has seed `evaluation.seed + i` and prompt `i` at every number of steps; `check_prompts` comes first.

    Args:
        plan: what steps are spent on, as the pipeline takes it.
    """
    width, height = size or (model.pipeline.base_size,) * 2
    scale = model.pipeline.resolve_guidance(guidance)
    digest, points = model_digest(model), []
    captions = [str(prompt) for prompt in prompts] if evaluation.scorers else []
    warm = False

    def draw(numbers: Sequence[int], count: int, plan: StepPlan | Planning | None) -> Any:
        return model.pipeline(
            [prompts[number] for number in numbers], height, width, count, guidance_scale=scale,
            seeds=[evaluation.seed + number for number in numbers], plan=plan, output_type="pt",
        )  # fmt: skip

    for count in steps:

        def make(chunk: range, count: int = count) -> tuple[Images, Cost]:
            nonlocal warm
            if not warm:  # loading the text encoder, for one, is no part of what an image costs
                draw(chunk[:1], 1, "uniform")
                warm = True
            reset_peak()
            begin = time.perf_counter()
            parts = [chunk[first : first + evaluation.batch] for first in range(0, len(chunk), evaluation.batch)]
            outputs = [draw(part, count, plan) for part in parts]
            drawn = torch.cat([output.images.cpu() for output in outputs])
            check_finite(drawn, f"model {model.name!r} at {count} steps", chunk)
            images = (drawn * 255).round().to(torch.uint8)
            return images, Cost(outputs[0].nfe, time.perf_counter() - begin, peak_megabytes())

        planned, uniform = (model.pipeline.plan(count, each) for each in (plan, "uniform"))
        settings = [digest, prompts, width, height, count, scale, evaluation.seed, evaluation.batch]
        settings += [planned] * (planned != uniform)
        folder = evaluation.work(*settings, scored=bool(captions))
        what = f"{model.name}, {count} steps"
        observed, costs = evaluation.collect(what, folder, len(prompts), make, captions)
        points.append(
            Point(
                count,
                costs[0].nfe,
                observed,
                sum(cost.seconds for cost in costs) / len(prompts),
                max(cost.megabytes for cost in costs),
            )
        )
    return points


def observe_real(evaluation: Evaluation, reference: Reference) -> Observed:
    """The real images, without captions, which are of those that are drawn for."""
    return _observe(evaluation, reference, "real", reference.real)


def _observe(
    evaluation: Evaluation,
    reference: Reference,
    name: str,
    indices: list[int],
    change: Callable[[Image.Image], Image.Image] | None = None,
    captions: Sequence[str] = (),
    begin: Callable[[int], object] = lambda first: None,
) -> Observed:
    """Images of a source, changed or not; `begin` is told the number of the first of every chunk that is made."""
    told = list(captions)
    folder = evaluation.work(name, reference.fingerprint(indices), evaluation.seed, told, scored=bool(told))

    def make(chunk: range) -> tuple[Images, Cost]:
        begin(chunk.start)
        return reference.images([indices[number] for number in chunk], change), Cost()

    return evaluation.collect(name, folder, len(indices), make, told)[0]


def observe_reference(evaluation: Evaluation, reference: Reference) -> tuple[Observed, dict[str, Observed]]:
    """The real images, and by name the controls: other real ones, and those degraded in two ways."""
    rng = torch.Generator().manual_seed(evaluation.seed)

    def noisy(image: Image.Image) -> Image.Image:
        levels = to_uint8(to_tensor(image)[None])[0].float()
        changed = (levels + NOISE * torch.randn(levels.shape, generator=rng)).clamp(0, 255).round().to(torch.uint8)
        return Image.fromarray(changed.permute(1, 2, 0).numpy())

    captions = list(map(str, reference.prompts(len(reference.again), evaluation.seed))) if evaluation.scorers else []

    def control(name: str, change: Callable[[Image.Image], Image.Image] | None = None) -> Observed:
        def begin(first: int) -> object:  # a chunk does not depend on who made those before
            return rng.manual_seed(evaluation.seed + first)

        return _observe(evaluation, reference, name, reference.again, change, captions, begin)

    return observe_real(evaluation, reference), {
        REAL: control("again"),
        f"blurred by {BLUR:g} pixels": control("blurred", lambda image: image.filter(ImageFilter.GaussianBlur(BLUR))),
        f"with noise of {NOISE:g} levels": control("noisy", noisy),
    }


def describe_model(evaluation: Evaluation, name: str, points: Sequence[Point], real: Observed) -> dict[str, Any]:
    """What was measured of one model, as plain values; the replicates stay with the points."""
    metrics = {evaluation.named(metric): metric for metric in evaluation.all_metrics()}
    points = sorted(points, key=lambda point: point.steps)
    for point in points:
        for called, metric in metrics.items():
            point.replicates[called] = measure(metric, real, point.observed, evaluation.seed)
    counts, monotone = [point.steps for point in points], {}
    for called, metric in metrics.items():
        drawn = [point.replicates[called] for point in points]
        chances = [probability_not_worse(fewer, more, metric.better) for fewer, more in pairwise(drawn)]
        level = [place for place, pair in enumerate(pairwise(drawn)) if tied(*pair)]
        monotone[called] = {
            "probability": chances,
            "verdict": verdict(counts, chances, level) if chances else "one step count only",
        }
    return {
        "name": name,
        "points": [
            {
                "steps": point.steps,
                "nfe": point.nfe,
                "seconds_per_image": point.seconds_per_image,
                "images_per_second": 1 / point.seconds_per_image if point.seconds_per_image else None,
                "peak_megabytes": point.peak_megabytes or None,
                "metrics": {called: asdict(interval(values)) for called, values in point.replicates.items()},
            }
            for point in points
        ],
        "monotone": monotone,
        "movement": _movements(points, evaluation.seed),
    }


def report(
    evaluation: Evaluation, models: Sequence[dict[str, Any]], real: Observed, controls: dict[str, Observed]
) -> dict[str, Any]:
    """Everything measured, as plain values, of described models; see docs/evaluate.md for the fields."""
    metrics = evaluation.all_metrics()
    return {
        "models": list(models),
        "controls": {
            name: {
                evaluation.named(metric): asdict(interval(measure(metric, real, seen, evaluation.seed)))
                for metric in metrics
            }
            for name, seen in controls.items()
        },
        "better": {evaluation.named(metric): metric.better for metric in metrics},
        "samples": evaluation.samples,
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
            **{what: asdict(interval(moved)) for what, moved in movement(fewer.observed, more.observed, seed).items()},
        }
        for fewer, more in pairwise(points)
        if len(fewer.observed) == len(more.observed)
    ]


def with_reference_statistics(metrics: Sequence[Metric], path: Path | None) -> list[Metric]:
    """The same metrics, the Fréchet distance measured against statistics in a file."""
    if path is None:
        return list(metrics)
    if not any(isinstance(metric, FrechetDistance) for metric in metrics):
        raise InputError(f"reference statistics {path} serve frechet_distance only: add it to --metrics")
    moments = Moments.load(path)
    return [FrechetDistance(moments) if isinstance(metric, FrechetDistance) else metric for metric in metrics]
