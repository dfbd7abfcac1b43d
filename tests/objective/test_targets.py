"""Every target is exact: on a Gaussian mixture its conditional mean is the exact transition, in float64.

The mixture and its exact transitions are those of the transport's own proof.
"""

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from helpers import at_points
from mixture import exact_jump, instantaneous, posterior
from numpy.polynomial.hermite_e import hermegauss
from torch import Tensor

from anystep.objective import (
    Identity,
    Implicit,
    SelfConsistency,
    SelfEvaluation,
    Target,
    Terminal,
    TransitionPoints,
    derivative,
)
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
    F = transport.target(x.flatten()[:, None], z.flatten()[:, None], t)
    at = TransitionPoints(transport, x.flatten()[:, None], z.flatten()[:, None], F, t, r, rows, points[:, None],
                    f.repeat_interleave(count)[:, None])  # fmt: skip
    made = TARGETS[kind](at, evaluate, evaluate, progress=1.0)
    mean = (share * made.value[:, 0].view(len(x_t), count)).sum(1)
    torch.testing.assert_close(mean, f, rtol=2e-3 if kind == "implicit" else 2e-4, atol=2e-4)


def self_evaluated(transport: Transport, answer: Tensor, x_t: Tensor, null: int | None) -> tuple[Tensor, Tensor]:
    """Mean of the target over all (x, z) behind each x_t of component 0 and over fresh noise, where f is `answer`.

    And what it should be: F of E[x] mixed with the judged data, both in float64. `null` is what the empty condition is:
    a component, or the mixture.
    """
    t, r = (torch.full_like(x_t, time) for time in TIMES.get(transport.name, (0.6, 0.25)))
    _, means, variance = posterior(transport, x_t, t)
    nodes, mass = (torch.from_numpy(part) for part in hermegauss(9))
    mass = mass / math.sqrt(2 * math.pi)
    shape = (len(x_t), 9, 9)
    x = (means[:, :1] + variance[:, :1].sqrt() * nodes)[:, :, None].expand(shape)
    spread = [each[:, None, None].expand(shape).flatten() for each in (t, r, x_t, answer)]
    c = transport.coefficients(spread[0])
    data, noise = x.flatten(), nodes.expand(shape).flatten()
    z = (spread[2] - c.alpha * data) / c.sigma
    rows = torch.arange(len(data))

    def ask(component: int | None) -> Any:
        return lambda x, t, r, rows: instantaneous(transport, x[:, 0], t, component)[:, None]

    F = transport.target(data[:, None], z[:, None], spread[0])
    at = TransitionPoints(transport, data[:, None], z[:, None], F, spread[0], spread[1], rows, spread[2][:, None],
                    spread[3][:, None], None, noise[:, None], ask(null))  # fmt: skip
    made = SelfEvaluation(renormalise=False)(at, ask(0), ask(0), 1.0).value
    mean = torch.einsum("ijk,j,k->i", made.view(shape), mass, mass)

    own, _ = transport.decompose(x_t, answer, t)
    x_r = transport.interpolate(own[:, None].expand(-1, 9).flatten(), nodes.repeat(len(x_t)), r.repeat_interleave(9))
    at_r = r.repeat_interleave(9)
    judged, unconditional = (
        transport.decompose(x_r, instantaneous(transport, x_r, at_r, component), at_r)[0].view(-1, 9) @ mass
        for component in (0, null)
    )
    c, c_r = transport.coefficients(t), transport.coefficients(r)
    length = c.sigma / c.alpha - c_r.sigma / c_r.alpha
    wanted = (means[:, 0] + length * (own + judged - unconditional)) / (1 + length)
    return mean, transport.target(wanted, (x_t - c.alpha * wanted) / c.sigma, t)


