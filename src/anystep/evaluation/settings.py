"""What a command that generates or measures images is asked for: one record, from the command line to the images."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from anystep import __version__
from anystep.bounds import BatchSize, Count, SamplingSteps, Seed, Threads, check
from anystep.console import progress_bar
from anystep.device import pick_device
from anystep.errors import InputError
from anystep.evaluation.extractors.registry import FeatureExtractor, load_extractor
from anystep.evaluation.metrics.base import Metric, Scorer
from anystep.evaluation.metrics.inception_score import InceptionScore
from anystep.evaluation.metrics.registry import METRICS, WITHOUT_FEATURES, MeanScore, check_measurable, choose_metrics
from anystep.files import remove_parts
from anystep.fingerprint import text_digest
from anystep.pipelines.scheduler import Planning
from anystep.ranks import Ranks
from anystep.sampling import StepPlan

if TYPE_CHECKING:
    from rich.progress import Progress

VALIDATION_SEED = 2**40  # of the first noise where something is chosen: seeds of evaluations begin at 0
LAYOUT = 2  # of the chunks: another one is kept in other folders


@dataclass(frozen=True, kw_only=True)
class GenerationSettings:
    """How images are generated.

    Attributes:
        guidance, plan, size: the model's own when None; the size is (width, height) in pixels.
        seed: of the first image; further images have the seeds after it.
        precision: of the models' blocks and codecs, as `pick_precision` takes it.
        dry_run: draw nothing, and load no weights that need not be there: say what drawing takes.
        batch: images generated at once. Other batch mates, like other numbers of threads, change last bits.
    """

    guidance: float | None = None
    plan: StepPlan | Planning | None = None
    size: tuple[int, int] | None = None
    seed: int = 0
    batch: int = 50
    threads: int = 1
    device: str = "auto"
    precision: str = "auto"
    dry_run: bool = False

    @property
    def first_seed(self) -> int:
        """Seed of the first image."""
        return self.seed

    def begin(self) -> torch.device:
        """Set the number of threads and return the device. Raises `InputError` for a number that is out of bounds."""
        check("seed", self.seed, Seed)
        check("batch", self.batch, BatchSize)
        torch.set_num_threads(check("threads", self.threads, Threads))
        return pick_device(self.device)


@dataclass(frozen=True, kw_only=True)
class MeasurementSettings(GenerationSettings):
    """How images are generated and measured.

    Attributes:
        out: folder of the report and of what is kept to go on from.
        samples: images at each number of steps.
        data: source of the real images, as `open_source` reads it; a comparison opens its own.
        extractor: as `load_extractor` takes it.
        allow_code: run an extractor that is TorchScript.
        validation: use real images and seeds that evaluations do not use by default: something is to be chosen.
        keep_images: keep the images as PNG files.
    """

    out: Path
    samples: int
    data: str = "builtin"
    extractor: str | nn.Module | FeatureExtractor = "effnetlite0"
    allow_code: bool = False
    validation: bool = False
    keep_images: bool = False

    @property
    def first_seed(self) -> int:
        """Seed of the first image, and of the bootstrap."""
        return self.seed + VALIDATION_SEED * self.validation

    @property
    def data_seed(self) -> int:
        """Seed of the choice of real images and captions: one for all that is chosen on validation images."""
        return 0 if self.validation else self.seed

    def begin(self) -> torch.device:
        check("samples", self.samples, Count)
        return super().begin()


@dataclass(frozen=True)
class Evaluation:
    """The networks and metrics that settings name, loaded."""

    settings: MeasurementSettings
    extractor: FeatureExtractor
    metrics: Sequence[Metric]
    scorers: Sequence[Scorer] = ()
    ranks: Ranks = field(default_factory=Ranks)
    on_images: Callable[[str, int], None] = lambda what, images: None

    @classmethod
    def open(
        cls, settings: MeasurementSettings, device: torch.device, metric_names: Sequence[str] | None = None
    ) -> "Evaluation":
        """Load the extractor and choose the metrics: all that it can serve when none are named.

        Raises `InputError`: they are not there, do not go together, or need more images.
        """
        extractor = load_extractor(settings.extractor, device, settings.allow_code)
        every = [name for name in METRICS if name != InceptionScore.name or extractor.classifies]
        metrics = choose_metrics(every if metric_names is None else metric_names)
        check_measurable(metrics, extractor, settings.samples)
        return cls(settings, extractor, metrics)

    @property
    def seed(self) -> int:
        """Seed of the first image, and of the bootstrap."""
        return self.settings.first_seed

    def metric_name(self, metric: Metric) -> str:
        """The name of a metric with that of the extractor, without which a distance means nothing."""
        return metric.name if isinstance(metric, WITHOUT_FEATURES) else f"{metric.name}_{self.extractor.name}"

    def named_metrics(self) -> dict[str, Metric]:
        """All metrics by their names in reports; those of scorers come last."""
        every = [*self.metrics, *(MeanScore(scorer.name) for scorer in self.scorers)]
        return {self.metric_name(metric): metric for metric in every}

    def chunk_folder(self, *settings: object, scored: bool = False) -> Path:
        """The folder of the chunks that depend on these settings and nothing else."""
        scorers = [(each.name, each.digest) for each in self.scorers] if scored else []
        shared = [LAYOUT, self.extractor.name, self.extractor.digest, scorers, __version__]
        text = json.dumps([*shared, *map(str, settings)])
        return self.settings.out / "work" / text_digest(text)


def step_counts(counts: Sequence[int], name: str = "steps") -> list[int]:
    """Each number of steps once, rising. Raises `InputError`: there is none, or one that is out of bounds."""
    if not counts:
        raise InputError(f"no {name}: expected at least one number of steps")
    return sorted({check(name, count, SamplingSteps) for count in counts})


@contextmanager
def output_folder(ranks: Ranks, folder: Path, kind: str, legacy: Sequence[str] = ()) -> Iterator["Progress"]:
    """The folder of a command, claimed as `files.claimed` says, with a progress bar.

    It is cleared of what killed processes have left half-written.
    """
    with ranks.claimed(folder, kind, legacy), progress_bar(ranks.is_main) as bar:
        ranks.on_main(lambda: remove_parts(folder))
        yield bar


def image_counter(bar: "Progress", ranks: Ranks) -> Callable[[str, int, int], None]:
    """What is told of images that are done: what they are, how many there will be in all, and how many more there are.

    Of several processes each counts for all.
    """
    tasks: dict[str, Any] = {}

    def count(what: str, total: int, images: int) -> None:
        if what not in tasks:
            tasks[what] = bar.add_task(what, total=total)
        bar.advance(tasks[what], images * ranks.count)

    return count
