"""Schedules, counted evaluations, seeds, and the reference's trajectories."""

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import FlowMapEulerDiscreteScheduler
from helpers import convergence_order, time_of
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor, nn

from anystep.errors import InputError
from anystep.models import load_reference_transformer
from anystep.sampling import (
    Memory,
    Sampled,
    Step,
    StepPlan,
    StopSampling,
    extrapolated,
    guided,
    initial_sample,
    joined,
    noise,
    resolution_shift,
    sample,
    schedule,
)
from anystep.transport import TRANSPORTS, Transport, make_transport

FLOW = make_transport("ot_fm")


PLANS = st.builds(
    StepPlan,
    st.integers(1, 200),
    shift=st.floats(0.1, 10),
    tail=st.none() | st.floats(0.001, 0.99),
    stochasticity=st.floats(0, 1),
    velocity_below=st.floats(0, 1),
    memory=st.booleans(),
    guidance_share=st.floats(0, 1),
    guided_above=st.floats(0, 1),
)


class Gaussian(nn.Module):
    """The exact transition for data N(0, spread^2): x_t keeps its quantile, so x_r = x_t std_r / std_t."""

    def __init__(self, transport: Transport, spread: float = 0.5) -> None:
        super().__init__()
        self.transport, self.spread = transport, spread
        self.calls = self.rows = self.encoded = 0

    def std(self, t: Tensor) -> Tensor:
        c = self.transport.coefficients(t.double())
        return ((c.alpha * self.spread) ** 2 + c.sigma**2).sqrt()

    def encode_condition(self, condition: Tensor, mask: Tensor | None) -> Tensor:
        self.encoded += 1
        return condition

    def forward(self, x: Tensor, t: Tensor, r: Tensor, condition: Tensor, mask: Tensor | None = None) -> Tensor:
        self.calls += 1
        self.rows += len(x)
        t, r = (time_of(self.transport, each.double()) for each in (t, r))
        A, B = self.transport.transition_coefficients(t, r)
        return (x.double() * ((self.std(r) / self.std(t) - A) / B)[:, None]).float()


def draw(
    network: Any, transport: Transport, z: Tensor, condition: Tensor, times: Any, null: Any = None,
    scale: float = 1.0, interval: Any = None, embedded: bool = False, **options: Any,
) -> Sampled:  # fmt: skip
    """From noise to data with a network that reads no mask."""
    null = None if null is None else (null, None)
    f = guided(network, transport, (condition, None), null, scale, interval, embedded)
    return sample(f, transport, initial_sample(transport, z, transport.t_max), times, **options)


@pytest.mark.parametrize("name", list(TRANSPORTS))
def test_schedules_strictly_decrease_for_every_number_of_steps(name: str) -> None:
    transport = make_transport(name)
    for steps in range(1, 1001):
        times = schedule(transport, steps)
        assert len(times) == steps + 1
        assert times.dtype == torch.float32
        assert (times[1:] < times[:-1]).all(), steps
        assert times[0].item() == pytest.approx(transport.t_max)
        assert times[-1].item() == pytest.approx(transport.t_min, abs=1e-9)


