"""How far the picture of one seed moves when it is given more steps: whether more steps refine the same picture."""

import torch
from jaxtyping import Float
from torch import Tensor

from anystep.errors import InputError
from anystep.evaluation.metrics.base import ImageFeatures, Replicates, draw_bootstrap_weights
from anystep.evaluation.metrics.pixels import same_channels
from anystep.evaluation.metrics.precision_recall import ROWS

REPLICATES = 200


def movement(fewer: ImageFeatures, more: ImageFeatures, seed: int = 0) -> dict[str, Replicates]:
    """From images of one number of steps to those of the same seeds, in the same order, at another.

    - `features`: the mean Euclidean distance of the features of an image to those of its seed at the other number of
      steps, over the mean distance of two different images at the other: 0 is the same picture, 1 is as far as a
      picture of another seed and caption.
    - `pixels`: the root mean square of the difference of pixels in [0, 1], of images averaged to 32 pixels a side.

    Returns:
        of each, the figure and its bootstrap replicates, which redraw seeds.

    Raises:
        InputError: the two are not of as many images.
    """
    if len(fewer) != len(more):
        raise InputError(f"{len(fewer)} and {len(more)} images: not of the same seeds")
    weights = draw_bootstrap_weights(1, len(more), REPLICATES, seed).generated
    total = weights.sum(1)
    apart = (fewer.features.double() - more.features.double()).norm(dim=1)
    moved = {"features": (weights @ apart / total) / _mean_apart(more.features.double(), weights)}
    if fewer.pixels is not None and more.pixels is not None:
        one, other = same_channels(fewer.pixels, more.pixels)
        squares = ((one.double() - other.double()) / 255).square().flatten(1).mean(1)
        moved["pixels"] = (weights @ squares / total).sqrt()
    return moved


def _mean_apart(x: Float[Tensor, "count width"], weights: Float[Tensor, "replicates count"]) -> Replicates:
    """The mean distance of two different images, each pair as often as its images count."""
    sums = sum(
        ((weights[:, start : start + ROWS] @ torch.cdist(rows, x)) * weights).sum(1)
        for start, rows in zip(range(0, len(x), ROWS), x.split(ROWS), strict=True)
    )
    pairs = weights.sum(1).square() - weights.square().sum(1)
    return torch.as_tensor(sums) / pairs
