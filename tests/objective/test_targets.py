"""Every target is exact: on a Gaussian mixture its conditional mean is the exact transition, in float64.

The mixture and its exact transitions are those of the transport's own proof.
"""

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from mixture import exact_jump, instantaneous, posterior
from numpy.polynomial.hermite_e import hermegauss
from torch import Tensor

from anystep.objective import Identity, Implicit, PathPoints, SelfConsistency, Target, Terminal, derivative
from anystep.objective.targets import transition_rates
from anystep.transport import TRANSPORTS, Transport, make_transport

TARGETS: dict[str, Target] = {
    "identity": Identity(derivative("central", 1e-4)),
    "one-sided": Identity(derivative("one_sided", 1e-5)),
    "along the velocity": Identity(derivative("central", 1e-4), along="velocity"),
    "half of the velocity": Identity(derivative("central", 1e-4), along="velocity", velocity_share=0.5),
    "all of the velocity": Identity(derivative("central", 1e-4), along="velocity", velocity_share=1.0),
    "self-consistency": SelfConsistency(),
    "terminal": Terminal(1e-5),
    "implicit": Implicit(1e-3, 1e-3),
}
TIMES = {"edm": (1.5, 0.3), "ve": (1.5, 0.3), "trigflow": (1.1, 0.4)}


def pairs(transport: Transport, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Every (x, z) behind each x_t on a grid of quadrature, (rows, 2 x nodes), and their shares."""
    weight, mean, variance = posterior(transport, x_t, t)
    nodes, mass = (torch.from_numpy(part) for part in hermegauss(9))
    x = (mean[:, :, None] + variance[:, :, None].sqrt() * nodes).flatten(1)
    share = (weight[:, :, None] * mass / math.sqrt(2 * math.pi)).flatten(1)
    c = transport.coefficients(t)
    return x, (x_t[:, None] - c.alpha[:, None] * x) / c.sigma[:, None], share


def network(transport: Transport) -> Any:
    """The exact answer f(x_t, t, r) of the mixture, and the exact velocity at t = r."""

    def evaluate(x_t: Tensor, t: Tensor, r: Tensor, rows: Tensor) -> Tensor:
        same = (t - r).abs() < 1e-9
        answer = exact_jump(transport, x_t[:, 0], t, torch.where(same, t * 0.99 + 0.01 * transport.t_min, r))
        return torch.where(same, instantaneous(transport, x_t[:, 0], t), answer)[:, None]

    return evaluate


@pytest.mark.parametrize("kind", TARGETS)
@pytest.mark.parametrize("name", TRANSPORTS)
def test_the_conditional_mean_of_every_target_is_the_exact_transition(name: str, kind: str) -> None:
    transport = make_transport(name)
    t_at, r_at = TIMES.get(name, (0.6, 0.25))
    x_t = torch.linspace(-1.2, 1.2, 5, dtype=torch.float64)
    times = torch.full_like(x_t, t_at), torch.full_like(x_t, r_at)
    x, z, share = pairs(transport, x_t, times[0])
    count = x.shape[1]
    t, r, points = (each.repeat_interleave(count) for each in (*times, x_t))
    rows, evaluate = torch.arange(len(t)), network(transport)
    f = exact_jump(transport, x_t, *times)
    at = PathPoints(transport, x.flatten()[:, None], z.flatten()[:, None], t, r, rows, points[:, None],
                    f.repeat_interleave(count)[:, None])  # fmt: skip
    F = transport.prediction(at.x, at.z, t)
    made = TARGETS[kind](at, evaluate, evaluate, F, progress=1.0)
    mean = (share * made.value[:, 0].view(len(x_t), count)).sum(1)
    torch.testing.assert_close(mean, f, rtol=2e-3 if kind == "implicit" else 2e-4, atol=2e-4)


@pytest.mark.parametrize("name", TRANSPORTS)
def test_rates_of_the_transition_in_r_are_its_derivatives(name: str) -> None:
    transport = make_transport(name)
    t, r = (torch.tensor([time], dtype=torch.float64) for time in TIMES.get(name, (0.6, 0.25)))
    h = 1e-6
    ahead, behind = transport.transition_coefficients(t, r + h), transport.transition_coefficients(t, r - h)
    for rate, one, other in zip(transition_rates(transport, t, r), ahead, behind, strict=True):
        torch.testing.assert_close(rate, (one - other) / (2 * h), rtol=1e-6, atol=1e-8)


def test_the_ratio_of_an_implicit_target_falls_from_start_to_end() -> None:
    ratios = [Implicit(0.5, 0.005).ratio(share / 20) for share in range(21)]
    assert ratios[0] == pytest.approx(0.5, rel=0.02)
    assert ratios[-1] == pytest.approx(0.005, rel=0.02)
    assert all(one > other for one, other in pairwise(ratios))
