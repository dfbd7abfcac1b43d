"""Attention among tokens and to captions."""

import torch
from helpers import lively, text_inputs

from anystep.models.attention import AttentionProcessor


def test_an_encoded_caption_stands_for_the_caption() -> None:
    network, (x, t, r, caption) = lively("t2i-test"), text_inputs()
    mask = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    encoded = network.encode_condition(caption, mask)
    assert torch.equal(network(x, t, r, encoded), network(x, t, r, caption, mask))


def test_padding_is_masked_or_for_released_weights_seen() -> None:
    x, t, r, caption = text_inputs(1)
    padded = torch.cat([caption, torch.randn(1, 3, 16)], dim=1)
    mask = torch.arange(8)[None] < 5
    masked, seen = lively("t2i-test"), lively("t2i-test", mask_text=False)
    torch.testing.assert_close(masked(x, t, r, padded, mask), masked(x, t, r, caption), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(seen(x, t, r, padded, mask), seen(x, t, r, caption), atol=1e-3)


def test_an_image_does_not_depend_on_its_batch_mates() -> None:
    network, (x, t, r, caption) = lively("t2i-test"), text_inputs()
    together = network(x, t, r, caption)
    alone = network(x[1:], t[1:], r[1:], caption[1:])
    torch.testing.assert_close(together[1:], alone, rtol=1e-5, atol=1e-5)


def test_the_interval_reaches_the_network() -> None:
    network, (x, t, r, caption) = lively("t2i-test"), text_inputs()
    assert not torch.allclose(network(x, t, r, caption), network(x, t, r - 0.2, caption), atol=1e-3)


def test_attention_of_bfloat16_computes_in_float32_on_a_cpu() -> None:
    q, k, v = torch.randn(3, 2, 40, 4, 16).bfloat16().requires_grad_().unbind()
    wide = [each.detach().float().requires_grad_() for each in (q, k, v)]
    mask = torch.arange(40) < torch.tensor([[40], [17]])
    expected = AttentionProcessor()(*wide, mask)
    with torch.autocast("cpu", torch.bfloat16):
        found = AttentionProcessor()(q, k, v, mask)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, expected.bfloat16())
    found, expected = (torch.autograd.grad(each.sum(), of) for each, of in ((found, (q, k, v)), (expected, wide)))
    assert all(torch.equal(one, other.bfloat16()) for one, other in zip(found, expected, strict=True))


def test_attention_backends_agree() -> None:
    network = lively("t2i-test")
    expected = network(*text_inputs())
    network.set_attention_backend("_native_math")
    try:
        torch.testing.assert_close(network(*text_inputs()), expected, rtol=1e-5, atol=1e-5)
    finally:
        network.set_attention_backend("native")  # diffusers makes the last choice everybody's
