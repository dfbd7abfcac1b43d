# Copyright 2026 The anystep authors and The HuggingFace Team. All rights reserved.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ...configuration_utils import ConfigMixin, register_to_config
from ...loaders import PeftAdapterMixin
from ...utils import apply_lora_scale, logging
from ..attention import AttentionMixin, AttentionModuleMixin
from ..attention_dispatch import dispatch_attention_fn
from ..modeling_outputs import Transformer2DModelOutput
from ..modeling_utils import ModelMixin


logger = logging.get_logger(__name__)  # pylint: disable=invalid-name


class TransitionTimeEmbedding(nn.Module):
    """Sinusoids of a time, cosines first, through a two-layer perceptron."""

    def __init__(self, dim: int, max_frequency: float = 1.0, frequencies: int = 128, max_period: float = 10000.0):
        super().__init__()
        self.max_frequency, self.frequencies, self.max_period = max_frequency, frequencies, max_period
        self.linear_1 = nn.Linear(2 * frequencies, dim)
        self.linear_2 = nn.Linear(dim, dim)

    def forward(self, time: torch.Tensor) -> torch.Tensor:
        exponents = torch.arange(self.frequencies, dtype=torch.float32, device=time.device) / self.frequencies
        angles = time.float()[:, None] * (self.max_frequency * torch.exp(-math.log(self.max_period) * exponents))
        wave = torch.cat([angles.cos(), angles.sin()], dim=-1).to(self.linear_1.weight.dtype)
        return self.linear_2(F.silu(self.linear_1(wave)))


class TransitionSwiGLU(nn.Module):
    """`down(silu(gate(x)) * up(x))`: the feed-forward layer, and the bottleneck that modulation comes from."""

    def __init__(self, dim: int, hidden_dim: int, out_dim: int):
        super().__init__()
        self.gate = nn.Linear(dim, hidden_dim)
        self.up = nn.Linear(dim, hidden_dim)
        self.down = nn.Linear(hidden_dim, out_dim)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.down(F.silu(self.gate(hidden_states)) * self.up(hidden_states))


class TransitionCaptionProjection(nn.Module):
    """States of a text encoder, normalised and projected to the width of the transformer."""

    def __init__(self, text_dim: int, dim: int):
        super().__init__()
        self.norm = nn.LayerNorm(text_dim, eps=1e-5)
        self.mlp = TransitionSwiGLU(text_dim, 4 * dim, dim)

    def forward(self, encoder_hidden_states: torch.Tensor) -> torch.Tensor:
        return self.mlp(self.norm(encoder_hidden_states))


