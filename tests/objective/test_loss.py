"""The loss: its terms, what is left out of it, networks with branches, and the numbers of the reference."""

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from helpers import at_points, latent_batch, lively, tensor_defaults
from safetensors.torch import load_file
from torch import Tensor, nn

from anystep.models import load_reference_transformer
from anystep.objective import (
    BoundNetwork,
    BranchVelocity,
    Identity,
    ModelGuidance,
    RunningMean,
    TimeDraws,
    TrainingBatch,
    TransitionObjective,
    Weighting,
    derivative,
    residual_by_bin,
)
from anystep.transport import TRANSPORTS, make_transport

FLOW = make_transport("ot_fm")


class Counting(nn.Module):
    """Counts the samples that go through a network, with and without gradient."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.calls = network, []

    def forward(self, x: Tensor, *rest: Any, **more: Any) -> Any:
        self.calls.append((len(x), torch.is_grad_enabled()))
        return self.network(x, *rest, **more)


# ----------------------------------------------------------------------------------------------------------------------
# The loss


@pytest.mark.parametrize("name", ["c2i", "t2i"])
@pytest.mark.parametrize("direction", [False, True])
def test_the_reference_gives_the_same_loss(numbers: Path, name: str, direction: bool) -> None:
    options = json.loads((numbers / "meta.json").read_text())[name]["config"]
    network = load_reference_transformer(numbers / f"{name}.weights.safetensors", options)
    stored = load_file(numbers / "objective.safetensors")
    x, z, t, r, y, features = (stored[f"{name}.{key}"] for key in ("x", "z", "t", "r", "y", "h_target"))
    record = TransitionObjective(FLOW, direction=direction).evaluate(
        network, TrainingBatch(x, z, t, r, y, features=features)
    )
    expected = {key: stored[f"{name}.{key}.dir{int(direction)}"] for key in
                ("denoising_loss", "weighted_loss", "proj_loss")}  # fmt: skip
    torch.testing.assert_close(record.denoising[None], expected["denoising_loss"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close((record.loss - record.alignment)[None], expected["weighted_loss"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(record.alignment[None], expected["proj_loss"], rtol=1e-5, atol=1e-5)
    moving = t > r
    at = at_points(FLOW, x[moving], z[moving], t[moving], r[moving], x[moving], moving.nonzero()[:, 0])
    slope = derivative("central")(BoundNetwork(network, FLOW, y), at)
    # two evaluations that agree to 1e-6 differ by 1e-4 when divided by 2 eps = 0.01
    assert (slope - stored[f"{name}.dde"][moving]).norm() <= 5e-5 * slope.norm()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_loss_does_not_depend_on_what_the_process_makes_tensors_of(dtype: torch.dtype) -> None:
    x, _, _, _, y = latent_batch(6)
    network, means = lively("c2i-test"), RunningMean()
    objective = TransitionObjective(FLOW, weighting=Weighting(power=0.0, normaliser=means))

    def evaluated() -> list[Tensor]:
        means.sums.zero_(), means.counts.zero_()
        batch = objective.draw_batch(x, y, torch.Generator().manual_seed(0))
        for _ in range(2):  # the second time there is something to forget
            record = objective.evaluate(network, batch)
            means.update(FLOW, record.t, record.r, record.residual)
        bins = residual_by_bin(FLOW, record.t, record.r, record.residual)
        return [record.loss, record.residual, record.alignment, means.sums.clone(), means.counts.clone(), *bins]

    expected = evaluated()
    with tensor_defaults(dtype, "meta"):
        assert all(torch.equal(*both) for both in zip(evaluated(), expected, strict=True))


def test_only_samples_with_an_interval_are_differentiated_and_both_sides_at_once() -> None:
    x, z, t, r, y = latent_batch(6)
    r[:4] = t[:4]
    counted = Counting(lively("c2i-test"))
    record = TransitionObjective(FLOW).evaluate(counted, TrainingBatch(x, z, t, r, y))
    assert counted.calls == [(6, True), (4, False)]  # 2 moving samples, at t + eps and t - eps
    assert record.evaluations == 10
    counted.calls.clear()
    diffusion = TransitionObjective(FLOW, TimeDraws(diffusion_share=1.0))
    record = diffusion.evaluate(counted, diffusion.draw_batch(x, y, torch.Generator().manual_seed(0)))
    assert counted.calls == [(6, True)]
    assert record.evaluations == 6


def test_a_sample_that_is_not_finite_moves_no_weight_and_is_named() -> None:
    x, z, t, r, y = latent_batch(6)
    objective = TransitionObjective(FLOW)

    def gradients(rows: list[int], poison: bool) -> list[Tensor]:
        network, data = lively("c2i-test"), x.clone()
        if poison:
            data[3, 0, 2, 2] = torch.nan
        record = objective.evaluate(network, TrainingBatch(data[rows], z[rows], t[rows], r[rows], y[rows]))
        assert record.nonfinite == ([3] if poison else [])
        assert record.residual.isnan().sum() == poison
        assert record.loss.isfinite()
        record.loss.backward()
        return [parameter.grad for parameter in network.parameters() if parameter.grad is not None]

    poisoned, without = gradients([0, 1, 2, 3, 4, 5], poison=True), gradients([0, 1, 2, 4, 5], poison=False)
    for one, other in zip(poisoned, without, strict=True):
        assert one.isfinite().all()
        torch.testing.assert_close(one, other, rtol=2e-3, atol=2e-4)  # two batch sizes, two roundings of the derivative


def test_an_overflowing_target_is_left_out() -> None:
    x, z, t, r, y = latent_batch(3)
    x[1] = 3e38  # finite, but its squares are not
    record = TransitionObjective(FLOW, direction=False).evaluate(lively("c2i-test"), TrainingBatch(x, z, t, r, y))
    record.loss.backward()
    assert record.loss.isfinite()
    assert record.nonfinite == [1]


def test_the_adaptive_weight_makes_the_loss_flat_and_the_residual_does_not() -> None:
    x, z, t, r, y = latent_batch()
    t = r
    record = TransitionObjective(FLOW).evaluate(lively("c2i-test"), TrainingBatch(3 * x, z, t, r, y))
    assert record.loss.item() == pytest.approx(1, abs=1e-3)
    assert record.denoising.item() > 3


def test_guidance_in_the_target_is_closed_and_needs_its_networks() -> None:
    F, zero = torch.ones(4, 2), torch.zeros(4, 2)
    t = torch.tensor([0.29, 0.3, 0.8, 0.81])
    guided = ModelGuidance(1.0, 0.75, 0.3, 0.8)(F, t, F, zero)
    assert guided[:, 0].tolist() == [1.0, 1.75, 1.75, 1.0]
    x, z, t, r, y = latent_batch()
    objective, network = TransitionObjective(FLOW, guidance=ModelGuidance()), lively("c2i-test")
    with pytest.raises(ValueError, match="ema_network"):
        objective.evaluate(network, TrainingBatch(x, z, t, r, y))
    null = torch.full_like(y, network.config.num_classes)
    with_it = objective.evaluate(network, TrainingBatch(x, z, t, r, y, null_condition=null), ema_network=network)
    without = replace(objective, guidance=None).evaluate(network, TrainingBatch(x, z, t, r, y))
    assert with_it.evaluations == without.evaluations + 2 * len(x)
    assert not torch.equal(with_it.residual, without.residual)


@pytest.mark.parametrize("name", list(TRANSPORTS))
def test_residuals_fall_into_their_bins(name: str) -> None:
    transport = make_transport(name)
    t = torch.tensor([transport.t_min, transport.t_max, transport.t_max, transport.t_max])
    r = torch.tensor([transport.t_min, transport.t_min, transport.t_max, transport.t_min])
    sums, counts = residual_by_bin(transport, t, r, torch.tensor([1.0, 2.0, 3.0, torch.nan]), bins=3)
    assert counts.tolist() == [[1, 0, 0], [0, 0, 0], [1, 0, 1]]
    assert sums.tolist() == [[1, 0, 0], [0, 0, 0], [2, 0, 3]]


# ----------------------------------------------------------------------------------------------------------------------
# Networks with branches


def gradients(network: nn.Module) -> dict[str, Tensor]:
    found = {name: weight.grad for name, weight in network.named_parameters() if weight.grad is not None}
    network.zero_grad()
    return found


@pytest.mark.parametrize("guided", [False, True])
def test_a_trunk_without_a_share_of_transitions_learns_flow_matching(guided: bool) -> None:
    """Of all samples, those with t > r too: v is that of flow matching, whatever transitions learn."""
    network = lively("c2i-test", depth=3, branch_depth=1, trunk_share=0.0)
    x, z, t, r, y = latent_batch()
    r = torch.where(torch.arange(len(t)) < 2, t, r)
    null = torch.full_like(y, network.config.num_classes) if guided else None
    both, still = (TrainingBatch(x, z, t, other, y, null_condition=null) for other in (r, t))
    average = lively("c2i-test") if guided else None
    objective = TransitionObjective(
        FLOW, velocity=BranchVelocity(1.0, 1 / 3), guidance=ModelGuidance() if guided else None
    )
    record = objective.evaluate(network, both, average)
    record.loss.backward()
    found = gradients(network)
    plain = replace(objective, velocity=None)
    flow = plain.evaluate(network, still, average)
    flow.loss.backward()
    expected = gradients(network)
    for name, gradient in expected.items():
        if not name.startswith(("transition_branch", "interval_embed")):
            torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6)
    assert any(gradient.any() for name, gradient in found.items() if name.startswith("transition_branch"))
    without = plain.evaluate(network, both, average)
    assert record.evaluations == without.evaluations + 4 / 3  # a third of the network, on four samples
    torch.testing.assert_close(record.residual, without.residual)
    torch.testing.assert_close(record.denoising, without.denoising)


def test_a_velocity_that_is_known_is_not_asked_for_again() -> None:
    network = Counting(lively("c2i-test", depth=3, branch_depth=1))
    x, z, t, r, y = latent_batch()
    target = Identity(derivative("one_sided"), along="velocity", velocity_share=0.5)
    known = TransitionObjective(FLOW, target=target, velocity=BranchVelocity(1e-12, 1 / 3))
    record = known.evaluate(network, TrainingBatch(x, z, t, r, y))
    assert network.calls == [(6, True), (6, False)]
    assert record.evaluations == pytest.approx(6 + 6 / 3 + 6)
    asked = replace(known, velocity=None).evaluate(network, TrainingBatch(x, z, t, r, y))
    torch.testing.assert_close(record.residual, asked.residual, rtol=1e-4, atol=1e-5)
    by_average = replace(known, ema_teacher=True).evaluate(network, TrainingBatch(x, z, t, r, y), ema_network=network)
    assert by_average.evaluations == pytest.approx(6 + 6 / 3 + 12)


def test_the_velocity_of_a_branch_weighs_as_much_as_is_said_and_spares_bad_samples() -> None:
    network = lively("c2i-test", depth=3, branch_depth=1)
    x, z, t, r, y = latent_batch()
    x[1, 0, 0, 0] = torch.nan
    objective = TransitionObjective(FLOW)
    losses = [
        replace(objective, velocity=None if weight == 0 else BranchVelocity(weight)).evaluate(
            network, TrainingBatch(x, z, t, r, y)
        )
        for weight in (0.0, 1.0, 2.0)
    ]
    assert all(loss.nonfinite == [1] for loss in losses)
    none, one, two = (loss.loss for loss in losses)
    torch.testing.assert_close(two - one, one - none)
    two.backward()
    assert all(gradient.isfinite().all() for gradient in gradients(network).values())


# ----------------------------------------------------------------------------------------------------------------------
# Wrapped networks


@pytest.fixture
def process_group(tmp_path: Path) -> Iterator[None]:
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("kind", ["central", "one_sided"])
def test_the_derivative_runs_through_distributed_data_parallel(process_group: None, kind: Any) -> None:
    x, z, t, r, y = latent_batch()
    objective = TransitionObjective(FLOW, target=Identity(derivative(kind)))
    network = lively("c2i-test")
    alone = objective.evaluate(network, TrainingBatch(x, z, t, r, y))
    wrapped = nn.parallel.DistributedDataParallel(network)
    together = objective.evaluate(wrapped, TrainingBatch(x, z, t, r, y))
    together.loss.backward()
    torch.testing.assert_close(together.loss, alone.loss)
    assert all(parameter.grad is not None for parameter in network.parameters())


# ----------------------------------------------------------------------------------------------------------------------
# A base that is followed


def test_a_base_that_is_followed_stands_for_the_data_and_guides() -> None:
    """Its velocity is the target where t = r, its own guidance is folded in, and its trajectory is that of df/dt."""
    x, z, t, r, y = latent_batch(6)
    r = t.clone()
    base, other = lively("c2i-test"), lively("c2i-test")
    for weight in other.parameters():
        weight.data.mul_(0.9)
    flow = TransitionObjective(FLOW, direction=False)
    batch = TrainingBatch(x, z, t, r, y, null_condition=torch.full_like(y, 10))
    assert flow.evaluate(base, batch, base=base).residual.max() < 1e-9
    assert flow.evaluate(base, batch).residual.min() > 0.1
    x_t = FLOW.interpolate(x, z, t)
    with torch.no_grad():
        v, null = base(x_t, t, t, y), base(x_t, t, t, torch.full_like(y, 10))
        f = other(x_t, t, t, y)
    guided = replace(flow, guidance=ModelGuidance(0.0, 3.0, 0.0, 1.0))
    record = guided.evaluate(other, batch, ema_network=other, base=base)
    expected = (f - (3 * v - 2 * null)).square().flatten(1).mean(1)
    torch.testing.assert_close(record.residual, expected, rtol=1e-4, atol=1e-5)
    assert record.evaluations == 6 * (1 + 1 + 2)
    # with data and noise that the velocity stands for, the path is the base's own: noise drawn otherwise is not met
    exact = TrainingBatch(*FLOW.decompose(x_t, v, t), t, t - 0.25, y)
    moving = TransitionObjective(FLOW, direction=False, target=Identity(derivative("central")))
    plain = moving.evaluate(other, exact)
    followed = moving.evaluate(other, replace(batch, r=t - 0.25), base=base)
    torch.testing.assert_close(followed.residual, plain.residual, rtol=1e-3, atol=1e-4)