@pytest.mark.parametrize("name", TRANSPORTS)
def test_the_mean_of_self_evaluation_is_the_data_and_what_the_network_made_of_it_judged(name: str) -> None:
    transport, x_t = make_transport(name), torch.linspace(-1.2, 1.2, 5, dtype=torch.float64)
    mean, wanted = self_evaluated(transport, 0.3 * x_t + 0.1, x_t, None)
    torch.testing.assert_close(mean, wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", TRANSPORTS)
def test_where_the_condition_says_nothing_self_evaluation_rests_at_the_mean_of_the_data(name: str) -> None:
    transport, x_t = make_transport(name), torch.linspace(-1.2, 1.2, 5, dtype=torch.float64)
    t = torch.full_like(x_t, TIMES.get(name, (0.6, 0.25))[0])
    exact = instantaneous(transport, x_t, t, 0)
    mean, _ = self_evaluated(transport, exact, x_t, 0)
    torch.testing.assert_close(mean, exact, rtol=1e-9, atol=1e-9)
    other, _ = self_evaluated(transport, exact + 0.5, x_t, 0)
    assert ((other - exact).abs() < 0.5).all()  # and comes back to it


@pytest.mark.parametrize("name", TRANSPORTS)
def test_elsewhere_it_rests_where_the_judgement_outweighs_the_distance_from_the_mean(name: str) -> None:
    transport, x_t = make_transport(name), torch.linspace(-0.6, 0.6, 3, dtype=torch.float64)
    t, r = (torch.full_like(x_t, time) for time in TIMES.get(name, (0.6, 0.25)))
    answer = instantaneous(transport, x_t, t, 0)
    mean = answer
    for _ in range(60):
        mean, _ = self_evaluated(transport, mean, x_t, None)
    own, _ = transport.decompose(x_t, mean, t)
    data, _ = transport.decompose(x_t, answer, t)
    nodes, mass = (torch.from_numpy(part) for part in hermegauss(9))
    x_r = transport.interpolate(own[:, None].expand(-1, 9).flatten(), nodes.repeat(len(x_t)), r.repeat_interleave(9))
    judged, null = (
        transport.decompose(x_r, instantaneous(transport, x_r, r.repeat_interleave(9), each), r.repeat_interleave(9))[0]
        for each in (0, None)
    )
    c, c_r = transport.coefficients(t), transport.coefficients(r)
    length = c.sigma / c.alpha - c_r.sigma / c_r.alpha
    pull = length * ((judged - null).view(-1, 9) @ mass) / math.sqrt(2 * math.pi)
    assert (pull.abs() > 1e-3).all()
    torch.testing.assert_close(own, data + pull, rtol=1e-4, atol=1e-4)


def test_self_evaluated_data_has_the_norm_of_its_own_sample() -> None:
    transport, rows = make_transport("trigflow"), torch.tensor([0, 0, 1])
    rng = torch.Generator().manual_seed(0)
    x, z, f, fresh = torch.randn(4, 3, 2, 2, generator=rng)
    t, r = torch.tensor([0.9, 0.9, 1.57]), torch.tensor([0.2, 0.2, 0.0])
    x_t = transport.interpolate(x, z, t)
    F = transport.target(x, z, t)
    at = TransitionPoints(transport, x, z, F, t, r, rows, x_t, f, None, fresh, lambda x, t, r, rows: 0.5 * x)
    ask = lambda x, t, r, rows: 0.2 * x  # noqa: E731
    made = SelfEvaluation()(at, ask, ask, 1.0).value
    data, _ = transport.decompose(x_t, made, t)
    for image in (rows == 0, rows == 1):
        torch.testing.assert_close(data[image].norm(), x[image].norm())


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


def test_the_ratio_of_alpha_flow_falls_by_itself_and_not_by_its_logarithm() -> None:
    ratio = Implicit(1.0, 0.005, "linear").ratio
    assert [ratio(share) for share in (0.0, 0.4, 0.5, 0.6, 0.8, 1.0)] == pytest.approx(
        [1.0, 0.924, 0.5, 0.0759, 0.005, 0.005], abs=1e-3
    )


def test_a_terminal_target_is_finite_where_r_is_next_to_t() -> None:
    transport = make_transport("ot_fm")
    r = torch.tensor([0.5, 0.5, 0.2])
    t = torch.stack([torch.nextafter(r[0], torch.tensor(1.0)), r[1] + 1e-6, torch.tensor(0.9)])
    x, z = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))

    def evaluate(x_t: Tensor, t: Tensor, r: Tensor, rows: Tensor) -> Tensor:
        return 0.3 * x_t + (t - r)[:, None]

    at = at_points(transport, x, z, t, r, evaluate(transport.interpolate(x, z, t), t, r, t))
    assert Terminal()(at, evaluate, evaluate, 0.0).value.isfinite().all()