@given(steps=st.integers(1, 1000), shift=st.floats(1, 16))
def test_shifted_schedules_strictly_decrease(steps: int, shift: float) -> None:
    times = schedule(FLOW, steps, shift)
    assert (times[1:] < times[:-1]).all()
    if steps > 1 and shift > 1.01:
        assert times[steps // 2] > schedule(FLOW, steps)[steps // 2]


@given(plan=PLANS, name=st.sampled_from(list(TRANSPORTS)), shift=st.floats(1, 4), strength=st.floats(0.05, 1))
def test_times_of_a_plan_decrease_to_t_min_whatever_is_put_on_top(
    plan: StepPlan, name: str, shift: float, strength: float
) -> None:
    transport = make_transport(name)
    times = plan.times(transport, shift, strength)
    assert len(times) == plan.steps + 1
    assert (times[1:] < times[:-1]).all()
    assert times[-1].item() == pytest.approx(transport.t_min, abs=1e-9)
    begin = torch.tensor([transport.t_min + (transport.t_max - transport.t_min) * strength], dtype=torch.float64)
    assert times[0].item() == pytest.approx(transport.shift(begin, shift * plan.shift).item(), rel=1e-6)


@given(plan=PLANS)
def test_a_plan_is_what_its_plain_values_say(plan: StepPlan) -> None:
    assert StepPlan.parse("plan", json.loads(json.dumps(plan.plain()))) == plan


def test_the_last_step_of_a_tail_is_one_transition_and_the_others_are_alike() -> None:
    times = StepPlan(5, tail=0.2).times(FLOW)
    torch.testing.assert_close(times, torch.tensor([1.0, 0.8, 0.6, 0.4, 0.2, 0.0]))
    assert torch.equal(StepPlan(1, tail=0.4).times(FLOW), torch.tensor([1.0, 0.0]))
    assert torch.equal(StepPlan(7).times(FLOW, 2.0), schedule(FLOW, 7, 2.0))
    assert str(StepPlan(5, tail=0.2, memory=True)) == "5 steps, tail 0.2, memory"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"steps": 0}, "plans.8.steps 0: expected a whole number from 1"),
        ({"steps": 8, "tail": 1.0}, "plans.8.tail 1: expected a number from 0.001 to 0.99"),
        ({"steps": 8, "shift": float("nan")}, "plans.8.shift nan: expected a number from 0.01"),
        ({"steps": 8, "velocity_below": 2}, "plans.8.velocity_below 2: expected a number from 0 to 1"),
        ({"steps": 8, "memory": 1}, "plans.8.memory 1: expected true or false"),
        ({"steps": 8, "tale": 0.5}, "unknown plans.8.tale, did you mean tail?"),
        ({"tail": 0.5}, "expected the fields of a plan, `steps` among them"),
        ([8], "expected the fields of a plan"),
    ],
)
def test_a_plan_that_cannot_be_is_one_line(fields: Any, message: str) -> None:
    with pytest.raises(InputError) as caught:
        StepPlan.parse("plans.8", fields)
    assert message in str(caught.value)


def test_the_shift_follows_the_area_above_the_base() -> None:
    assert resolution_shift(64, 64, 64) == 1
    assert resolution_shift(32, 64, 64) == 1
    assert resolution_shift(128, 256, 64) == pytest.approx(math.sqrt(8))


@pytest.mark.parametrize("name", ["c2i", "t2i"])
@pytest.mark.parametrize(
    ("steps", "guidance", "interval", "nfe"),
    [(1, 1.0, (0.0, 1.0), 1), (4, 1.0, (0.0, 1.0), 4), (5, 2.5, (0.0, 1.0), 9), (8, 2.5, (0.0, 0.6), 12)],
)
def test_the_reference_takes_the_same_path(
    numbers: Path, name: str, steps: int, guidance: float, interval: tuple[float, float], nfe: int
) -> None:
    options = json.loads((numbers / "meta.json").read_text())[name]["config"]
    network = load_reference_transformer(numbers / f"{name}.weights.safetensors", options)
    stored = {key.removeprefix(f"{name}.sample."): value for key, value in
              load_file(numbers / "objective.safetensors").items()}  # fmt: skip
    z, path = stored["z"], [stored["z"]]
    open_interval = (interval[0] + 1e-6, interval[1] - 1e-6)  # the reference's ends are open, ours are closed
    sampled = draw(
        network, FLOW, z, stored["y"], steps, null=stored["y_null"], scale=guidance, interval=open_interval,
        callback=lambda step: path.append(step.x),
    )  # fmt: skip
    expected = stored[f"steps{steps}_cfg{guidance}_{interval[0]}to{interval[1]}"]
    torch.testing.assert_close(torch.stack(path), expected, rtol=1e-5, atol=1e-5)
    assert sampled.nfe == nfe