class TransitionCaptionPool(nn.Module):
    """The mean of a caption's states through a perceptron, which modulates the blocks as a class does."""

    def __init__(self, text_dim: int, dim: int):
        super().__init__()
        self.norm = nn.LayerNorm(text_dim, eps=1e-5)
        self.linear_1 = nn.Linear(text_dim, dim)
        self.linear_2 = nn.Linear(dim, dim)

    def forward(self, encoder_hidden_states: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        states = encoder_hidden_states.to(self.linear_1.weight.dtype)
        share = torch.ones_like(states[..., :1]) if mask is None else mask[..., None].to(states.dtype)
        mean = (states * share).sum(1) / share.sum(1).clamp(min=1)
        return self.linear_2(F.silu(self.linear_1(self.norm(mean))))


class TransitionPositionEmbedding(nn.Module):
    """
    Where on the canvas a token is, from the middle in shorter sides: products of sinusoids of its row and column,
    through a linear map.
    """

    turns = (0.5, 1.0, 2.0, 4.0)

    def __init__(self, dim: int):
        super().__init__()
        self.linear = nn.Linear((1 + 2 * len(self.turns)) ** 2, dim, bias=False)

    def _waves(self, side: int, shorter: int, device: torch.device) -> torch.Tensor:
        places = (torch.arange(side, dtype=torch.float32, device=device) - (side - 1) / 2) / shorter
        angles = 2 * math.pi * places[:, None] * torch.tensor(self.turns, device=device)
        return torch.cat([torch.ones_like(places)[:, None], angles.cos(), angles.sin()], dim=1)

    def forward(self, rows: int, columns: int) -> torch.Tensor:
        weight = self.linear.weight
        down, across = (self._waves(side, min(rows, columns), weight.device) for side in (rows, columns))
        waves = torch.einsum("rp,cq->rcpq", down, across).flatten(2).flatten(0, 1)
        return self.linear(waves.to(weight.dtype))


def apply_rotary_emb(hidden_states: torch.Tensor, rotary_emb: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Rotates interleaved pairs of channels of (batch, tokens, heads, channels)."""
    cos, sin = (each[:, None] for each in rotary_emb)
    even, odd = hidden_states.float().unflatten(-1, (-1, 2)).unbind(-1)
    rotated = torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1)
    return rotated.flatten(-2).to(hidden_states.dtype)


class TransitionAttnProcessor:
    """Attention of tokens to each other, or to the caption, through the attention dispatcher."""

    _attention_backend = None
    _parallel_config = None

    def __call__(
        self,
        attn: "TransitionAttention",
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        interval_emb: torch.Tensor | None = None,
        rotary_emb: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> torch.Tensor:
        is_cross_attention = encoder_hidden_states is not None
        source = encoder_hidden_states if is_cross_attention else hidden_states
        query, key, value = attn.to_q(hidden_states), attn.to_k(source), attn.to_v(source)
        if attn.interval_qkv is not None:
            shifts = attn.interval_qkv(interval_emb.to(hidden_states.dtype))[:, None].chunk(3, dim=-1)
            query, key, value = query + shifts[0], key + shifts[1], value + shifts[2]
        query, key, value = (each.unflatten(-1, (attn.heads, -1)) for each in (query, key, value))
        query, key = attn.norm_q(query), attn.norm_k(key)
        query = apply_rotary_emb(query, rotary_emb)
        if not is_cross_attention:  # tokens of a caption have no place in the image
            key = apply_rotary_emb(key, rotary_emb)
        if attention_mask is not None:
            attention_mask = attention_mask[:, None, None, :]
        hidden_states = dispatch_attention_fn(
            query.to(value.dtype),
            key.to(value.dtype),
            value,
            attn_mask=attention_mask,
            backend=self._attention_backend,
            parallel_config=self._parallel_config,
        )
        return attn.to_out(hidden_states.flatten(2))


class TransitionAttention(nn.Module, AttentionModuleMixin):
    """
    Attention with normalised queries and keys; with `interval_aware`, queries, keys and values also depend on the
    interval that the transition spans.
    """

    _default_processor_cls = TransitionAttnProcessor
    _available_processors = [TransitionAttnProcessor]
    _supports_qkv_fusion = False

    def __init__(self, dim: int, heads: int, qk_norm: bool, interval_aware: bool):
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(dim, dim)
        self.to_k = nn.Linear(dim, dim)
        self.to_v = nn.Linear(dim, dim)
        self.to_out = nn.Linear(dim, dim)
        self.norm_q = nn.LayerNorm(dim // heads, eps=1e-5) if qk_norm else nn.Identity()
        self.norm_k = nn.LayerNorm(dim // heads, eps=1e-5) if qk_norm else nn.Identity()
        self.interval_qkv = nn.Linear(dim, 3 * dim, bias=False) if interval_aware else None
        self.set_processor(TransitionAttnProcessor())

    def forward(self, hidden_states: torch.Tensor, **kwargs) -> torch.Tensor:
        return self.processor(self, hidden_states, **kwargs)


class TransitionTransformerBlock(nn.Module):
    """Self-attention, cross-attention to the caption, and feed-forward, each shifted, scaled and gated."""

    def __init__(
        self,
        dim: int,
        heads: int,
        hidden_dim: int,
        modulation_dim: int,
        cross_attention: bool,
        interval_attention: bool,
        qk_norm: bool,
    ):
        super().__init__()
        self.norm = nn.LayerNorm(dim, eps=1e-6, elementwise_affine=False)
        self.attn = TransitionAttention(dim, heads, qk_norm, interval_attention)
        self.caption_attn = TransitionAttention(dim, heads, qk_norm, False) if cross_attention else None
        self.mlp = TransitionSwiGLU(dim, hidden_dim, dim)
        self.modulation = TransitionSwiGLU(dim, modulation_dim, (9 if cross_attention else 6) * dim)

    def forward(
        self,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None,
        encoder_attention_mask: torch.Tensor | None,
        temb: torch.Tensor,
        interval_emb: torch.Tensor,
        rotary_emb: tuple[torch.Tensor, torch.Tensor],
    ) -> torch.Tensor:
        dtype = self.mlp.gate.weight.dtype
        parts = self.modulation(temb)[:, None].chunk(6 if self.caption_attn is None else 9, dim=-1)

        # 1. Self-attention
        shift, scale, gate = parts[:3]
        normed = (self.norm(hidden_states) * (1 + scale) + shift).to(dtype)
        hidden_states = hidden_states + gate * self.attn(normed, interval_emb=interval_emb, rotary_emb=rotary_emb)

        # 2. Cross-attention
        if self.caption_attn is not None:
            shift, scale, gate = parts[3:6]
            normed = (self.norm(hidden_states) * (1 + scale) + shift).to(dtype)
            hidden_states = hidden_states + gate * self.caption_attn(
                normed,
                encoder_hidden_states=encoder_hidden_states,
                attention_mask=encoder_attention_mask,
                rotary_emb=rotary_emb,
            )

        # 3. Feed-forward
        shift, scale, gate = parts[-3:]
        normed = (self.norm(hidden_states) * (1 + scale) + shift).to(dtype)
        return hidden_states + gate * self.mlp(normed)


class TransitionFinalLayer(nn.Module):
    """Norm, modulation and the linear map to the latent pixels of a patch."""

    def __init__(self, dim: int, out_dim: int):
        super().__init__()
        self.norm = nn.LayerNorm(dim, eps=1e-6, elementwise_affine=False)
        self.modulation = TransitionSwiGLU(dim, dim // 2, 2 * dim)
        self.linear = nn.Linear(dim, out_dim)

    def forward(self, hidden_states: torch.Tensor, temb: torch.Tensor) -> torch.Tensor:
        shift, scale = self.modulation(temb)[:, None].chunk(2, dim=-1)
        return self.linear(self.norm(hidden_states) * (1 + scale) + shift)


class TransitionTransformer2DModel(ModelMixin, AttentionMixin, ConfigMixin, PeftAdapterMixin):
    r"""
    The transformer of [Transition Models](https://huggingface.co/papers/2509.04394), which is given the time it is at
    and the time it predicts the transition to.

    Give one of `text_width` and `num_classes`.

    Parameters:
        in_channels (`int`, defaults to 4): Channels of a latent.
        patch_size (`int`, defaults to 2): Latent pixels along one side of a token.
        sample_size (`int`, defaults to 32): Side of the latents in training.
        hidden_size (`int`, defaults to 1152): Width of a token.
        depth (`int`, defaults to 28): Number of blocks.
        num_heads (`int`, defaults to 16): Attention heads.
        mlp_ratio (`float`, defaults to 4.0): Width of the feed-forward layer over that of a token, before SwiGLU's 2/3.
        text_width (`int`, *optional*): Width of the states of the text encoder.
        num_classes (`int`, *optional*): Number of classes; the label after the last stands for none.
        class_dropout_prob (`float`, defaults to 0.1): Above 0 the label for no class exists.
        modulation_rank (`int`, *optional*): Width of the bottleneck of modulation, `(hidden_size // 4) * 3` if None.
        interval_condition (`str`, defaults to `"t-r"`): What the second time embedding is given.
        shared_time_embedder (`bool`, defaults to `False`): Whether both time embeddings are one.
        interval_attention (`bool`, defaults to `True`): Whether queries, keys and values depend on the interval.
        qk_norm (`bool`, defaults to `True`): Whether queries and keys are normalised.
        rope_grid (`str`, defaults to `"row_major"`):
            `"row_major"`, or `"reference"` for the order of positions that the released weights were trained with. They
            agree on squares.
        mask_text (`bool`, defaults to `True`):
            Whether the network was trained with padding of captions masked. Pipelines read it; `forward` follows the
            mask that it is given.
        max_time_frequency (`float`, defaults to 1.0): The highest frequency of the time embeddings.
        guidance_embed (`bool`, defaults to `False`):
            Whether the network is given a guidance scale, and answers as if guided by it in one evaluation.
        position_embed (`bool`, defaults to `False`): Whether tokens are told where on the canvas they are.
        caption_pool (`bool`, defaults to `False`): Whether the mean of a caption's states modulates the blocks.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ["TransitionTransformerBlock"]
    _repeated_blocks = ["TransitionTransformerBlock"]
    _skip_layerwise_casting_patterns = [
        "patch_embed",
        "time_embed",
        "interval_embed",
        "guidance_embedding",
        "position_embedding",
        "caption_pooling",
        "norm",
        "modulation",
    ]
    _keep_in_fp32_modules = [
        "time_embed",
        "interval_embed",
        "guidance_embedding",
        "position_embedding",
        "caption_pooling",
        "patch_embed",
        "modulation",
        "final_layer",
    ]

    @register_to_config
    def __init__(
        self,
        in_channels: int = 4,
        patch_size: int = 2,
        sample_size: int = 32,
        hidden_size: int = 1152,
        depth: int = 28,
        num_heads: int = 16,
        mlp_ratio: float = 4.0,
        text_width: int | None = None,
        num_classes: int | None = None,
        class_dropout_prob: float = 0.1,
        modulation_rank: int | None = None,
        interval_condition: str = "t-r",
        shared_time_embedder: bool = False,
        interval_attention: bool = True,
        qk_norm: bool = True,
        rope_grid: str = "row_major",
        mask_text: bool = True,
        max_time_frequency: float = 1.0,
        guidance_embed: bool = False,
        position_embed: bool = False,
        caption_pool: bool = False,
    ):
        super().__init__()
        if (text_width is None) == (num_classes is None):
            raise ValueError("Give one of `text_width` and `num_classes`.")
        dim, out_dim = hidden_size, in_channels * patch_size**2
        self.patch_embed = nn.Linear(out_dim, dim)
        self.time_embed = TransitionTimeEmbedding(dim, max_time_frequency)
        self.interval_embed = None if shared_time_embedder else TransitionTimeEmbedding(dim, max_time_frequency)
        self.guidance_embedding = TransitionTimeEmbedding(dim) if guidance_embed else None
        self.caption_projection = None if text_width is None else TransitionCaptionProjection(text_width, dim)
        self.caption_pooling = TransitionCaptionPool(text_width, dim) if caption_pool else None
        self.position_embedding = TransitionPositionEmbedding(dim) if position_embed else None
        self.class_embed = (
            None if num_classes is None else nn.Embedding(num_classes + int(class_dropout_prob > 0), dim)
        )
        self.blocks = nn.ModuleList(
            TransitionTransformerBlock(
                dim,
                num_heads,
                int(dim * mlp_ratio) * 2 // 3,
                dim // 4 * 3 if modulation_rank is None else modulation_rank,
                text_width is not None,
                interval_attention,
                qk_norm,
            )
            for _ in range(depth)
        )
        self.final_layer = TransitionFinalLayer(dim, out_dim)
        self.gradient_checkpointing = False

    def _embed_times(self, t: torch.Tensor, r: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        second = self.time_embed if self.interval_embed is None else self.interval_embed
        values = {"t": t, "r": r, "t-r": t - r}
        *others, last = self.config.interval_condition.split(",")
        interval_emb = second(values[last])
        for name in others:
            interval_emb = interval_emb + self.time_embed(values[name])
        return self.time_embed(t) + interval_emb, interval_emb

    def _rotary_emb(self, rows: int, columns: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        stride = columns if self.config.rope_grid == "row_major" else rows
        tokens = torch.arange(rows * columns, device=device)
        pairs = self.config.hidden_size // self.config.num_heads // 4
        frequencies = 10000.0 ** (-torch.arange(pairs, dtype=torch.float32, device=device) / pairs)
        angles = torch.cat([axis[:, None] * frequencies for axis in (tokens % stride, tokens // stride)], dim=1)
        return angles.cos(), angles.sin()

    @apply_lora_scale("attention_kwargs")
    def forward(
        self,
        hidden_states: torch.Tensor,
        timestep: torch.Tensor,
        r_timestep: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
        class_labels: torch.Tensor | None = None,
        guidance: torch.Tensor | None = None,
        attention_kwargs: dict[str, Any] | None = None,
        return_dict: bool = True,
    ) -> Transformer2DModelOutput | tuple[torch.Tensor]:
        """
        Args:
            hidden_states (`torch.Tensor` of shape `(batch, channels, height, width)`): Latents at `timestep`.
            timestep (`torch.Tensor` of shape `(batch,)`): Time of the latents, as the scheduler's `c_noise` gives it.
            r_timestep (`torch.Tensor` of shape `(batch,)`): Time that the transition goes to, likewise.
            encoder_hidden_states (`torch.Tensor` of shape `(batch, length, text_width)`, *optional*): Captions.
            encoder_attention_mask (`torch.Tensor` of shape `(batch, length)`, *optional*): Which tokens are read.
            class_labels (`torch.Tensor` of shape `(batch,)`, *optional*): Classes.
            guidance (`torch.Tensor` of shape `(batch,)`, *optional*):
                Guidance scale, of a network with `guidance_embed`; 1, unguided, by default.
            attention_kwargs (`dict`, *optional*): `{"scale": s}` for a LoRA that counts s times.
            return_dict (`bool`, defaults to `True`): Whether to return a [`Transformer2DModelOutput`].
        """
        patch = self.config.patch_size
        rows, columns = hidden_states.shape[-2] // patch, hidden_states.shape[-1] // patch
        tokens = F.pixel_unshuffle(hidden_states.float(), patch).flatten(2).transpose(1, 2)
        tokens = self.patch_embed(tokens.to(self.patch_embed.weight.dtype))
        temb, interval_emb = self._embed_times(timestep.float(), r_timestep.float())
        if self.class_embed is not None:
            temb = temb + self.class_embed(class_labels)
        if self.guidance_embedding is not None:
            guidance = torch.ones_like(timestep) if guidance is None else guidance
            temb = temb + self.guidance_embedding(guidance.float().log())
        if self.position_embedding is not None:
            tokens = tokens + self.position_embedding(rows, columns)
        if self.caption_pooling is not None:
            temb = temb + self.caption_pooling(encoder_hidden_states, encoder_attention_mask)
        if self.caption_projection is not None:
            states = encoder_hidden_states.to(self.caption_projection.norm.weight.dtype)
            encoder_hidden_states = F.layer_norm(self.caption_projection(states), (self.config.hidden_size,), eps=1e-6)
        if encoder_attention_mask is not None:
            encoder_attention_mask = encoder_attention_mask.bool()
        rotary_emb = self._rotary_emb(rows, columns, hidden_states.device)

        for block in self.blocks:
            inputs = (tokens, encoder_hidden_states, encoder_attention_mask, temb, interval_emb, rotary_emb)
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                tokens = self._gradient_checkpointing_func(block, *inputs)
            else:
                tokens = block(*inputs)

        out = self.final_layer(tokens, temb)
        out = out.unflatten(1, (rows, columns)).unflatten(-1, (patch, patch, -1))
        sample = out.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)
        if not return_dict:
            return (sample,)
        return Transformer2DModelOutput(sample=sample)
