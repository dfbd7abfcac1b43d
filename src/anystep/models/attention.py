"""Attention of the transformer: among the tokens of an image, and from these to the caption."""

from dataclasses import dataclass

import torch
from diffusers.models.attention import AttentionModuleMixin
from diffusers.models.attention_dispatch import dispatch_attention_fn
from jaxtyping import Float, Int
from torch import Tensor, nn

from anystep.models.layers import Tokens, Vector, spread
from anystep.models.rotary import Rope, rotate
from anystep.packing import Packing


class AttentionProcessor:
    """Scaled dot-product attention through diffusers' dispatcher, so that `set_attention_backend` works."""

    _attention_backend = None
    _parallel_config = None

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        if mask is not None:  # (batch, length) -> (batch, 1, 1, length)
            mask = mask[:, None, None, :]
        if q.device.type == "cpu" and q.dtype == torch.bfloat16:  # whose kernels for it are slower, backward five times
            with torch.autocast("cpu", enabled=False):
                return self._attend(q.float(), k.float(), v.float(), mask).to(q.dtype)
        return self._attend(q, k, v, mask)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        return dispatch_attention_fn(
            q, k, v, attn_mask=mask, backend=self._attention_backend, parallel_config=self._parallel_config
        ).flatten(2)


class Attention(nn.Module, AttentionModuleMixin):
    """Projections and norms that both kinds of attention share."""

    _default_processor_cls = AttentionProcessor
    _available_processors = [AttentionProcessor]
    _supports_qkv_fusion = False
    processor: AttentionProcessor

    def __init__(self, width: int, heads: int, qk_norm: bool) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(width, width)
        self.to_k = nn.Linear(width, width)
        self.to_v = nn.Linear(width, width)
        self.to_out = nn.Linear(width, width)
        norm = (lambda: nn.LayerNorm(width // heads, eps=1e-5)) if qk_norm else nn.Identity
        self.norm_q, self.norm_k = norm(), norm()
        self.processor = AttentionProcessor()

    def split(self, x: Tensor) -> Float[Tensor, "batch tokens heads head_dim"]:
        """x, split into heads."""
        return x.unflatten(-1, (self.heads, -1))

    @staticmethod
    def normed(norm: nn.Module, x: Tensor) -> Tensor:
        """x, normalised in the dtype of the norm's weights, which layerwise casting leaves unchanged."""
        return norm(x.to(norm.weight.dtype) if isinstance(norm, nn.LayerNorm) else x)


class IntervalAttention(Attention):
    """Self-attention whose queries, keys and values also depend on the interval (section 4.1)."""

    def __init__(self, width: int, heads: int, qk_norm: bool, interval_aware: bool) -> None:
        super().__init__(width, heads, qk_norm)
        self.interval_qkv = nn.Linear(width, 3 * width, bias=False) if interval_aware else None

    def forward(
        self,
        x: Tokens,
        interval: Vector,
        rope: Rope,
        packing: Packing | None = None,
        kv_index: Int[Tensor, " keys"] | None = None,
    ) -> Tokens:
        """The output of attention; `kv_index` are the tokens that give keys and values, where not all do."""
        kv_input, kv_rope = (x, rope.unscaled) if kv_index is None else (x[:, kv_index], rope.unscaled[kv_index])
        q, k, v = self.to_q(x), self.to_k(kv_input), self.to_v(kv_input)  # (B, N, D), 2 x (B, K, D)
        if self.interval_qkv is not None:
            dq, dk, dv = spread(self.interval_qkv(interval.to(x.dtype)), packing).chunk(3, dim=-1)  # 3 x (B, 1, D)
            q, k, v = q + dq, k + dk, v + dv
        q, k, v = (self.split(part) for part in (q, k, v))  # (B, N, heads, head_dim), 2 x (B, K, heads, head_dim)
        q, k = self.normed(self.norm_q, q), self.normed(self.norm_k, k)
        q, k = rotate(q, rope.queries).to(v.dtype), rotate(k, kv_rope).to(v.dtype)
        if packing is not None:
            return self.to_out(packing.attend(self.processor, q, k, v))
        return self.to_out(self.processor(q, k, v))


class CaptionAttention(Attention):
    """Cross-attention to the caption. Queries are normalised and rotated, keys only normalised."""

    def keys_values(self, caption: Tokens) -> tuple[Tensor, Tensor]:
        """Keys and values of a projected caption, (batch, length, heads, head_dim) each."""
        k, v = self.split(self.to_k(caption)), self.split(self.to_v(caption))
        return self.normed(self.norm_k, k).to(v.dtype), v

    def forward(
        self, x: Tokens, k: Tensor, v: Tensor, mask: Tensor | None, rope: Rope, packing: Packing | None = None
    ) -> Tokens:
        q = rotate(self.normed(self.norm_q, self.split(self.to_q(x))), rope.unscaled).to(v.dtype)
        if packing is not None:
            return self.to_out(packing.attend_to(self.processor, q, k, v, mask))
        return self.to_out(self.processor(q, k, v, mask))


@dataclass(frozen=True)
class EncodedCaption:
    """What does not change from step to step: keys and values of every block, for one batch of captions."""

    keys_values: tuple[tuple[Tensor, Tensor], ...]  # (batch, length, heads, head_dim) twice, for each block
    mask: Tensor | None
    pooled: Vector | None = None  # what the whole of each caption adds to c, where the network has a `caption_pool`
