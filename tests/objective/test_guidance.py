"""Guidance of every scale in one network, which is told the scale."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from helpers import time_of
from hypothesis import given
from hypothesis import strategies as st
from mixture import exact_jump, guided, instantaneous, posterior
from numpy.polynomial.hermite_e import hermegauss
from torch import Tensor, nn

from anystep.models import build_transformer
from anystep.objective import (
    GuidanceCondition,
    Identity,
    Implicit,
    SelfConsistency,
    Target,
    Terminal,
    TrainingBatch,
    TransitionObjective,
    Weighting,
    derivative,
)
from anystep.packing import pack
from anystep.transport import TRANSPORTS, Transport, make_transport

COMPONENT, SCALE = 1, 2.5
TIMES = {"edm": (1.5, 0.3), "ve": (1.5, 0.3), "trigflow": (1.1, 0.4)}
TARGETS: dict[str, Target] = {
    "identity": Identity(derivative("central", 1e-4)),
    "half of the velocity": Identity(derivative("central", 1e-4), along="velocity", velocity_share=0.5),
    "self-consistency": SelfConsistency(),
    "terminal": Terminal(1e-5),
    "implicit": Implicit(1e-3, 1e-3),
}


class Exact(nn.Module):
    """The exact answer of the mixture guided towards a component, where that is the condition (1), or of none (0)."""

    def __init__(self, transport: Transport, count: int) -> None:
        super().__init__()
        self.transport = transport
        # added to each answer: the gradient in it is the distance from the target
        self.added = nn.Parameter(torch.zeros(count, dtype=torch.float64))

    def forward(self, x: Tensor, t: Tensor, r: Tensor, condition: Tensor, mask: Any, guidance: Tensor) -> Tensor:
        t, r, x_t = time_of(self.transport, t), time_of(self.transport, r), x[:, 0]
        scale = torch.where(condition == 1, guidance, 0.0)

        def field(transport: Transport, x_t: Tensor, t: Tensor) -> Tensor:
            return guided(transport, x_t, t, COMPONENT, scale)

        same = (t - r).abs() < 1e-9
        jump = exact_jump(self.transport, x_t, t, torch.where(same, t * 0.99 + 0.01 * self.transport.t_min, r),
                          steps=8, field=field)  # fmt: skip
        answer = torch.where(same, field(self.transport, x_t, t), jump)
        return (answer + self.added if torch.is_grad_enabled() else answer)[:, None]


def conditional_mean(name: str, target: Target, moving: bool, **options: Any) -> tuple[Tensor, Tensor]:
    """Of what the objective asks of the exact network, over all (x, z) behind some points; and what that answers."""
    transport = make_transport(name)
    t_at, r_at = TIMES.get(name, (0.6, 0.25))
    x_t = torch.linspace(-1.2, 1.2, 5, dtype=torch.float64)
    times = torch.full_like(x_t, t_at), torch.full_like(x_t, r_at if moving else t_at)
    _, mean, variance = posterior(transport, x_t, times[0])
    nodes, mass = (torch.from_numpy(part) for part in hermegauss(9))
    x = mean[:, COMPONENT, None] + variance[:, -1:].sqrt() * nodes
    c = transport.coefficients(times[0])
    z = (x_t[:, None] - c.alpha[:, None] * x) / c.sigma[:, None]
    t, r = (each.repeat_interleave(len(nodes)) for each in times)
    network, ones = Exact(transport, len(t)), torch.ones(len(t), dtype=torch.long)
    objective = TransitionObjective(
        transport, target=target, weighting=Weighting("constant", power=0.0), direction=False,
        guidance=GuidanceCondition(**options),
    )  # fmt: skip
    batch = TrainingBatch(
        x.flatten()[:, None], z.flatten()[:, None], t, r, ones, null_condition=0 * ones,
        guidance=torch.full_like(t, SCALE),
    )  # fmt: skip
    record = objective.evaluate(network, batch, ema_network=network)
    weight = torch.ones(())
    if isinstance(target, Terminal | Implicit) and moving:
        weight = record.weighted_residual / record.residual
    record.loss.backward()
    assert network.added.grad is not None
    with torch.no_grad():
        answer = network(transport.interpolate(x.flatten()[:, None], z.flatten()[:, None], t), transport.c_noise(t),
                         transport.c_noise(r), ones, None, torch.full_like(t, SCALE))  # fmt: skip
    asked = answer[:, 0] - network.added.grad * len(t) / 2 / weight
    share = mass / math.sqrt(2 * math.pi)
    return (asked.view(len(x_t), -1) * share).sum(1), answer[:, 0].view(len(x_t), -1)[:, 0]


@pytest.mark.parametrize("name", TRANSPORTS)
def test_at_t_equals_r_the_mean_of_the_target_is_classifier_free_guidance(name: str) -> None:
    mean, answer = conditional_mean(name, Identity(), moving=False)
    torch.testing.assert_close(mean, answer, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", TARGETS)
@pytest.mark.parametrize("name", TRANSPORTS)
def test_where_t_is_above_r_it_is_the_exact_transition_of_the_guided_flow(name: str, kind: str) -> None:
    mean, answer = conditional_mean(name, TARGETS[kind], moving=True)
    torch.testing.assert_close(mean, answer, rtol=2e-3 if kind == "implicit" else 2e-4, atol=3e-4)


def test_outside_its_interval_the_target_is_that_of_the_condition() -> None:
    mean, _ = conditional_mean("ot_fm", Identity(), moving=False, start=0.7, end=1.0)
    x_t = torch.linspace(-1.2, 1.2, 5, dtype=torch.float64)
    plain = instantaneous(make_transport("ot_fm"), x_t, torch.full_like(x_t, 0.6), COMPONENT)
    torch.testing.assert_close(mean, plain)


@given(uniform=st.floats(0, 1), most=st.floats(1.01, 100))
def test_scales_are_from_one_to_the_largest_and_evenly_spread_in_their_logarithm(uniform: float, most: float) -> None:
    scale = GuidanceCondition(most).scales(torch.tensor([uniform], dtype=torch.float64)).item()
    assert scale == pytest.approx(most**uniform)


class Counting(nn.Module):
    """Counts the samples that go through a network, with what they are told."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Tensor, Tensor]] = []

    def forward(self, x: Tensor, t: Tensor, r: Tensor, condition: Tensor, mask: Any, guidance: Tensor) -> Tensor:
        self.calls.append((condition, guidance))
        return 0.5 * x


