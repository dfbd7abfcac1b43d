"""Transformer blocks, the final layer, and what all blocks of a forward pass get."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from anystep.models.attention import CaptionAttention, IntervalAttention
from anystep.models.layers import Float32Linear, Modulation, SwiGLU, Tokens, Vector, compute_dtype, modulate, spread
from anystep.models.rotary import Rope
from anystep.packing import Packing


class TransitionBlock(nn.Module):
    """Self-attention, attention to the caption if there is one, and SwiGLU, each shifted, scaled and gated."""

    def __init__(
        self, width: int, heads: int, hidden: int, rank: int, text: bool, interval_aware: bool, qk_norm: bool
    ) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.attn = IntervalAttention(width, heads, qk_norm, interval_aware)
        self.caption_attn = CaptionAttention(width, heads, qk_norm) if text else None
        self.mlp = SwiGLU(width, hidden, width)
        self.modulation = Modulation(width, rank, 9 if text else 6)

    def forward(
        self,
        hidden_states: Tokens,
        c: Vector,
        interval: Vector,
        rope: Rope,
        caption: Tensor | tuple[Tensor, Tensor] | None = None,
        mask: Bool[Tensor, "images length"] | None = None,
        packing: Packing | None = None,
        kv_index: Int[Tensor, " keys"] | None = None,
    ) -> Tokens:
        x = hidden_states  # the name by which caching of diffusers asks for it
        dtype = compute_dtype(self.mlp.gate) or x.dtype  # the stream x and its modulation stay in float32
        modulation = spread(self.modulation(c), packing)  # (B, 1, 6 D) or (B, 1, 9 D)
        parts = modulation.chunk(6 if self.caption_attn is None else 9, dim=-1)  # (B, 1, D) each
        shift, scale, gate = parts[:3]
        x = x + gate * self.attn(modulate(self.norm(x), shift, scale).to(dtype), interval, rope, packing, kv_index)
        if self.caption_attn is not None:
            shift, scale, gate = parts[3:6]
            y = modulate(self.norm(x), shift, scale).to(dtype)
            assert caption is not None
            keys, values = caption if isinstance(caption, tuple) else self.caption_attn.keys_values(caption)
            x = x + gate * self.caption_attn(y, keys, values, mask, rope, packing)
        shift, scale, gate = parts[-3:]
        return x + gate * self.mlp(modulate(self.norm(x), shift, scale).to(dtype))


class FinalLayer(nn.Module):
    """Norm, modulation and the linear map to the latent pixels of a patch, in float32."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.modulation = Modulation(width, width // 2, 2)
        self.linear = Float32Linear(width, out)

    def forward(self, x: Tokens, c: Vector, packing: Packing | None = None) -> Float[Tensor, "batch tokens out"]:
        shift, scale = spread(self.modulation(c), packing).chunk(2, dim=-1)
        return self.linear(modulate(self.norm(x), shift, scale))


@dataclass(frozen=True)
class BlockInputs:
    """What blocks get beside their tokens, as `TransitionBlock.forward` takes it, with one caption for each block."""

    c: Vector
    interval: Vector
    rope: Rope
    captions: Sequence[Any]
    mask: Tensor | None
    packing: Packing | None
    kv_index: Tensor | None

    @property
    def batch_dim(self) -> int:
        """The dimension of (batch, tokens, width) along which images follow each other."""
        return 0 if self.packing is None else 1

    def rows(self, images: Int[Tensor, " chosen"]) -> Int[Tensor, " rows"]:
        """The indices of these images along `batch_dim`."""
        if self.packing is None:
            return images
        return torch.isin(self.packing.index_on(images.device), images).nonzero()[:, 0]

    def select(self, images: Int[Tensor, " chosen"]) -> "BlockInputs":
        """The inputs of these images alone, in ascending order."""
        captions = self.captions
        if captions and isinstance(captions[0], Tensor):  # one projected caption for all blocks
            captions = [captions[0][images]] * len(captions)
        else:
            captions = [None if pair is None else (pair[0][images], pair[1][images]) for pair in captions]
        rope, packing = self.rope, self.packing
        if packing is not None:
            rows = self.rows(images)
            rope = Rope(rope.queries[rows], rope.unscaled[rows])
            packing = packing.chosen([int(image) for image in images])
        mask = None if self.mask is None else self.mask[images]
        return BlockInputs(self.c[images], self.interval[images], rope, captions, mask, packing, self.kv_index)

    def gather(self, tokens: Tokens, images: Int[Tensor, " chosen"]) -> Tensor:
        """The tokens of these images."""
        return tokens.index_select(self.batch_dim, self.rows(images))

    def scatter(self, part: Tensor, images: Int[Tensor, " chosen"], tokens: Tokens) -> Tensor:
        """Values of these images in a tensor of the whole batch `tokens`, with zeros for all others."""
        if images.shape[0] == self.c.shape[0]:
            return part
        whole = part.new_zeros(*tokens.shape[:2], part.shape[-1])
        return whole.index_copy(self.batch_dim, self.rows(images), part)
