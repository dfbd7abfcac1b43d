"""Embeddings of times."""

import pytest
import torch
from helpers import at_points, lively, text_inputs
from torch import nn

from anystep.objective import derivative
from anystep.objective.evaluation import BoundNetwork
from anystep.transport import make_transport


@pytest.mark.parametrize("fastest", [1.0, 20.0])
def test_time_embeddings_are_waves_up_to_the_fastest_frequency(fastest: float) -> None:
    embedding = lively("t2i-test", max_time_frequency=fastest).time_embed
    t = torch.tensor([0.3, 0.7])
    angles = t[:, None] * fastest * 10_000 ** -(torch.arange(128) / 128)
    expected = embedding.linear_1(torch.cat([angles.cos(), angles.sin()], 1))
    torch.testing.assert_close(embedding(t), embedding.linear_2(nn.functional.silu(expected)), rtol=1e-5, atol=1e-5)


def test_higher_time_frequencies_leave_the_finite_difference_exact() -> None:
    """At 20 radians a unit of time an eps of 0.005 moves the fastest wave by a tenth of a radian."""
    network, transport = lively("t2i-test", max_time_frequency=20.0), make_transport("ot_fm")
    x, t, r, caption = text_inputs()
    z, rows = torch.randn(x.shape, generator=torch.Generator().manual_seed(1)), torch.arange(2)
    evaluate = BoundNetwork(network, transport, caption)
    value = evaluate(transport.interpolate(x, z, t), t, r, rows).detach()
    at = at_points(transport, x, z, t, r, value)
    exact, central = (derivative(kind)(evaluate, at) for kind in ("forward_mode", "central"))
    assert (central - exact).norm() < 0.01 * exact.norm()


def test_times_survive_a_bfloat16_network() -> None:
    network = lively("t2i-test")
    t, r = torch.tensor([0.5, 0.505]), torch.tensor([0.2, 0.2])
    fine = network.embed_times(t, r)
    network.to(torch.bfloat16)
    for before, after in zip(fine, network.embed_times(t, r), strict=True):
        change, kept = before[1] - before[0], after[1] - after[0]
        assert after.dtype == torch.float32
        # only the weights were rounded, 2^-9 each; a time rounded to bfloat16 would lose a quarter of the change
        assert (kept - change).norm() <= 0.03 * change.norm()