@pytest.mark.parametrize(
    ("guidance", "interval", "nfe"),
    [
        (1.0, None, 4),
        (0.0, None, 4),
        (0.5, None, 4),
        (2.0, None, 8),
        (2.0, (0.0, 0.5), 6),
        (2.0, (1.0, 1.0), 5),
        (2.0, (0.26, 0.49), 4),
    ],
)
def test_evaluations_are_counted_and_the_interval_is_closed(guidance: float, interval: Any, nfe: int) -> None:
    network = Gaussian(make_transport("ot_fm"))
    condition = torch.zeros(3, 1)
    sampled = draw(
        network, network.transport, torch.randn(3, 2), condition, 4, null=condition, scale=guidance,
        interval=interval,
    )  # fmt: skip
    assert sampled.nfe == network.rows / 3 == nfe
    assert network.calls == 4  # a guided step is one batch
    assert sampled.steps == 4


@pytest.mark.parametrize("interval", [None, (0.0, 0.5), (1.0, 1.0)])
@pytest.mark.parametrize("memory", [False, True])
def test_a_network_that_is_told_the_scale_is_guided_in_one_evaluation(interval: Any, memory: bool) -> None:
    told = []

    def two(x: Tensor, t: Tensor, r: Tensor, condition: Tensor, mask: Any) -> Tensor:
        return condition * x + (t - r)[:, None]

    def one(x: Tensor, t: Tensor, r: Tensor, condition: Tensor, mask: Any, guidance: Tensor) -> Tensor:
        told.append(guidance.tolist())
        conditional, null = (two(x, t, r, each, mask) for each in (condition, torch.zeros_like(condition)))
        return null + guidance[:, None] * (conditional - null)

    z, condition = torch.randn(2, 3), torch.ones(2, 1)
    options: dict[str, Any] = {
        "scale": 3.0, "interval": interval, "memory": memory, "velocity_below": float(memory),
    }  # fmt: skip
    twice = draw(two, FLOW, z, condition, 4, null=torch.zeros(2, 1), **options)
    once = draw(one, FLOW, z, condition, 4, embedded=True, **options)
    torch.testing.assert_close(once.sample, twice.sample)
    assert once.nfe == once.steps == len(told) == 4
    assert sum(scales == [3.0, 3.0] for scales in told) == twice.nfe - 4


def test_the_condition_is_encoded_once() -> None:
    network = Gaussian(make_transport("ot_fm"))
    condition = torch.zeros(3, 1)
    z = torch.randn(3, 2)
    draw(network, network.transport, z, condition, 8, null=condition, scale=2.0, interval=(0.5, 1.0))
    assert network.encoded == 2  # once the captions and the null caption together, once the captions


@pytest.mark.parametrize("name", list(TRANSPORTS))
@pytest.mark.parametrize("steps", [1, 3])
def test_an_exact_network_lands_on_the_same_point_in_any_number_of_steps(name: str, steps: int) -> None:
    transport = make_transport(name)
    network = Gaussian(transport)
    z = noise((2,), range(50))
    reference = draw(network, transport, z, torch.zeros(50, 1), 16).sample
    torch.testing.assert_close(
        draw(network, transport, z, torch.zeros(50, 1), steps).sample, reference, rtol=2e-3, atol=2e-3
    )


@pytest.mark.parametrize("name", list(TRANSPORTS))
@pytest.mark.parametrize("stochasticity", [0.4, 1.0])
def test_the_stochastic_sampler_keeps_the_distribution(name: str, stochasticity: float) -> None:
    transport = make_transport(name)
    network, seeds = Gaussian(transport), range(3000)
    sampled = draw(
        network, transport, noise((2,), seeds), torch.zeros(3000, 1), 4, stochasticity=stochasticity, seeds=seeds
    )
    spread = network.std(torch.tensor([transport.t_min])).item()
    assert sampled.sample.std().item() == pytest.approx(spread, rel=0.04)
    assert sampled.sample.mean().abs().item() < 0.05 * spread
    straight = draw(network, transport, noise((2,), seeds), torch.zeros(3000, 1), 4).sample
    correlation = torch.corrcoef(torch.stack([straight.flatten(), sampled.sample.flatten()]))[0, 1]
    assert correlation < 0.99  # fresh noise did go in


