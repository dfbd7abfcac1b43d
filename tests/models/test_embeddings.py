"""Embeddings of times, of places on the canvas, and of whole captions."""

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
    network = lively("t2i-test", position_embed=True, caption_pool=True)
    t, r = torch.tensor([0.5, 0.505]), torch.tensor([0.2, 0.2])
    fine = network.embed_times(t, r)
    network.to(torch.bfloat16)
    for before, after in zip(fine, network.embed_times(t, r), strict=True):
        change, kept = before[1] - before[0], after[1] - after[0]
        assert after.dtype == torch.float32
        # only the weights were rounded, 2^-9 each; a time rounded to bfloat16 would lose a quarter of the change
        assert (kept - change).norm() <= 0.03 * change.norm()
    assert network(*(each.bfloat16() for each in text_inputs())).isfinite().all()


def test_places_are_measured_from_the_middle_in_shorter_sides() -> None:
    embedding = lively("t2i-test", position_embed=True).position_embedding
    small, large, wide = (embedding([grid], torch.device("cpu")).view(*grid, -1) for grid in ((2, 2), (6, 6), (2, 4)))
    torch.testing.assert_close(large[1::3, 1::3], small)  # of three times the side, at the middles of the same quarters
    torch.testing.assert_close(wide[:, 1:3], small)
    assert (wide[:, 0] - wide[:, 3]).norm(dim=-1).min() > 0.1  # as far from the middle, on other sides
    packed = embedding([(2, 4), (6, 6)], torch.device("cpu"))
    assert torch.equal(packed, torch.cat([wide.flatten(0, 1), large.flatten(0, 1)]))


def test_whole_captions_are_read_without_their_padding() -> None:
    network = lively("t2i-test", caption_pool=True)
    x, t, r, caption = text_inputs()
    mask = torch.arange(caption.shape[1]) < torch.tensor([caption.shape[1], 2])[:, None]
    whole = network.pool_caption(caption, mask)
    torch.testing.assert_close(whole[1:], network.pool_caption(caption[1:, :2], None))
    assert (whole[1] - network.pool_caption(caption, mask, mask_text=False)[1]).norm() > 0.1
    encoded = network.encode_condition(caption, mask)
    torch.testing.assert_close(network(x, t, r, encoded), network(x, t, r, caption, mask))
    silent = network.encode_condition(caption, mask)
    object.__setattr__(silent, "pooled", torch.zeros_like(whole))
    assert (network(x, t, r, silent) - network(x, t, r, encoded)).norm() > 0.01
