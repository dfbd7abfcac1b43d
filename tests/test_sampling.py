"""Schedules, counted evaluations, seeds, and the reference's trajectories."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FlowMapEulerDiscreteScheduler
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor, nn

from anystep.models import load_reference_transformer
from anystep.sampling import StopSampling, noise, resolution_shift, sample, schedule
from anystep.transport import TRANSPORTS, Transport, make_transport

FLOW = make_transport("ot_fm")


class Gaussian(nn.Module):
    """The exact transition for data N(0, spread^2): x_t keeps its quantile, so x_r = x_t std_r / std_t."""

    def __init__(self, transport: Transport, spread: float = 0.5) -> None:
        super().__init__()
        self.transport, self.spread, self.calls, self.encoded = transport, spread, 0, 0
        self.unwarp = transport.network_time
        transport.network_time = lambda t: t  # type: ignore[method-assign]

    def std(self, t: Tensor) -> Tensor:
        c = self.transport.coefficients(t.double())
        return ((c.alpha * self.spread) ** 2 + c.sigma**2).sqrt()

    def encode_condition(self, condition: Tensor, mask: Tensor | None) -> Tensor:
        self.encoded += 1
        return condition

    def forward(self, x: Tensor, t: Tensor, r: Tensor, condition: Tensor, mask: Tensor | None = None) -> Tensor:
        self.calls += 1
        A, B = self.transport.transition_coefficients(t.double(), r.double())
        return (x.double() * ((self.std(r) / self.std(t) - A) / B)[:, None]).float()


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
    open_interval = (interval[0] + 1e-6, interval[1] - 1e-6)  # the reference's ends are open, ours are closed
    sampled = sample(
        network, FLOW, stored["z"], stored["y"], steps, null_condition=stored["y_null"], guidance=guidance,
        guidance_interval=open_interval, return_trajectory=True,
    )  # fmt: skip
    expected = stored[f"steps{steps}_cfg{guidance}_{interval[0]}to{interval[1]}"]
    torch.testing.assert_close(sampled.trajectory, expected, rtol=1e-5, atol=1e-5)
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
    sampled = sample(
        network, network.transport, torch.randn(3, 2), condition, 4, null_condition=condition, guidance=guidance,
        guidance_interval=interval,
    )  # fmt: skip
    assert sampled.nfe == network.calls == nfe
    assert sampled.steps == 4


def test_the_condition_is_encoded_once() -> None:
    network = Gaussian(make_transport("ot_fm"))
    condition = torch.zeros(3, 1)
    sample(network, network.transport, torch.randn(3, 2), condition, 8, null_condition=condition, guidance=2.0)
    assert network.encoded == 2  # once the captions, once the null caption


@pytest.mark.parametrize("name", list(TRANSPORTS))
@pytest.mark.parametrize("steps", [1, 3])
def test_an_exact_network_lands_on_the_same_point_in_any_number_of_steps(name: str, steps: int) -> None:
    transport = make_transport(name)
    network = Gaussian(transport)
    z = noise((2,), range(50))
    reference = sample(network, transport, z, torch.zeros(50, 1), 16).sample
    torch.testing.assert_close(
        sample(network, transport, z, torch.zeros(50, 1), steps).sample, reference, rtol=2e-3, atol=2e-3
    )


@pytest.mark.parametrize("name", list(TRANSPORTS))
@pytest.mark.parametrize("stochasticity", [0.4, 1.0])
def test_the_stochastic_sampler_keeps_the_distribution(name: str, stochasticity: float) -> None:
    transport = make_transport(name)
    network, seeds = Gaussian(transport), range(3000)
    sampled = sample(
        network, transport, noise((2,), seeds), torch.zeros(3000, 1), 4, stochasticity=stochasticity, seeds=seeds
    )
    spread = network.std(torch.tensor([transport.t_min])).item()
    assert sampled.sample.std().item() == pytest.approx(spread, rel=0.04)
    assert sampled.sample.mean().abs().item() < 0.05 * spread
    straight = sample(network, transport, noise((2,), seeds), torch.zeros(3000, 1), 4).sample
    correlation = torch.corrcoef(torch.stack([straight.flatten(), sampled.sample.flatten()]))[0, 1]
    assert correlation < 0.99  # fresh noise did go in


def test_a_seed_means_the_same_noise_alone_and_in_a_batch() -> None:
    together, alone = noise((4, 3), [5, 9, 5]), noise((4, 3), [9])
    assert torch.equal(together[1], alone[0])
    assert torch.equal(together[0], together[2])
    assert not torch.equal(together[0], together[1])


def test_times_may_be_given_and_a_callback_may_change_or_stop_the_sample() -> None:
    network, seen = Gaussian(make_transport("ot_fm")), []

    def zero_at_second(i: int, r: float, x: Tensor) -> Tensor | None:
        seen.append(round(r, 3))
        if i == 2:
            raise StopSampling
        return torch.zeros_like(x) if i == 1 else None

    sampled = sample(
        network, network.transport, torch.randn(3, 2), torch.zeros(3, 1), [1.0, 0.7, 0.3, 0.2, 0.0],
        on_step=zero_at_second, return_trajectory=True,
    )  # fmt: skip
    assert seen == [0.7, 0.3, 0.2]
    assert sampled.nfe == sampled.steps == 3
    assert sampled.trajectory is not None
    assert len(sampled.trajectory) == 4
    assert (sampled.trajectory[2] == 0).all()


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
        ({"steps": 0}, "steps 0: expected a whole number from 1"),
        ({"steps": [0.5, 0.5, 0.0]}, "must decrease"),
        ({"guidance": 2.0}, "null_condition"),
        ({"guidance": -1.0}, "guidance -1.0: expected a number from 0"),
        ({"guidance": float("nan")}, "guidance nan: expected a number from 0"),
        ({"stochasticity": 1.5}, "stochasticity"),
        ({"stochasticity": 0.5}, "seed"),
        ({"shift": 0.0}, "shift"),
    ],
)
def test_bad_requests_are_refused(options: dict[str, Any], message: str) -> None:
    network = Gaussian(make_transport("ot_fm"))
    with pytest.raises(ValueError, match=message):
        sample(network, FLOW, torch.randn(1, 2), torch.zeros(1, 1), **{"steps": 2, **options})