def test_fresh_noise_is_what_follows_the_noise_that_an_image_began_with() -> None:
    seen: list[torch.Tensor] = []
    draw(
        Gaussian(FLOW), FLOW, noise((16,), [5]), torch.zeros(1, 1), [1.0, 0.5, 0.0], stochasticity=1.0, seeds=[5],
        callback=lambda step: seen.append(step.x.clone()),
    )  # fmt: skip
    # after the jump to the data and back, x = data / 2 + noise / 2
    ahead = noise((32,), [5])[:, 16:]
    others = torch.cat([noise((16,), [seed]) for seed in (5, 5 ^ 0x5EED)])
    like = torch.nn.functional.cosine_similarity(seen[0], torch.cat([ahead, others]))
    assert like.argmax() == 0


def velocity(network: Gaussian, x: Tensor, t: Tensor) -> Tensor:
    """f(x_t, t, t) of data N(0, spread^2), in float64."""
    c, variance = network.transport.coefficients(t), network.std(t) ** 2
    return (c.alpha_hat * c.alpha * network.spread**2 + c.sigma_hat * c.sigma) / variance * x


@pytest.mark.parametrize(
    ("name", "options"),
    [  # where the paths of edm and ve bend, and vp away from its ends
        ("ot_fm", {}),
        ("trigflow", {}),
        ("edm", {"t_min": 0.5, "t_max": 4.0}),
        ("vp", {"t_min": 0.2, "t_max": 0.8}),
        ("ve", {"t_min": 0.5, "t_max": 4.0}),
    ],
)
def test_velocity_jumps_are_of_second_order_with_memory_and_of_first_without(name: str, options: Any) -> None:
    transport = make_transport(name, **options)
    network = Gaussian(transport)

    def error(steps: int, memory: bool) -> float:
        times = torch.linspace(transport.t_max, transport.t_min, steps + 1, dtype=torch.float64)
        x, before = network.std(times[:1])[:, None], None
        for t, r in zip(times[:-1, None], times[1:, None], strict=True):
            F = velocity(network, x, t)
            told = Memory(*transport.decompose(x, F, t), t.item(), 1.0)
            if memory and before is not None:
                F = extrapolated(transport, F, t.item(), r.item(), before)
            x, before = transport.transition(x, F, t, r), told
        return abs(x.item() / network.std(times[-1:]).item() - 1)

    counts = (64, 128, 256, 512)
    for memory, order in ((False, 1), (True, 2)):
        errors = [error(steps, memory) for steps in counts]
        assert convergence_order([1 / steps for steps in counts], errors) == pytest.approx(order, abs=0.1)


