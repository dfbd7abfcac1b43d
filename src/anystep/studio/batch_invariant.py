"""Layers whose last bits depend on the batch, computed image by image: an image is then the same in any company.

On a CPU, products of matrices choose another algorithm for a few rows than for many, and attention to a padded caption
adds in another order than to the caption alone. Both are small parts of a network; all the rest is computed together.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence
from torch.overrides import TorchFunctionMode

from anystep.models.attention import EncodedCaption

FEW_ROWS = 16  # of one image in a product; from 4 on no difference was found in sizes from 16 to 3072


class BatchInvariant(TorchFunctionMode):
    """While it is entered, layers of this thread give the same bits for an image alone and in a batch.

    It is for networks of linear layers and attention whose masks are true where a caption is not padded, and padding
    is on the right. Convolutions are left as they are: decode image by image.
    """

    def __torch_function__(
        self, function: Any, types: Any, arguments: Sequence[Any] = (), options: dict[str, Any] | None = None
    ) -> Any:
        options = options or {}
        if function is functional.linear:
            return _linear(*arguments, **options)
        if function is functional.scaled_dot_product_attention and options.get("attn_mask") is not None:
            return _attention(*arguments, **options)
        return function(*arguments, **options)


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    rows = x[0].numel() // x.shape[-1] if len(x) else FEW_ROWS
    if len(x) == 1 or rows >= FEW_ROWS:
        return functional.linear(x, weight, bias)
    if torch.equal(x, x[:1].expand_as(x)):  # the times, and the empty caption, of all images
        return functional.linear(x[:1], weight, bias).expand(len(x), *[-1] * (x.ndim - 1))
    return torch.cat([functional.linear(row, weight, bias) for row in x.split(1)])


def _attention(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor, **options: Any) -> Tensor:
    """Attention to the keys that each image's mask (batch, 1, 1, keys) leaves, together for captions of one length."""
    lengths = attn_mask.flatten(1).sum(1)
    answer = torch.empty_like(query)
    for length in lengths.unique().tolist():
        these = lengths == length
        keys, values = (each[these][..., :length, :] for each in (key, value))
        answer[these] = functional.scaled_dot_product_attention(query[these], keys, values, **options)
    return answer


def separately(encode: Callable[..., Any]) -> Callable[..., Any]:
    """`encode_condition` of a network that makes keys and values of each caption as if it were alone."""

    def encoded(states: Tensor, mask: Tensor | None = None) -> Any:
        if mask is None:
            return encode(states, mask)
        lengths = mask.sum(1).tolist()
        alone = [encode(row[:, :length]) for row, length in zip(states.split(1), lengths, strict=True)]
        if not all(isinstance(each, EncodedCaption) for each in alone):
            return encode(states, mask)
        blocks = zip(*(each.keys_values for each in alone), strict=True)
        parts = (zip(*block, strict=True) for block in blocks)  # keys, and values, of all captions
        keys_values = tuple((_padded(keys), _padded(values)) for keys, values in parts)
        pooled = [each.pooled for each in alone if each.pooled is not None]
        return EncodedCaption(keys_values, mask, torch.cat(pooled) if pooled else None)

    return encoded


def _padded(parts: Sequence[Tensor]) -> Tensor:
    """Keys or values of captions of different lengths in one tensor, with zeros behind the shorter ones."""
    return pad_sequence([part[0] for part in parts], batch_first=True)
