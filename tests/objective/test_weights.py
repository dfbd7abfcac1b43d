"""What evens out the residuals of different times: running means of cells, and learned levels."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from anystep.objective import RunningMean, Uncertainty, Weighting, interval_weight
from anystep.training.objective_config import ObjectiveConfig
from anystep.transport import TRANSPORTS, make_transport

FLOW = make_transport("ot_fm")


def test_interval_weights_are_the_references(numbers: Path) -> None:
    stored = load_file(numbers / "transports.safetensors")
    t, r = stored["weights.t"], stored["weights.r"].clone()
    r[:4] = t[:4]  # its share of plain diffusion
    kinds = {"sqrt": "sqrt", "constant": "constant", "reciprocal": "reciprocal", "square": "square",
             "Soft-Min-SNR": "soft_min_snr"}  # fmt: skip
    for theirs, ours in kinds.items():
        for warp, tangent in (("plain", False), ("tan", True)):
            weight = interval_weight(make_transport("ot_fm", sigma_data=1.0), t, r, ours, tangent)
            torch.testing.assert_close(weight, stored[f"weights.{theirs}.{warp}"], rtol=1e-5, atol=1e-6)
            assert (weight[:4] == 1).all()
    with pytest.raises(ValueError, match="cubic"):
        interval_weight(FLOW, t, r, "cubic")


def pairs(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Uniform times, half of them t = r."""
    first, second, same = torch.rand(3, count, generator=generator)
    t = torch.maximum(first, second)
    return t, torch.where(same < 0.5, t, torch.minimum(first, second))


def test_a_running_mean_is_that_of_its_cell_and_t_equals_r_has_its_own() -> None:
    normaliser, generator = RunningMean(), torch.Generator().manual_seed(0)
    for _ in range(400):
        t, r = pairs(64, generator)
        spread = 0.5 + torch.rand(len(t), generator=generator)
        normaliser.update(FLOW, t, r, torch.where(t == r, 5.0, 0.1 + t + r) * spread)
    means = normaliser.sums / normaliser.counts
    middle = (torch.arange(8) + 0.5) / 8
    torch.testing.assert_close(means[:, 8], torch.full((8,), 5.0), rtol=0.05, atol=0)
    below = torch.ones(8, 8, dtype=torch.bool).tril(-1)
    torch.testing.assert_close(means[:, :8][below], (0.1 + middle[:, None] + middle)[below], rtol=0.2, atol=0)
    assert (normaliser.counts[:, :8][~below.logical_or(torch.eye(8, dtype=torch.bool))] == 0).all()


def test_a_running_mean_forgets() -> None:
    normaliser, t = RunningMean(decay=0.5), torch.tensor([0.3])
    for residual in (100.0, *[1.0] * 20):
        normaliser.update(FLOW, t, t, torch.tensor([residual]))
    assert (normaliser.sums.sum() / normaliser.counts.sum()).item() == pytest.approx(1, abs=1e-3)


def test_what_a_step_does_not_see_is_as_it_was_and_what_is_not_finite_is_not_seen() -> None:
    normaliser = RunningMean()
    t, r = torch.tensor([0.3, 0.9]), torch.tensor([0.3, 0.1])
    normaliser.update(FLOW, t, r, torch.tensor([2.0, 4.0]))
    before = normaliser.sums.clone()
    normaliser.update(FLOW, t, r, torch.tensor([3.0, torch.nan]))
    changed = (normaliser.sums != before).nonzero().tolist()
    assert changed == [[2, 8]]
    assert normaliser.sums[2, 8].item() == pytest.approx(0.99 * 2 + 3)


def test_the_error_stays_quadratic_where_t_equals_r_and_is_robust_elsewhere() -> None:
    normaliser = RunningMean()
    t, r = torch.tensor([0.3, 0.9]), torch.tensor([0.3, 0.1])
    for _ in range(500):
        normaliser.update(FLOW, t.repeat(20), r.repeat(20), torch.tensor([2.0, 4.0]).repeat(20))
    for size in (0.5, 10.0, 100.0):
        residual = torch.tensor([size, size], requires_grad=True)
        loss = normaliser(FLOW, t, r, residual)
        (slope,) = torch.autograd.grad(loss.sum(), residual)
        torch.testing.assert_close(loss, torch.tensor([size / 2, math.log1p(size / 4)]), rtol=0.06, atol=0)
        torch.testing.assert_close(slope, torch.tensor([1 / 2, 1 / (4 + size)]), rtol=0.06, atol=0)