@given(t=st.floats(0.3, 0.9), past=st.floats(0.01, 0.1), ahead=st.floats(0.01, 0.3))
def test_memory_is_exact_for_what_is_linear_in_time_on_straight_lines(t: float, past: float, ahead: float) -> None:
    base, slope, x = torch.randn(3, 2, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    times = torch.full((2,), t + past, dtype=torch.float64)
    before = Memory(*FLOW.decompose(x, base + slope * (t + past), times), t + past, 1.0)
    middle = extrapolated(FLOW, base + slope * t, t, t - ahead, before)
    torch.testing.assert_close(middle, base + slope * (t - ahead / 2))


class Curved(nn.Module):
    """Straight lines whose F turns with time; it keeps whether it was asked for the velocity."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[bool] = []

    def forward(self, x: Tensor, t: Tensor, r: Tensor, condition: Tensor, mask: Tensor | None = None) -> Tensor:
        self.asked.append(torch.equal(t, r))
        return torch.sin(3 * t)[:, None] * (1 + condition) + 0.1 * x


def curved(**options: Any) -> Tensor:
    z = noise((2,), range(3))
    return draw(Curved(), FLOW, z, torch.zeros(3, 1), **{"times": 8, **options}).sample  # type: ignore[arg-type]


def test_short_jumps_ask_for_the_velocity_and_long_ones_for_the_jump() -> None:
    times, network = StepPlan(5, tail=0.4).times(FLOW), Curved()  # four of 0.15, one of 0.4
    for below, expected in ((0.0, [False] * 5), (0.15, [True] * 4 + [False]), (0.4, [True] * 5), (1.0, [True] * 5)):
        network.asked.clear()
        made = draw(network, FLOW, noise((2,), range(3)), torch.zeros(3, 1), times, velocity_below=below)
        assert network.asked == expected
        assert made.nfe == made.steps == 5


def test_memory_follows_a_path_only_as_long_as_it_is_the_same() -> None:
    with_memory, without = (curved(velocity_below=1.0, memory=memory) for memory in (True, False))
    assert not torch.allclose(with_memory, without, atol=1e-4)
    assert torch.equal(curved(memory=True), curved())  # no velocity is asked for
    noisy: dict[str, Any] = {"velocity_below": 1.0, "stochasticity": 0.3, "seeds": [0, 1, 2]}
    assert torch.equal(curved(memory=True, **noisy), curved(**noisy))  # fresh noise is another path
    moved: dict[str, Any] = {"velocity_below": 1.0, "callback": lambda step: step.x + 0.01}
    assert torch.equal(curved(memory=True, **moved), curved(**moved))
    moved["callback"] = lambda step: step.x.copy_(step.x + 0.01)  # where it is
    assert torch.equal(curved(memory=True, **moved), curved(**moved))
    assert torch.equal(curved(memory=True, velocity_below=1.0, callback=lambda step: step.x.clone()), with_memory)
    inside: dict[str, Any] = {"velocity_below": 1.0, "null": torch.ones(3, 1), "scale": 2.0}
    inside |= {"times": [1.0, 0.6, 0.0], "interval": (0.5, 0.9)}
    assert torch.equal(curved(memory=True, **inside), curved(**inside))  # the second jump is guided, the first is not


def test_memory_belongs_to_each_image_and_not_to_the_batch() -> None:
    network, condition = Curved(), torch.arange(3.0)[:, None]
    words: dict[str, Any] = {"velocity_below": 1.0, "memory": True, "null": condition, "scale": 1.5}
    together = draw(network, FLOW, noise((2,), range(3)), condition, 6, **words).sample
    words["null"] = condition[1:2]
    alone = draw(network, FLOW, noise((2,), [1]), condition[1:2], 6, **words).sample
    torch.testing.assert_close(together[1:2], alone)


def test_a_seed_means_the_same_noise_alone_and_in_a_batch() -> None:
    together, alone = noise((4, 3), [5, 9, 5]), noise((4, 3), [9])
    assert torch.equal(together[1], alone[0])
    assert torch.equal(together[0], together[2])
    assert not torch.equal(together[0], together[1])


def test_times_may_be_given_and_a_callback_may_change_or_stop_the_sample() -> None:
    network, seen = Gaussian(make_transport("ot_fm")), []

    def zero_at_second(step: Step) -> Tensor | None:
        seen.append((round(step.t, 3), round(step.r, 3)))
        if step.index == 2:
            assert (step.x == 0).all()
            raise StopSampling
        return torch.zeros_like(step.x) if step.index == 1 else None

    sampled = draw(
        network, network.transport, torch.randn(3, 2), torch.zeros(3, 1), [1.0, 0.7, 0.3, 0.2, 0.0],
        callback=zero_at_second,
    )  # fmt: skip
    assert seen == [(1.0, 0.7), (0.7, 0.3), (0.3, 0.2)]
    assert sampled.nfe == sampled.steps == 3
    assert (sampled.sample == 0).all()


@pytest.mark.parametrize("name", list(TRANSPORTS))
def test_a_step_tells_the_data_that_it_goes_to(name: str) -> None:
    transport, data = make_transport(name), torch.randn(3, 2)
    z = torch.randn(3, 2)

    def certain(x: Tensor, t: Tensor, r: Tensor, condition: Tensor, mask: Any) -> Tensor:  # knows data and noise
        return transport.target(data, z, time_of(transport, t))

    seen: list[Tensor] = []
    start = transport.interpolate(data, z, torch.full((3,), transport.t_max))
    predict = guided(certain, transport, (torch.zeros(3, 1), None))
    sample(predict, transport, start, 4, callback=lambda step: seen.append(step.clean))
    assert len(seen) == 4
    for each in seen:
        torch.testing.assert_close(each, data, atol=1e-3, rtol=1e-3)


def masking(x: Tensor, t: Tensor, r: Tensor, condition: Tensor, mask: Tensor | None = None) -> Tensor:
    """A network that reads the mean of the states that are no padding."""
    weight = torch.ones(condition.shape[:2]) if mask is None else mask.float()
    return x * (condition.sum(-1) * weight).sum(1, keepdim=True) / weight.sum(1, keepdim=True)


class Masking(nn.Module):
    config = SimpleNamespace(mask_text=True)
    forward = staticmethod(masking)


@pytest.mark.parametrize(("length", "other"), [(5, 2), (2, 5), (3, 3)])
@pytest.mark.parametrize("padded", [False, True])
def test_one_batch_is_what_two_evaluations_are(length: int, other: int, padded: bool) -> None:
    condition, null = torch.randn(3, length, 4), torch.randn(3, other, 4)
    masks: list[Any] = [None, None]
    if padded:
        masks = [torch.arange(each) < torch.tensor([each, each - 1, 1])[:, None] for each in (length, other)]
    x, pair = torch.randn(3, 2), ((condition, masks[0]), (null, masks[1]))
    one, two = (guided(Masking(), FLOW, *pair, 2.5, one_batch=together) for together in (True, False))
    assert joined(Masking(), *pair) is not None
    torch.testing.assert_close(one(x, 0.8, 0.2).F, two(x, 0.8, 0.2).F)
    assert one(x, 0.8, 0.2)[1:] == two(x, 0.8, 0.2)[1:] == (2, 2.5)
    assert (joined(masking, *pair) is None) == (length != other)  # it does not say that it leaves padding out


def test_what_cannot_be_one_batch_is_none() -> None:
    labels, states = torch.arange(3), torch.randn(3, 4, 2)
    assert joined(Masking(), (labels, None), (labels, None)) is not None
    for null in (states[:2], torch.randn(3, 4, 5), labels, object()):
        assert joined(Masking(), (states, None), (null, None)) is None


@given(t=st.floats(0.1, 1), r=st.floats(0, 0.1), seed=st.integers(0, 100))
def test_ot_fm_is_what_diffusers_flow_map_scheduler_computes(t: float, r: float, seed: int) -> None:
    scheduler = FlowMapEulerDiscreteScheduler()
    scheduler.set_timesteps(4)
    x, F = torch.randn(2, 2, 4, 8, 8, generator=torch.Generator().manual_seed(seed))
    theirs = scheduler.step(F, torch.tensor(1000 * t), x, torch.tensor(1000 * r)).prev_sample
    ours = FLOW.transition(x, F, torch.full((2,), t), torch.full((2,), r))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"times": 0}, "steps 0: expected a whole number from 1"),
        ({"times": [0.5, 0.5, 0.0]}, "must decrease"),
        ({"scale": 2.0}, "null"),
        ({"scale": -1.0}, "guidance -1.0: expected a number from 0"),
        ({"scale": float("nan")}, "guidance nan: expected a number from 0"),
        ({"stochasticity": 1.5}, "stochasticity"),
        ({"stochasticity": 0.5}, "seed"),
        ({"velocity_below": -0.5}, "velocity_below -0.5: expected a number from 0 to 1"),
    ],
)
def test_bad_requests_are_refused(options: dict[str, Any], message: str) -> None:
    network = Gaussian(make_transport("ot_fm"))
    with pytest.raises(ValueError, match=message):
        draw(network, FLOW, torch.randn(1, 2), torch.zeros(1, 1), **{"times": 2, **options})


def test_a_schedule_is_refused_a_shift_that_is_none() -> None:
    with pytest.raises(InputError, match="shift"):
        schedule(FLOW, 2, 0.0)