@pytest.mark.parametrize("synchronised", [False, True])
def test_what_is_not_guided_costs_nothing_and_the_empty_condition_is_told_one(synchronised: bool) -> None:
    x, z = torch.randn(2, 4, 1, 4, 4)
    t, scale = torch.tensor([0.2, 0.5, 0.5, 0.9]), torch.tensor([3.0, 1.0, 3.0, 3.0])
    labels, null = torch.tensor([1, 2, 3, 4]), torch.zeros(4, dtype=torch.long)
    objective = TransitionObjective(make_transport("ot_fm"), guidance=GuidanceCondition(start=0.3, end=0.8))
    network, average = Counting(), Counting()
    batch = TrainingBatch(x, z, t, t, labels, null_condition=null, guidance=scale)
    record = objective.evaluate(network, batch, ema_network=average)
    assert [[told.tolist() for told in call] for call in average.calls] == [[[3], [3.0]], [[0], [1.0]]]
    assert network.calls[0][1].tolist() == scale.tolist()
    assert record.evaluations == 4 + 2
    average.calls.clear()
    objective = replace(objective, synchronised_forwards=synchronised)
    batch = replace(batch, guidance=torch.ones(4))
    record = objective.evaluate(network, batch, ema_network=average)
    assert len(average.calls) == 2 * synchronised
    assert torch.equal(record.residual, replace(objective, guidance=None).evaluate(network, batch).residual)


def test_a_network_begins_without_regard_to_the_scale_and_one_is_what_it_is_told_by_default() -> None:
    torch.manual_seed(0)
    network = build_transformer("c2i-test", guidance_embed=True)
    for name, parameter in network.named_parameters():
        if "modulation.down" in name or "final_layer.linear" in name:
            nn.init.normal_(parameter, std=0.1)
    x, t, labels = torch.randn(2, 4, 8, 8), torch.tensor([0.9, 0.5]), torch.tensor([1, 2])

    def ask(scale: float | None) -> Tensor:
        told = {} if scale is None else {"guidance": torch.full((2,), scale)}
        answer: Tensor = network(x, t, t, labels, **told)
        return answer.detach()

    assert torch.equal(ask(None), ask(4.0))
    nn.init.normal_(network.guidance_embedding.linear_2.weight)
    nn.init.normal_(network.guidance_embedding.linear_2.bias)
    assert torch.equal(ask(None), ask(1.0))
    assert not torch.allclose(ask(None), ask(4.0))
    with pytest.raises(ValueError, match="guidance_embed is false"):
        build_transformer("c2i-test")(x, t, t, labels, guidance=torch.ones(2))


def test_a_pack_is_guided_as_its_images_are() -> None:
    torch.manual_seed(0)
    network = build_transformer("c2i-test", guidance_embed=True)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.1)
    rng = torch.Generator().manual_seed(1)
    shapes = [(4, 8, 4), (4, 4, 4), (4, 4, 8)]
    images, noise = ([torch.randn(shape, generator=rng) for shape in shapes] for _ in range(2))
    t, r = torch.tensor([0.9, 0.5, 0.4]), torch.tensor([0.1, 0.5, 0.4])
    labels, null = torch.tensor([1, 2, 3]), torch.full((3,), network.config.num_classes)
    scale = torch.tensor([3.0, 1.0, 2.0])
    objective = TransitionObjective(make_transport("ot_fm"), guidance=GuidanceCondition())
    x, packing = pack(images, 2)
    z, _ = pack(noise, 2)
    batch = TrainingBatch(x, z, t, r, labels, null_condition=null, guidance=scale, packing=packing)
    packed = objective.evaluate(network, batch, ema_network=network)
    for row, (image, own) in enumerate(zip(images, noise, strict=True)):
        place = slice(row, row + 1)
        single = TrainingBatch(
            image[None], own[None], t[place], r[place], labels[place], null_condition=null[place],
            guidance=scale[place],
        )  # fmt: skip
        alone = objective.evaluate(network, single, ema_network=network)
        torch.testing.assert_close(packed.residual[place], alone.residual, rtol=2e-3, atol=1e-4)
    assert packed.evaluations == 3 + 2 * 2 + 2
