"""Downsampled keys and values: which tokens give them, and that nothing else changes."""

import math
from itertools import pairwise

import pytest
import torch
from helpers import lively
from hypothesis import given
from hypothesis import strategies as st

from anystep.models.kv_downsampling import kv_tokens
from anystep.models.rotary import rope


@given(rows=st.integers(1, 60), columns=st.integers(1, 60), side=st.integers(2, 20))
def test_kv_tokens_lie_evenly_over_the_grid(rows: int, columns: int, side: int) -> None:
    kept = kv_tokens(rows, columns, side)
    if kept is None:
        assert max(rows, columns) <= side
        return
    found = [sorted(set(places.tolist())) for places in (kept // columns, kept % columns)]
    assert max(map(len, found)) == side
    assert len(kept) == len(set(kept.tolist())) == len(found[0]) * len(found[1])
    stride = max(rows, columns) / side
    for length, places in zip((rows, columns), found, strict=True):
        assert len(places) == math.ceil(length / stride)
        assert all(after - before < stride + 1 for before, after in pairwise(places))
        assert max(places[0], length - 1 - places[-1]) <= stride / 2


def test_a_token_attends_to_itself_and_the_kept_ones() -> None:
    made = lively("c2i-test", patch_size=1, depth=1)
    x = torch.randn(1, 4, 6, 4, requires_grad=True)
    out = made(x, torch.tensor([0.5]), torch.tensor([0.2]), torch.tensor([1]), key_grid=3)
    out[0, :, 0, 0].sum().backward()
    attended = x.grad.abs().sum((0, 1)) > 0  # type: ignore[union-attr]
    expected = torch.zeros(6, 4, dtype=torch.bool)
    expected[1::2, 1::2] = True
    expected[0, 0] = True
    assert torch.equal(attended, expected)


def test_keys_stay_where_they_are() -> None:
    """Attention to the kept tokens of all is attention to all of them with the others masked."""
    made = lively("c2i-test", patch_size=1, depth=1)
    attention = made.blocks[0].attn
    x, interval = torch.randn(2, 24, made.config.hidden_size), torch.randn(2, made.config.hidden_size)
    rotation, kept = rope([made.rope_angles(6, 4)], x.device), kv_tokens(6, 4, 3)
    mask = torch.zeros(2, 24, dtype=torch.bool)
    mask[:, kept] = True
    processor = attention.processor
    with torch.no_grad():
        few = attention(x, interval, rotation, None, kept)
        attention.processor = lambda q, k, v: processor(q, k, v, mask)
        masked = attention(x, interval, rotation)
    torch.testing.assert_close(few, masked, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("size", [(8, 8), (4, 8)])
def test_a_grid_as_large_as_the_image_changes_nothing(size: tuple[int, int]) -> None:
    made = lively("c2i-test")
    x, t, label = torch.randn(2, 4, *size), torch.rand(2), torch.tensor([1, 2])
    with torch.no_grad():
        whole = made(x, t, t / 2, label)
        assert torch.equal(made(x, t, t / 2, label, key_grid=4), whole)
        assert not torch.equal(made(x, t, t / 2, label, key_grid=2), whole)
