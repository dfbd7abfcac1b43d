"""Each objective asks for the pairs and the targets that its paper writes down."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from anystep.objective import TrainingBatch, TransitionObjective
from anystep.objective.presets import OBJECTIVES
from anystep.sampling import guided, sample
from anystep.training.config import Recipe
from anystep.training.objective import make_objective
from anystep.training.objective_config import ObjectiveConfig
from anystep.transport import make_transport

ONE = torch.ones(1)


def objective(kind: str, **options: Any) -> TransitionObjective:
    return make_objective(Recipe(objective=ObjectiveConfig.model_validate({"kind": kind, **options})))


def shares(kind: str) -> tuple[float, float]:
    t, r = objective(kind).draw_times(20_000, torch.Generator().manual_seed(0))
    return float((t == r).double().mean()), float((r == 0).double().mean())


@pytest.mark.parametrize(
    ("kind", "diffusion", "consistency"),
    [
        ("transition", 0.5, 0.1),
        ("flow_matching", 1.0, 0.0),
        ("consistency", 0.0, 1.0),
        ("mean_flow", 0.75, 0.0),
        ("shortcut", 0.75, 0.03125),
        ("any_step", 0.97, 0.02),
        ("alpha_flow", 0.25, 0.0),
    ],
)
def test_pairs(kind: str, diffusion: float, consistency: float) -> None:
    assert shares(kind) == (pytest.approx(diffusion, abs=0.015), pytest.approx(consistency, abs=0.01))


class Linear(torch.nn.Module):
    """f(x, t, r) = a x + b t + c r, and half as much again of x where the condition is one."""

    def forward(self, x: Tensor, t: Tensor, r: Tensor, condition: Any, mask: Any = ONE) -> Tensor:
        t, r = (time.view(-1, 1, 1, 1).to(x) for time in (t, r))
        told = condition.to(x).view(-1, 1, 1, 1)
        return (0.2 + 0.1 * told) * x + 0.7 * t - 0.4 * r


def residuals(kind: str, target: Tensor, x: Tensor, z: Tensor, t: Tensor, r: Tensor, **options: Any) -> None:
    """That the residual of the objective is the squared distance to `target`."""
    made = objective(kind, direction=False, **options)
    null = torch.zeros(len(x))
    batch = TrainingBatch(x, z, t, r, torch.ones(len(x)), null_condition=null, fresh_noise=z.flip(0))
    record = made.evaluate(Linear(), batch, ema_network=Linear())
    value = Linear()(made.transport.interpolate(x, z, t), t, r, ONE)
    torch.testing.assert_close(record.residual, (value - target).square().flatten(1).mean(1), atol=2e-4, rtol=1e-3)


@pytest.fixture
def draw() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x, z = torch.randn(2, 3, 1, 4, 4, generator=generator)
    return {"x": x, "z": z, "t": torch.tensor([0.9, 0.6, 0.5]), "r": torch.tensor([0.1, 0.0, 0.3])}


def test_mean_flow_is_the_velocity_less_the_interval_times_its_slope(draw: dict[str, Tensor]) -> None:
    velocity = draw["z"] - draw["x"]
    slope = 0.3 * velocity + 0.7  # du/dt along the path
    interval = (draw["t"] - draw["r"]).view(-1, 1, 1, 1)
    residuals("mean_flow", velocity - interval * slope, **draw)


def test_flow_matching_is_the_velocity(draw: dict[str, Tensor]) -> None:
    residuals("flow_matching", draw["z"] - draw["x"], **{**draw, "r": draw["t"]})


def test_ours_follows_the_velocity_and_takes_half_of_it(draw: dict[str, Tensor]) -> None:
    t, r, network = draw["t"], draw["r"], Linear()
    x_t = make_transport("ot_fm").interpolate(draw["x"], draw["z"], t)
    v = network(x_t, t, t, ONE)
    slope = 0.3 * v + 0.7
    residuals("any_step", (draw["z"] - draw["x"] + v) / 2 - (t - r).view(-1, 1, 1, 1) * slope, **draw)


def test_alpha_flow_mixes_the_velocity_with_where_the_network_goes_on_from_a_point_below(
    draw: dict[str, Tensor],
) -> None:
    t, r = draw["t"], draw["r"]
    s = t - 0.25 * (t - r)
    x_s = make_transport("ot_fm").interpolate(draw["x"], draw["z"], s)
    residuals(
        "alpha_flow", 0.25 * (draw["z"] - draw["x"]) + 0.75 * Linear()(x_s, s, r, ONE), **draw, ratio=(0.25, 0.25)
    )


def test_a_terminal_target_is_the_velocity_where_it_lands_and_how_the_answer_moves_with_r(
    draw: dict[str, Tensor],
) -> None:
    t, r, network = draw["t"], draw["r"], Linear()
    x_t = make_transport("ot_fm").interpolate(draw["x"], draw["z"], t)
    interval = (t - r).view(-1, 1, 1, 1)
    x_r = x_t - interval * network(x_t, t, r, ONE)
    residuals("terminal", network(x_r, r, r, ONE) + interval * -0.4, **draw)


def test_self_evaluation_mixes_the_data_with_what_the_network_makes_of_it_once_it_has_judged_that(
    draw: dict[str, Tensor],
) -> None:
    t, r, network, flow = draw["t"], draw["r"], Linear(), make_transport("ot_fm")
    x_t, (T, R) = flow.interpolate(draw["x"], draw["z"], t), (time.view(-1, 1, 1, 1) for time in (t, r))
    own = x_t - T * network(x_t, t, r, ONE)
    x_r = (1 - R) * own + R * draw["z"].flip(0)
    judged, null = (x_r - R * network(x_r, r, r, condition) for condition in (ONE, 0 * ONE))
    length = T / (1 - T) - R / (1 - R)
    data = (draw["x"] + length * (own + judged - null)) / (1 + length)
    data = data * (draw["x"].square().sum((1, 2, 3)) / data.square().sum((1, 2, 3))).sqrt().view(-1, 1, 1, 1)
    residuals("self_evaluation", (x_t - data) / T, **draw)


def test_a_shortcut_is_the_mean_of_its_two_halves(draw: dict[str, Tensor]) -> None:
    t, r, network = draw["t"], draw["r"], Linear()
    middle, x_t = (t + r) / 2, make_transport("ot_fm").interpolate(draw["x"], draw["z"], t)
    first = network(x_t, t, middle, ONE)
    second = network(x_t - (t - middle).view(-1, 1, 1, 1) * first, middle, r, ONE)
    residuals("shortcut", (first + second) / 2, **draw)


def test_evaluations_are_counted(draw: dict[str, Tensor]) -> None:
    batch = TrainingBatch(
        **draw, condition=torch.ones(3), null_condition=torch.zeros(3), fresh_noise=draw["z"]
    )  # fmt: skip
    counted = {
        kind: objective(kind).evaluate(Linear(), batch, ema_network=Linear()).evaluations
        for kind in OBJECTIVES
        if kind != "flow_matching"
    }
    assert counted == {
        "transition": 9, "any_step": 9, "consistency": 9, "mean_flow": 9, "improved_mean_flow": 12, "alpha_flow": 6,
        "soflow": 6, "shortcut": 9, "terminal": 9, "self_evaluation": 9,
    }  # fmt: skip
    flow = objective("flow_matching").evaluate(Linear(), replace(batch, r=batch.t))
    assert flow.evaluations == 3


def test_what_is_said_goes_before_what_the_kind_says() -> None:
    assert ObjectiveConfig.model_validate({"kind": "mean_flow", "derivative": "central"}).derivative == "central"
    assert ObjectiveConfig.model_validate({"kind": "mean_flow"}).derivative == "forward_mode"
    given = ObjectiveConfig.model_validate({"kind": "shortcut"})
    assert ObjectiveConfig.model_validate(given.model_dump()) == given


def test_an_instantaneous_network_is_never_asked_for_an_interval() -> None:
    asked: list[tuple[Tensor, Tensor]] = []

    def network(x: Tensor, t: Tensor, r: Tensor, condition: Any, mask: Any = ONE) -> Tensor:
        asked.append((t, r))
        return 0.5 * x

    transport, z = make_transport("ot_fm"), torch.randn(2, 1, 4, 4)
    made = sample(guided(network, transport, (torch.zeros(2), None)), transport, z, 4, velocity_below=1.0).sample
    assert all(torch.equal(t, r) for t, r in asked)
    euler = z
    for _ in range(4):
        euler = euler - 0.25 * 0.5 * euler
    torch.testing.assert_close(made, euler)
