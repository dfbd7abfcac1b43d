"""Estimators of df/dt: their order, their precision and where they evaluate the network."""

from typing import Any

import pytest
import torch
from helpers import at_points, convergence_order, latent_batch, lively
from torch import Tensor, nn

from anystep.objective import BoundNetwork, TransitionPoints, derivative
from anystep.transport import TRANSPORTS, make_transport

FLOW = make_transport("ot_fm")


class Known(nn.Module):
    def forward(self, x: Tensor, t: Tensor, r: Tensor, condition: Tensor, mask: None = None) -> Tensor:
        return x.sin() * (t**2 + r)[:, None]


def known() -> tuple[BoundNetwork, TransitionPoints, Tensor]:
    """A network in float64, points, and its df/dt there."""
    x, z = torch.randn(4, 3, dtype=torch.float64), torch.randn(4, 3, dtype=torch.float64)
    t, r = torch.linspace(0.3, 0.9, 4, dtype=torch.float64), torch.full((4,), 0.1, dtype=torch.float64)
    evaluate, x_t = BoundNetwork(Known(), FLOW, torch.arange(4)), FLOW.interpolate(x, z, t)
    at = at_points(FLOW, x, z, t, r, evaluate(x_t, t, r, torch.arange(4)))
    expected = x_t.cos() * (z - x) * (t**2 + r)[:, None] + x_t.sin() * (2 * t)[:, None]
    return evaluate, at, expected


def test_forward_mode_is_exact_in_float64() -> None:
    evaluate, at, expected = known()
    torch.testing.assert_close(derivative("forward_mode")(evaluate, at), expected)


@pytest.mark.parametrize(("kind", "order"), [("central", 2), ("one_sided", 1)])
def test_finite_differences_converge_at_their_order(kind: Any, order: int) -> None:
    evaluate, at, expected = known()
    steps = [0.1 / 2**halvings for halvings in range(6)]
    errors = [(derivative(kind, eps=eps)(evaluate, at) - expected).norm().item() for eps in steps]
    assert convergence_order(steps, errors) == pytest.approx(order, abs=0.05)


@pytest.mark.parametrize(("kind", "tolerance"), [("central", 2e-3), ("one_sided", 3e-2)])
def test_finite_differences_agree_with_forward_mode_in_float32(kind: Any, tolerance: float) -> None:
    x, z, t, r, y = latent_batch()
    evaluate, rows = BoundNetwork(lively("c2i-test"), FLOW, y), torch.arange(len(x))
    value = evaluate(FLOW.interpolate(x, z, t), t, r, rows)
    at = at_points(FLOW, x, z, t, r, value)
    exact, estimate = derivative("forward_mode")(evaluate, at), derivative(kind)(evaluate, at)
    assert exact.norm() > 0.1 * value.norm()
    assert (estimate - exact).norm() <= tolerance * exact.norm()


@pytest.mark.parametrize("how", ["weights", "autocast"])
def test_the_derivative_of_a_bfloat16_network_is_usable(how: str) -> None:
    x, z, t, r, y = latent_batch()
    network, rows = lively("c2i-test"), torch.arange(len(x))
    bound = BoundNetwork(network, FLOW, y)
    exact = derivative("forward_mode")(bound, at_points(FLOW, x, z, t, r, x))
    if how == "weights":
        network.to(torch.bfloat16)
        assert bound.dtype == torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16, enabled=how == "autocast"):
        value = bound(FLOW.interpolate(x, z, t), t, r, rows)
        at = at_points(FLOW, x, z, t, r, value)
        chosen, narrow = derivative("central")(bound, at), derivative("central", eps=0.001)(bound, at)
    assert (chosen - exact).norm() <= 0.15 * exact.norm()
    assert (narrow - exact).norm() > 2 * (chosen - exact).norm()  # rounding grows as 1 / eps


@pytest.mark.parametrize("name", list(TRANSPORTS))
@pytest.mark.parametrize("kind", ["central", "one_sided"])
def test_evaluation_times_stay_inside_the_range(name: str, kind: Any) -> None:
    transport, seen = make_transport(name), []

    def evaluate(x_t: Tensor, t: Tensor, r: Tensor, rows: Tensor) -> Tensor:
        seen.append(t)
        return x_t * t[:, None]

    t = torch.tensor([transport.t_min, transport.t_max])
    r = torch.full_like(t, transport.t_min)
    x, z = torch.randn(2, 3), torch.randn(2, 3)
    at = at_points(transport, x, z, t, r, transport.interpolate(x, z, t) * t[:, None])
    slope = derivative(kind)(evaluate, at)
    times = torch.cat(seen)
    assert times.min() >= transport.t_min
    assert times.max() <= transport.t_max
    assert slope.isfinite().all()


def test_bad_derivatives_are_refused() -> None:
    with pytest.raises(ValueError, match=r"'backward'.*central"):
        derivative("backward")
    with pytest.raises(ValueError, match="eps"):
        derivative("central", eps=0.0)


@pytest.mark.parametrize("name", list(TRANSPORTS))
@pytest.mark.parametrize(("kind", "tolerance"), [("central", 0.03), ("one_sided", 0.2)])
def test_the_step_is_short_for_waves_of_c_noise(name: str, kind: Any, tolerance: float) -> None:
    transport = make_transport(name)
    middle = (transport.t_min + transport.t_max) / 2

    def evaluate(x_t: Tensor, t: Tensor, r: Tensor, rows: Tensor) -> Tensor:
        return (x_t + transport.c_noise(t)[:, None]).sin()  # as fast as a time embedding's fastest wave

    t, r = torch.full((64,), middle), torch.full((64,), transport.t_min)
    x, z = torch.randn(2, 64, 8, generator=torch.Generator().manual_seed(0))
    at = at_points(transport, x, z, t, r, evaluate(transport.interpolate(x, z, t), t, r, t))
    exact, estimate = derivative("forward_mode")(evaluate, at), derivative(kind)(evaluate, at)
    assert (estimate - exact).norm() <= tolerance * exact.norm()
