"""The Fréchet distance against scipy, and statistics in files."""

import zipfile
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchmetrics.image.fid import FrechetInceptionDistance

from anystep.errors import InputError
from anystep.evaluation.metrics.base import ImageFeatures, measure
from anystep.evaluation.metrics.frechet_distance import FrechetDistance, Moments


def features(count: int, width: int = 6, shift: float = 0.0, seed: int = 0) -> torch.Tensor:
    mixing = torch.randn(width, width, generator=torch.Generator().manual_seed(99))
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed)) @ mixing + shift


def figure(x: torch.Tensor, y: torch.Tensor) -> float:
    return FrechetDistance().distances(x, y, torch.ones(1, len(y), dtype=torch.float64)).item()


def by_scipy(x: torch.Tensor, y: torch.Tensor) -> float:
    one, other = (np.cov(each.double().numpy(), rowvar=False) for each in (x, y))
    root = scipy.linalg.sqrtm(one @ other).real
    apart = (x.double().mean(0) - y.double().mean(0)).square().sum().item()
    return float(apart + np.trace(one) + np.trace(other) - 2 * np.trace(root))


@given(seed=st.integers(0, 1000), shift=st.floats(-2, 2))
def test_it_is_what_scipy_computes(seed: int, shift: float) -> None:
    x, y = features(40, seed=seed), 1.3 * features(60, shift=shift, seed=seed + 1)
    assert figure(x, y) == pytest.approx(by_scipy(x, y), abs=1e-6, rel=1e-6)


def test_it_is_what_torchmetrics_computes() -> None:
    class Pass(torch.nn.Module):
        num_features = 6

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images.flatten(1)

    x, y = features(80), features(80, shift=0.4, seed=1)
    oracle = FrechetInceptionDistance(Pass(), normalize=True, input_img_size=(6, 1, 1)).set_dtype(torch.float64)
    for images, real in ((x, True), (y, False)):
        oracle.update(images.view(-1, 6, 1, 1).double(), real=real)
    assert figure(x, y) == pytest.approx(oracle.compute().item(), rel=1e-5)


def test_fewer_images_than_features_are_no_trouble() -> None:
    x, y = features(20, 64), features(20, 64, seed=1)
    value = figure(x, y)
    assert value == pytest.approx(by_scipy(x, y), rel=1e-4)
    assert figure(x, x) == pytest.approx(0, abs=1e-2)


def test_counts_are_copies() -> None:
    real, x = features(9), features(5, seed=1)
    counts = torch.tensor([[2.0, 0, 1, 3, 1]], dtype=torch.float64)
    counted = FrechetDistance().distances(real, x, counts).item()
    assert counted == pytest.approx(figure(real, x[[0, 0, 2, 3, 3, 3, 4]]), abs=1e-6)


def test_few_images_are_biased_upwards() -> None:
    few, many = (
        measure(FrechetDistance(), ImageFeatures(features(count)), ImageFeatures(features(count, seed=1)))[0]
        for count in (60, 3000)
    )
    assert few > 5 * many > 0


def test_statistics_survive_a_file(tmp_path: Path) -> None:
    moments = Moments.of(features(50))
    moments.save(tmp_path / "statistics.npz")
    again = Moments.load(tmp_path / "statistics.npz")
    assert torch.equal(again.mean, moments.mean)
    assert torch.equal(again.covariance, moments.covariance)
    assert [path.name for path in tmp_path.iterdir()] == ["statistics.npz"]
    x = ImageFeatures(features(60, seed=1))
    with_file = measure(FrechetDistance(again), ImageFeatures(features(60)), x)[0]
    assert with_file.item() == pytest.approx(figure(features(50), x.features))


def test_statistics_of_adm_are_read_among_their_other_arrays(tmp_path: Path) -> None:
    path = tmp_path / "adm.npz"
    arrays = {"mu": np.zeros(4, np.float32), "sigma": np.eye(4, dtype=np.float32), "mu_s": np.zeros(9)}
    np.savez(path, **arrays)
    assert Moments.load(path).covariance.dtype == torch.float64


def test_statistics_of_other_features_are_one_line(tmp_path: Path) -> None:
    metric = FrechetDistance(Moments.of(features(50, 4)))
    with pytest.raises(InputError, match="reference statistics of 4 features, but the images have 6"):
        measure(metric, ImageFeatures(features(60)), ImageFeatures(features(60)))
    for content, message in (
        ({"mean": np.zeros(3)}, "need the arrays mu and sigma"),
        ({"mu": np.zeros(3), "sigma": np.eye(4)}, "do not match"),
    ):
        np.savez(tmp_path / "bad.npz", **content)
        with pytest.raises(InputError, match=message):
            Moments.load(tmp_path / "bad.npz")
    (tmp_path / "bad.npz").write_bytes(b"no archive")
    for name, message in (("bad.npz", "no reference statistics"), ("none.npz", "No such file")):
        with pytest.raises(InputError, match=message):
            Moments.load(tmp_path / name)


NOT_SYMMETRIC = np.eye(3) + np.triu(np.ones((3, 3)), 1)


@pytest.mark.parametrize(
    ("mean", "covariance", "message"),
    [
        (np.zeros(3), np.full((3, 3), np.nan), "not finite"),
        (np.array([0, np.inf, 0]), np.eye(3), "not finite"),
        (np.zeros(3), NOT_SYMMETRIC, "must be symmetric"),
        (np.zeros(3), -np.eye(3), "no negative variance"),
        (np.zeros((1, 3)), np.eye(3), "do not match"),
        (np.zeros(0), np.zeros((0, 0)), "do not match"),
        (np.zeros(3), np.eye(3, dtype=complex), "expected numbers"),
        (np.zeros(3), np.array([["a"]]), "expected numbers"),
        (np.zeros(3), np.array([[None]], dtype=object), "expected numbers"),
        (np.zeros(3), np.broadcast_to(np.int8(0), (1, 20_000)), "at most 16384"),
    ],
)
def test_statistics_of_nothing_real_are_refused(
    tmp_path: Path, mean: np.ndarray, covariance: np.ndarray, message: str
) -> None:
    np.savez(tmp_path / "bad.npz", mu=mean, sigma=covariance)
    with pytest.raises(InputError, match=message):
        Moments.load(tmp_path / "bad.npz")


def test_statistics_that_claim_more_than_they_hold_cost_nothing(tmp_path: Path) -> None:
    header = b"\x93NUMPY\x01\x00v\x00{'descr': '<f8', 'fortran_order': False, 'shape': (%d,), }"
    with zipfile.ZipFile(tmp_path / "bad.npz", "w") as archive:
        archive.writestr("mu.npy", (header % 10**12).ljust(127) + b"\n")
    with pytest.raises(InputError, match="at most 16384"):
        Moments.load(tmp_path / "bad.npz")
