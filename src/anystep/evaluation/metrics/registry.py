"""The metrics by name."""

from collections.abc import Callable, Sequence

from anystep.errors import InputError
from anystep.evaluation.extractors.registry import FeatureExtractor
from anystep.evaluation.metrics.base import BootstrapWeights, Direction, ImageFeatures, Metric, Replicates
from anystep.evaluation.metrics.frechet_distance import FrechetDistance
from anystep.evaluation.metrics.inception_score import InceptionScore
from anystep.evaluation.metrics.kernel_distance import KernelDistance
from anystep.evaluation.metrics.pixels import PixelFrechetDistance, Sharpness
from anystep.evaluation.metrics.precision_recall import Coverage, Density, Precision, Recall


class MeanScore:
    """The mean of a number that every image has by itself, such as its fit to its caption."""

    direction: Direction = "higher"
    min_images = 2
    replicates = 200

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, real: ImageFeatures, generated: ImageFeatures, weights: BootstrapWeights) -> Replicates:
        return weights.generated @ generated.scores[self.name].double() / weights.generated.sum(1)


METRICS: dict[str, Callable[[], Metric]] = {
    metric.name: metric
    for metric in (
        KernelDistance, FrechetDistance, PixelFrechetDistance, Sharpness,
        Precision, Recall, Density, Coverage, InceptionScore,
    )
}  # fmt: skip
# their figures do not depend on the extractor
WITHOUT_FEATURES = (MeanScore, PixelFrechetDistance, Sharpness)


def check_measurable(metrics: Sequence[Metric], extractor: FeatureExtractor, samples: int) -> None:
    """Raises InputError, before anything is generated, for too few samples or an extractor that a metric cannot use."""
    needy = max(metrics, key=lambda metric: metric.min_images)
    if samples < needy.min_images:
        raise InputError(f"samples {samples}: {needy.name} needs at least {needy.min_images} images")
    if any(isinstance(metric, InceptionScore) for metric in metrics) and not extractor.classifies:
        raise InputError(f"inception_score needs a classifier, which extractor {extractor.name} has not")


def choose_metrics(names: Sequence[str]) -> list[Metric]:
    """Raises InputError for a name that is none of `METRICS`."""
    unknown = [name for name in names if name not in METRICS]
    if unknown:
        raise InputError(f"unknown metric {', '.join(unknown)}: expected some of {', '.join(METRICS)}")
    if not names:
        raise InputError(f"no metric: expected some of {', '.join(METRICS)}")
    return [METRICS[name]() for name in dict.fromkeys(names)]
