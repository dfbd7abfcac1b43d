"""The scheduler: diffusers' calls, every transport, a time for every sample."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FlowMapEulerDiscreteScheduler
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from anystep import TransitionScheduler
from anystep.errors import InputError
from anystep.pipelines.scheduler import write_plans
from anystep.sampling import StepPlan, guided, initial_sample, sample
from anystep.transport import make_transport

TRANSPORTS = ["ot_fm", "trigflow", "edm", "vp", "ve"]


def draw(seed: int, batch: int = 3) -> Tensor:
    return torch.randn(batch, 2, 4, 4, generator=torch.Generator().manual_seed(seed))


def small_network(x: Tensor, t: Tensor, r: Tensor, condition: Tensor, mask: Tensor | None = None) -> Tensor:
    return 0.3 * x.tanh() + 0.1 * (t - r).view(-1, 1, 1, 1)


@given(steps=st.integers(1, 40), shift=st.floats(0.5, 6.0))
def test_with_flow_matching_it_is_the_flow_map_scheduler_of_diffusers(steps: int, shift: float) -> None:
    ours, theirs = TransitionScheduler(shift=shift), FlowMapEulerDiscreteScheduler(shift=shift)
    ours.set_timesteps(steps)
    theirs.set_timesteps(steps)
    torch.testing.assert_close(ours.timesteps, theirs.timesteps.float(), atol=1e-3, rtol=0)
    x = y = draw(0)
    for ours_time, theirs_time in zip(ours.timesteps, theirs.timesteps, strict=True):
        x = ours.step(draw(1), ours_time, x).prev_sample
        y = theirs.step(draw(1), theirs_time, y).prev_sample
    torch.testing.assert_close(x, y, atol=1e-5, rtol=1e-5)


def test_any_step_to_a_given_time_agrees_with_diffusers_too() -> None:
    ours, theirs = TransitionScheduler(), FlowMapEulerDiscreteScheduler()
    for t, r in ((1000.0, 0.0), (731.0, 12.5), (400.0, 400.0)):
        x = ours.step(draw(1), t, draw(0), r).prev_sample
        torch.testing.assert_close(x, theirs.step(draw(1), t, draw(0), r).prev_sample)


@pytest.mark.parametrize("name", TRANSPORTS)
def test_every_sample_may_have_its_own_times(name: str) -> None:
    scheduler = TransitionScheduler(name)
    t, r = torch.tensor([900.0, 500.0, 120.0]), torch.tensor([300.0, 499.0, 10.0])
    together = scheduler.step(draw(1), t, draw(0), r).prev_sample
    for row in range(3):
        alone = scheduler.step(draw(1)[row : row + 1], t[row], draw(0)[row : row + 1], r[row]).prev_sample
        torch.testing.assert_close(together[row : row + 1], alone)


@pytest.mark.parametrize("name", TRANSPORTS)
def test_stepping_through_its_timesteps_is_sampling(name: str) -> None:
    scheduler = TransitionScheduler(name, base_size=16)
    scheduler.set_timesteps(5, height=32, width=16)
    transport = make_transport(name)
    z = draw(0)
    predict = guided(small_network, transport, (torch.zeros(3), None))
    sampled = sample(predict, transport, initial_sample(transport, z, transport.t_max), scheduler.times(5, 32, 16))
    x = z * transport.coefficients(scheduler.sigmas[:1]).sigma.item()
    for t, r in zip(scheduler.sigmas[:-1], scheduler.sigmas[1:], strict=True):
        times = (transport.c_noise(time.expand(3)) for time in (t, r))
        x = scheduler.step(small_network(x, *times, torch.zeros(3)), t * 1000, x).prev_sample
    torch.testing.assert_close(x, sampled.sample, atol=1e-5, rtol=1e-3)


def test_larger_areas_shift_the_schedule_and_smaller_ones_do_not() -> None:
    scheduler = TransitionScheduler(base_size=64)
    base = scheduler.times(4)
    assert torch.equal(base, scheduler.times(4, 64, 64))
    assert torch.equal(base, scheduler.times(4, 32, 64))
    assert torch.equal(scheduler.times(4, 128, 64), scheduler.times(4, 64, 128))
    assert (scheduler.times(4, 128, 128)[1:-1] > scheduler.times(4, 128, 64)[1:-1]).all()
    assert (scheduler.times(4, 128, 64)[1:-1] > base[1:-1]).all()
    torch.testing.assert_close(scheduler.times(2, 128, 128)[1], torch.tensor(2 / 3))  # s u / (1 + (s - 1) u) at s = 2


PLANS: dict[str, dict[str, Any]] = {
    "4": {"steps": 4, "tail": 0.4},
    "16": {"steps": 16, "tail": 0.25, "shift": 1.5, "memory": True},
    "64": {"steps": 16, "tail": 0.25, "shift": 1.5, "memory": True},
}


@pytest.mark.parametrize(
    ("budget", "expected"),
    [
        (2, None),
        (4, StepPlan(4, tail=0.4)),
        (7, StepPlan(7, tail=0.4)),
        (20, StepPlan(20, tail=0.25, shift=1.5, memory=True)),
        (64, StepPlan(16, tail=0.25, shift=1.5, memory=True)),
        (100, StepPlan(16, tail=0.25, shift=1.5, memory=True)),
    ],
)
def test_a_budget_is_planned_as_the_largest_below_it(budget: int, expected: StepPlan | None) -> None:
    scheduler = TransitionScheduler(plans=PLANS)
    assert scheduler.plan(budget) == scheduler.plan(budget, "model") == expected
    assert scheduler.plan(budget, "uniform") is None
    assert TransitionScheduler().plan(budget) is None
    made = expected or StepPlan(budget)
    assert torch.equal(scheduler.times(budget), made.times(scheduler.transport))
    scheduler.set_timesteps(budget)
    assert scheduler.num_inference_steps == len(scheduler.timesteps) == made.steps
    scheduler.set_timesteps(budget, plan="uniform")
    assert torch.equal(scheduler.sigmas, TransitionScheduler().times(budget))


@pytest.mark.parametrize("name", TRANSPORTS)
def test_stepping_through_planned_timesteps_is_sampling_at_the_plans_times(name: str) -> None:
    scheduler = TransitionScheduler(name, base_size=16, plans={"5": {"steps": 5, "tail": 0.3, "shift": 1.4}})
    scheduler.set_timesteps(5, height=32, width=16)
    transport, z = scheduler.transport, draw(0)
    predict = guided(small_network, transport, (torch.zeros(3), None))
    times = StepPlan(5, 1.4, 0.3).times(transport, math.sqrt(2))
    sampled = sample(predict, transport, initial_sample(transport, z, transport.t_max), times)
    x = z * transport.coefficients(scheduler.sigmas[:1]).sigma.item()
    for t, r in zip(scheduler.sigmas[:-1], scheduler.sigmas[1:], strict=True):
        times = (transport.c_noise(time.expand(3)) for time in (t, r))
        x = scheduler.step(small_network(x, *times, torch.zeros(3)), t * 1000, x, r * 1000).prev_sample
    torch.testing.assert_close(x, sampled.sample, atol=1e-5, rtol=1e-3)


def test_plans_are_part_of_the_config_and_are_written_beside_what_else_is_in_it(tmp_path: Path) -> None:
    scheduler = TransitionScheduler("edm", shift=2.0, plans=PLANS)
    scheduler.save_pretrained(tmp_path / "scheduler")
    loaded = TransitionScheduler.from_pretrained(tmp_path / "scheduler")
    assert loaded.plans == scheduler.plans
    assert list(loaded.plans) == [4, 16, 64]
    write_plans(tmp_path, {8: StepPlan(8, memory=True)})
    again = TransitionScheduler.from_pretrained(tmp_path / "scheduler")
    assert again.plans == {8: StepPlan(8, memory=True)}
    assert (again.config.transport, again.config.shift) == ("edm", 2.0)
    assert json.loads((tmp_path / "scheduler" / "scheduler_config.json").read_text())["plans"] == {
        "8": {"steps": 8, "memory": True}
    }


@pytest.mark.parametrize(
    ("plans", "message"),
    [
        ([1, 2], "plans [1, 2]: expected the fields of a plan by numbers of steps"),
        ({"some": {"steps": 2}}, "plans: a number of steps 'some': expected a whole number from 1"),
        ({"0": {"steps": 1}}, "plans: a number of steps 0: expected a whole number from 1"),
        ({"4": {"steps": 8}}, "plans.4.steps 8: expected at most 4"),
        ({"4": {"steps": 4, "tail": "x"}}, "plans.4.tail 'x': expected a number"),
        ({"4": None}, "plans.4 None: expected the fields of a plan"),
        ({"4": {"steps": 4}, "04": {"steps": 3}}, "plans '04': there is another plan of 4 steps, keep one"),
        ({"\u0664": {"steps": 3}}, "plans: a number of steps '\u0664': expected a whole number from 1"),
    ],
)
def test_plans_that_cannot_be_are_one_line(plans: Any, message: str) -> None:
    with pytest.raises(InputError) as caught:
        TransitionScheduler(plans=plans)
    assert message in str(caught.value)


def test_half_precision_samples_stay_half() -> None:
    assert TransitionScheduler().step(draw(1).half(), 500.0, draw(0).half(), 200.0).prev_sample.dtype == torch.float16


def test_a_tuple_on_request() -> None:
    scheduler = TransitionScheduler()
    (x,) = scheduler.step(draw(1), 500.0, draw(0), 200.0, return_dict=False)
    assert torch.equal(x, scheduler.step(draw(1), 500.0, draw(0), 200.0).prev_sample)
    assert scheduler.scale_model_input(x) is x


def test_saved_and_loaded_it_is_the_same(tmp_path: Path) -> None:
    TransitionScheduler("edm", {"sigma_data": 2.0}, shift=3.0, base_size=128).save_pretrained(tmp_path)
    loaded = TransitionScheduler.from_pretrained(tmp_path)
    assert vars(loaded.transport) == vars(make_transport("edm", sigma_data=2.0))
    assert (loaded.config.shift, loaded.config.base_size) == (3.0, 128)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_given_times_are_those_of_diffusers(shift: float) -> None:
    ours, theirs = TransitionScheduler(shift=shift), FlowMapEulerDiscreteScheduler(shift=shift)
    for times in ({"sigmas": [1.0, 0.7, 0.2]}, {"timesteps": [900, 500, 100]}):
        ours.set_timesteps(3, **times)
        theirs.set_timesteps(3, **times)
        torch.testing.assert_close(ours.sigmas, theirs.sigmas.float())
        torch.testing.assert_close(ours.timesteps, theirs.timesteps.float())
    ours.set_timesteps(sigmas=np.array([1.0, 0.5]))
    assert ours.num_inference_steps == 2
    for bad in ({"num_inference_steps": 3, "sigmas": [1.0, 0.5]}, {}, {"sigmas": [[1.0]]}, {"timesteps": [0]}):
        with pytest.raises(InputError):
            ours.set_timesteps(**bad)


def test_given_times_of_every_transport_end_at_its_data() -> None:
    for name in TRANSPORTS:
        scheduler = TransitionScheduler(name)
        transport = scheduler.transport
        scheduler.set_timesteps(sigmas=[transport.t_max, (transport.t_min + transport.t_max) / 2])
        assert scheduler.sigmas[0].item() == pytest.approx(transport.t_max)
        assert scheduler.sigmas[-1].item() == pytest.approx(transport.t_min)


@pytest.mark.parametrize("begin", [None, 1])
def test_steps_are_counted_as_diffusers_counts_them(begin: int | None) -> None:
    counts = []
    for scheduler in (TransitionScheduler(), FlowMapEulerDiscreteScheduler()):
        scheduler.set_timesteps(4)
        assert scheduler.step_index is None
        if begin is not None:
            scheduler.set_begin_index(begin)
        x, found = draw(0), [scheduler.begin_index]
        for time in scheduler.timesteps[begin or 0 :]:
            x = scheduler.step(draw(1), time, x).prev_sample
            found.append(scheduler.step_index)
        counts.append(found)
        scheduler.set_timesteps(4)
        assert scheduler.step_index is None
        assert scheduler.begin_index is None
    assert counts[0] == counts[1]


def test_noise_is_put_on_as_diffusers_puts_it() -> None:
    theirs = FlowMapEulerDiscreteScheduler().scale_noise(draw(0), torch.tensor([300.0]), draw(1))
    torch.testing.assert_close(TransitionScheduler().scale_noise(draw(0), torch.tensor([300.0]), draw(1)), theirs)
    edm = TransitionScheduler("edm")
    expected = edm.transport.interpolate(draw(0), draw(1), torch.full((3,), 2.0))
    torch.testing.assert_close(edm.scale_noise(draw(0), 2000, draw(1)), expected)
