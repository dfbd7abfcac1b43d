"""The Fréchet distance between two sets of images (FID on Inception features, arXiv 1706.08500, equation 6)."""

import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from anystep.errors import InputError, refused
from anystep.evaluation.metrics.base import BootstrapWeights, Direction, ImageFeatures, Replicates
from anystep.files import check_regular, replacing

WIDEST = 16_384  # features of reference statistics
Features = Float[Tensor, "count width"]


@dataclass(frozen=True)
class Moments:
    """Mean and covariance of features, in float64."""

    mean: Float[Tensor, " width"]
    covariance: Float[Tensor, "width width"]

    @classmethod
    def of(cls, features: Features) -> "Moments":
        """With the unbiased covariance."""
        x = features.double()
        mean = torch.ones(len(x), dtype=torch.float64) @ x / len(x)
        return cls(mean, (x - mean).T @ (x - mean) / (len(x) - 1))

    def save(self, path: Path) -> None:
        """As `mu` and `sigma` in an `.npz`, the layout of pytorch-fid; ADM's has these two and more."""
        with replacing(path, durable=True) as part, part.open("wb") as file:
            np.savez(file, mu=self.mean.numpy(), sigma=self.covariance.numpy())

    @classmethod
    def load(cls, path: Path) -> "Moments":
        """From an `.npz` of either layout. Raises `InputError`: unreadable, or no mean and covariance of anything."""
        check_regular(path)
        with refused(f"{path}: no reference statistics"), zipfile.ZipFile(path) as archive:
            mean, covariance = (_read_array(archive, key, path) for key in ("mu", "sigma"))
        if mean.ndim != 1 or not len(mean) or covariance.shape != (len(mean), len(mean)):
            raise InputError(f"{path}: mu {tuple(mean.shape)} and sigma {tuple(covariance.shape)} do not match")
        if not (mean.isfinite().all() and covariance.isfinite().all()):
            raise InputError(f"{path}: reference statistics that are not finite: make them again")
        scale = covariance.diagonal().abs().max()
        if (covariance - covariance.T).abs().max() > 1e-3 * scale or covariance.diagonal().min() < -1e-3 * scale:
            raise InputError(f"{path}: sigma is no covariance: it must be symmetric, with no negative variance")
        return cls(mean, covariance)


def _read_array(archive: zipfile.ZipFile, key: str, path: Path) -> Tensor:
    """An array of an `.npz`, whose header is looked at before memory is spent on it."""
    if f"{key}.npy" not in archive.namelist():
        raise InputError(f"{path}: reference statistics need the arrays mu and sigma")
    with archive.open(f"{key}.npy") as file:
        header = np.lib.format.read_array_header_1_0 if np.lib.format.read_magic(file) == (1, 0) else None
        shape, _, dtype = (header or np.lib.format.read_array_header_2_0)(file)
    if dtype.kind not in "fiu" or max(shape, default=0) > WIDEST or len(shape) > 2:
        raise InputError(f"{path}: {key} is {dtype} of {shape}: expected numbers of at most {WIDEST} features")
    with archive.open(f"{key}.npy") as file:
        return torch.from_numpy(np.lib.format.read_array(file, allow_pickle=False).astype(np.float64))


def square_root(matrix: Float[Tensor, "width width"]) -> Float[Tensor, "width width"]:
    """Of a positive semidefinite matrix."""
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.T


class FrechetDistance:
    """|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)) of the means and covariances of real and generated images.

    Biased upwards by about trace(C) / count for small sets: compare equal counts only, and look at the control.
    The real set is not redrawn in replicates, which its square root of a covariance makes cheap; with `reference`,
    statistics take its place.
    """

    name = "frechet_distance"
    direction: Direction = "lower"
    min_images = 50
    replicates = 15

    def __init__(self, reference: Moments | None = None) -> None:
        self.reference = reference
        self._last: tuple[Tensor, Moments, Tensor] | None = None

    def check_width(self, width: int) -> None:
        """Raises InputError for images of another feature size than the reference statistics."""
        if self.reference is not None and len(self.reference.mean) != width:
            raise InputError(
                f"reference statistics of {len(self.reference.mean)} features, but the images have {width}: use the "
                "extractor that made them"
            )

    def __call__(self, real: ImageFeatures, generated: ImageFeatures, weights: BootstrapWeights) -> Replicates:
        self.check_width(generated.features.shape[1])
        return self.distances(real.features, generated.features, weights.generated)

    def distances(
        self, real: Float[Tensor, "reals width"], generated: Features, weights: Float[Tensor, "replicates count"]
    ) -> Replicates:
        """From the real images or the reference statistics to the generated ones, each as often as it counts."""
        if self._last is None or not self._last[0].is_set_to(real):  # a root takes longer than a distance
            moments = self.reference or Moments.of(real)
            self._last = real, moments, square_root(moments.covariance)
        _, reference, root = self._last
        x, distances = generated.double(), []
        for row in weights:
            drawn = row > 0
            weight = row[drawn]
            mean = weight @ x[drawn] / weight.sum()
            spread = (x[drawn] - mean) * (weight / (weight.sum() - 1)).sqrt()[:, None]  # covariance: spread^T spread
            # (C1 C2)^(1/2) has the singular values of spread C1^(1/2), whose smaller side is often the images'
            turned = spread @ root
            gram = turned @ turned.T if len(turned) < turned.shape[1] else turned.T @ turned
            cross = torch.linalg.eigvalsh(gram).clamp(min=0).sqrt().sum()
            traces = reference.covariance.trace() + spread.square().sum()
            distances.append((reference.mean - mean).square().sum() + traces - 2 * cross)
        return torch.stack(distances)