def test_in_a_cell_that_nothing_is_known_of_a_residual_is_compared_with_itself() -> None:
    t, r = torch.tensor([0.3, 0.9]), torch.tensor([0.3, 0.1])
    for size in (1e-4, 1.0, 1e4):
        loss = RunningMean()(FLOW, t, r, torch.tensor([size, size]))
        torch.testing.assert_close(loss, torch.tensor([1.0, math.log(2)]))
    assert RunningMean()(FLOW, t, r, torch.zeros(2)).tolist() == [0, 0]


def test_the_level_starts_at_zero_and_its_slope_is_what_the_equation_says() -> None:
    normaliser = Uncertainty()
    t, r = torch.tensor([0.3, 0.9]), torch.tensor([0.3, 0.1])
    residual = torch.tensor([2.0, 4.0], requires_grad=True)
    loss = normaliser(FLOW, t, r, residual)
    torch.testing.assert_close(loss, residual)
    slope, of_residual = torch.autograd.grad(loss.sum(), (normaliser.weight, residual))
    # the constant wave is 1 everywhere, so its slope is that in u: 1 - e^-u l
    torch.testing.assert_close(slope[:, 0, 0], torch.tensor([1 - 4.0, 1 - 2.0]))
    torch.testing.assert_close(of_residual, torch.ones(2))


@pytest.mark.parametrize("name", TRANSPORTS)
def test_the_learned_level_is_the_logarithm_of_the_mean_residual(name: str) -> None:
    transport, generator = make_transport(name), torch.Generator().manual_seed(0)
    normaliser = Uncertainty()
    optimizer = torch.optim.Adam(normaliser.parameters(), lr=0.02)

    def draw(count: int) -> tuple[Tensor, Tensor, Tensor]:
        t, r = (transport.t_min + (transport.t_max - transport.t_min) * time for time in pairs(count, generator))
        share = (t - transport.t_min) / (transport.t_max - transport.t_min)
        return t, r, torch.where(t == r, 3 + share, 0.1 + share)

    for _ in range(300):
        t, r, mean = draw(256)
        optimizer.zero_grad()
        normaliser(transport, t, r, mean * 2 * torch.rand(len(t), generator=generator)).mean().backward()
        optimizer.step()
    t, r, mean = draw(500)
    assert (normaliser.level(transport, t, r) - mean.log()).abs().mean() < 0.15


def test_a_level_is_not_rounded_where_the_network_is() -> None:
    normaliser = Uncertainty()
    torch.nn.init.normal_(normaliser.weight, generator=torch.Generator().manual_seed(0))
    t, r = pairs(50, torch.Generator().manual_seed(1))
    with torch.autocast("cpu", torch.bfloat16):
        rounded = normaliser.level(FLOW, t, r)
    assert torch.equal(rounded, normaliser.level(FLOW, t, r))


@pytest.mark.parametrize(("normaliser", "power"), [(RunningMean(), 0.0), (Uncertainty(), 0.5)])
def test_the_interval_weighs_the_whole_term(normaliser: Any, power: float) -> None:
    t, r = torch.tensor([0.9, 0.5]), torch.tensor([0.1, 0.5])
    residual = torch.tensor([2.0, 3.0])
    plain, weighted = (Weighting(kind, False, power, normaliser)(FLOW, t, r, residual) for kind in ("constant", "sqrt"))
    torch.testing.assert_close(weighted, plain * torch.tensor([1.8**-0.5, 1.0]))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"normalise": "running_mean"}, "normalise running_mean .* set adaptive 0, not 1"),
        ({"normalise": "running_mean", "adaptive": 0.75}, "set adaptive 0, not 0.75"),
        ({"normalise": "uncertainty"}, "normalise uncertainty has nothing to learn where adaptive is 1"),
    ],
)
def test_what_undoes_the_other_is_refused(options: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        ObjectiveConfig.model_validate(options)
    assert ObjectiveConfig.model_validate({**options, "adaptive": False}).normalise == options["normalise"]
