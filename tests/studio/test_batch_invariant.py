"""Layers give the same bits for an image alone and in any company."""

import hypothesis.strategies as st
import torch
from helpers import lively
from hypothesis import given
from torch.nn.functional import linear, scaled_dot_product_attention

from anystep.studio.batch_invariant import BatchInvariant, separately


@given(
    rows=st.sampled_from([(), (1,), (2,), (3,), (5,), (16,), (64,)]), images=st.sampled_from([2, 5, 16]),
    width=st.sampled_from([16, 96, 192]), out=st.sampled_from([8, 64, 576]), alike=st.booleans(),
)  # fmt: skip
def test_a_product_does_not_depend_on_the_batch(
    rows: tuple[int, ...], images: int, width: int, out: int, alike: bool
) -> None:
    generator = torch.Generator().manual_seed(width + out)
    weight, bias = torch.randn(out, width, generator=generator), torch.randn(out, generator=generator)
    x = torch.randn(images, *rows, width, generator=generator)
    x = x[:1].expand_as(x) if alike else x
    with BatchInvariant():
        together = linear(x, weight, bias)
    assert torch.equal(together, torch.cat([linear(each, weight, bias) for each in x.split(1)]))


@given(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=6))
def test_attention_to_a_padded_caption_is_that_to_the_caption(lengths: list[int]) -> None:
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(len(lengths), 2, 16, 8, generator=generator)
    k, v = (torch.randn(len(lengths), 2, max(lengths), 8, generator=generator) for _ in range(2))
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None])[:, None, None]
    with BatchInvariant():
        together = scaled_dot_product_attention(q, k, v, attn_mask=mask)
    for row, length in enumerate(lengths):
        one = slice(row, row + 1)
        alone = scaled_dot_product_attention(q[one], k[one, :, :length], v[one, :, :length])
        assert torch.equal(together[one], alone)


def test_what_is_made_of_a_caption_does_not_depend_on_others() -> None:
    network = lively("t2i-test", caption_pool=True)
    states = torch.randn(3, 7, 16, generator=torch.Generator().manual_seed(0))
    mask = torch.arange(7) < torch.tensor([3, 7, 5])[:, None]
    encoded = separately(network.encode_condition)(states, mask)
    for row, length in enumerate([3, 7, 5]):
        alone = network.encode_condition(states[row : row + 1, :length])
        for (keys, values), (own_keys, own_values) in zip(encoded.keys_values, alone.keys_values, strict=True):
            assert torch.equal(keys[row, :length], own_keys[0])
            assert torch.equal(values[row, :length], own_values[0])
        assert torch.equal(encoded.pooled[row], alone.pooled[0])
