"""The transition transformer: a diffusion transformer that is told where it is and where it jumps to.

Architecture of Transition Models (TiM, arXiv 2509.04394, section 4.1): adaptive layer norm from a low-rank
bottleneck, two time embeddings (of t and of the interval t - r), interval-aware self-attention, SwiGLU, query-key
normalisation and a 2-D rotary embedding. Class- and text-conditional models differ in the condition alone.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as functional
from diffusers import CacheMixin, ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.loaders import FromOriginalModelMixin, PeftAdapterMixin
from diffusers.models.attention import AttentionMixin, AttentionModuleMixin
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.utils.accelerate_utils import apply_forward_hook
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from anystep.bounds import (
    Count,
    Depth,
    Frequency,
    LayerCount,
    OptionalWidth,
    Patch,
    Ratio,
    Share,
    Side,
    Width,
    check_options,
)
from anystep.errors import InputError
from anystep.models.key_grid import kept_tokens
from anystep.models.rotary import Rotary, RotaryGrid, RotaryScaling, Turning, joined, rotary, rotate
from anystep.packing import Packing

IntervalCondition = Literal["t-r", "r", "t,r", "t,t-r", "r,t-r", "t,r,t-r"]
Tokens = Float[Tensor, "batch tokens width"]
Vector = Float[Tensor, "images width"]
Spread = Float[Tensor, "batch #tokens width"]  # what is said of an image, where it meets the image's tokens
Mask = Bool[Tensor, "batch length"]


# ----------------------------------------------------------------------------------------------------------------------
# Layers


class Float32Linear(nn.Linear):
    """A linear layer that computes in float32 whatever the network's dtype and autocast say.

    Times, modulation, patch embedding and head go through it: they are under 1 % of the work, and with them in
    bfloat16 the finite difference of the objective is mostly rounding.
    """

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            bias = None if self.bias is None else self.bias.float()
            return functional.linear(x.float(), self.weight.float(), bias)


def compute_dtype(layer: nn.Module) -> torch.dtype | None:
    """What a linear layer wants its input in; None where any will do, as where its weights are quantised.

    Its weights may be stored in another: `enable_layerwise_casting` keeps them in 8 bits between calls.
    """
    hook = getattr(getattr(layer, "_diffusers_hook", None), "hooks", {}).get("layerwise_casting")
    told = getattr(layer if hook is None else hook, "compute_dtype", None)
    stored = getattr(layer.weight, "dtype", None)  # a method, of torch.ao's layers
    plain = stored is not None and stored.is_floating_point and stored.itemsize > 1
    return told if told is not None else stored if plain else None


class SwiGLU(nn.Module):
    """fc2(silu(gate x) * up x) (arXiv 2002.05202)."""

    def __init__(self, width: int, hidden: int, out: int, linear: type[nn.Linear] = nn.Linear) -> None:
        super().__init__()
        self.gate = linear(width, hidden)
        self.up = linear(width, hidden)
        self.down = linear(hidden, out)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(functional.silu(self.gate(x)) * self.up(x))


class Modulation(SwiGLU):
    """Shifts, scales and gates from the conditioning vector through a low-rank bottleneck, in float32."""

    def __init__(self, width: int, rank: int, parts: int) -> None:
        super().__init__(width, rank, parts * width, Float32Linear)


class TimeEmbedding(nn.Module):
    """Sinusoids (cosine first) through a two-layer perceptron, in float32 throughout.

    Args:
        max_frequency: of the fastest, in radians per unit of t; the slowest is a ten-thousandth of it.
    """

    frequencies = 128
    span = 10_000.0

    def __init__(self, width: int, max_frequency: float = 1.0) -> None:
        super().__init__()
        self.max_frequency = max_frequency
        self.linear_1 = Float32Linear(2 * self.frequencies, width)
        self.linear_2 = Float32Linear(width, width)

    def forward(self, t: Float[Tensor, " batch"]) -> Vector:
        steps = torch.arange(self.frequencies, dtype=torch.float32, device=t.device) / self.frequencies
        angles = t.float()[:, None] * (self.max_frequency * torch.exp(-math.log(self.span) * steps))
        wave = torch.cat([angles.cos(), angles.sin()], dim=-1)
        return self.linear_2(functional.silu(self.linear_1(wave)))


class CaptionProjection(nn.Module):
    """Text-encoder states to the transformer's width."""

    def __init__(self, text_width: int, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(text_width, eps=1e-5)
        self.mlp = SwiGLU(text_width, 4 * width, width)

    def forward(self, states: Float[Tensor, "batch length text"]) -> Float[Tensor, "batch length width"]:
        normed = self.norm(states.to(self.norm.weight.dtype))
        return self.mlp(normed.to(compute_dtype(self.mlp.gate) or normed.dtype))


class AttentionProcessor:
    """Scaled dot-product attention through diffusers' dispatcher, so that `set_attention_backend` works."""

    _attention_backend = None
    _parallel_config = None

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        if mask is not None:  # (batch, length) -> (batch, 1, 1, length)
            mask = mask[:, None, None, :]
        return dispatch_attention_fn(
            q, k, v, attn_mask=mask, backend=self._attention_backend, parallel_config=self._parallel_config
        ).flatten(2)


class _Attention(nn.Module, AttentionModuleMixin):
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
        return x.unflatten(-1, (self.heads, -1))

    @staticmethod
    def normed(norm: nn.Module, x: Tensor) -> Tensor:
        """Normalised in the precision of the norm's weights, which casting of layers leaves alone."""
        return norm(x.to(norm.weight.dtype) if isinstance(norm, nn.LayerNorm) else x)


class IntervalAttention(_Attention):
    """Self-attention whose queries, keys and values also depend on the interval (section 4.1)."""

    def __init__(self, width: int, heads: int, qk_norm: bool, interval_aware: bool) -> None:
        super().__init__(width, heads, qk_norm)
        self.interval_qkv = nn.Linear(width, 3 * width, bias=False) if interval_aware else None

    def forward(
        self,
        x: Tokens,
        interval: Vector,
        turn: Turning,
        packing: Packing | None = None,
        kept: Int[Tensor, " kept"] | None = None,
    ) -> Tokens:
        """`kept` are the tokens that give keys and values, where not all do."""
        heard, places = (x, turn.others) if kept is None else (x[:, kept], turn.others[kept])  # (B, K, D), (K, ...)
        q, k, v = self.to_q(x), self.to_k(heard), self.to_v(heard)  # (B, N, D), 2 x (B, K, D)
        if self.interval_qkv is not None:
            dq, dk, dv = spread(self.interval_qkv(interval.to(x.dtype)), packing).chunk(3, dim=-1)  # 3 x (B, 1, D)
            q, k, v = q + dq, k + dk, v + dv
        q, k, v = (self.split(part) for part in (q, k, v))  # (B, N, heads, head_dim), 2 x (B, K, heads, head_dim)
        q, k = self.normed(self.norm_q, q), self.normed(self.norm_k, k)
        q, k = rotate(q, turn.queries).to(v.dtype), rotate(k, places).to(v.dtype)
        if packing is not None:
            return self.to_out(packing.attend(self.processor, q, k, v))
        return self.to_out(self.processor(q, k, v))


class CaptionAttention(_Attention):
    """Cross-attention to the caption. Queries are normalised and turned, keys only normalised."""

    def keys_values(self, caption: Tokens) -> tuple[Tensor, Tensor]:
        k, v = self.split(self.to_k(caption)), self.split(self.to_v(caption))
        return self.normed(self.norm_k, k).to(v.dtype), v

    def forward(
        self, x: Tokens, k: Tensor, v: Tensor, mask: Tensor | None, turn: Turning, packing: Packing | None = None
    ) -> Tokens:
        q = rotate(self.normed(self.norm_q, self.split(self.to_q(x))), turn.others).to(v.dtype)
        if packing is not None:
            return self.to_out(packing.attend_to(self.processor, q, k, v, mask))
        return self.to_out(self.processor(q, k, v, mask))


def spread(vector: Vector, packing: Packing | None) -> Spread:
    """What is said of an image, where it meets the image's tokens: (B, 1, D), or (1, N, D) of a packed batch."""
    return vector[:, None] if packing is None else packing.spread(vector)


def modulate(x: Tokens, shift: Spread, scale: Spread) -> Tokens:
    return x * (1 + scale) + shift


class TransitionBlock(nn.Module):
    """Self-attention, attention to the caption if there is one, and SwiGLU, each shifted, scaled and gated."""

    def __init__(
        self,
        width: int,
        heads: int,
        hidden: int,
        rank: int,
        text: bool,
        interval_aware: bool,
        qk_norm: bool,
    ) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.attn = IntervalAttention(width, heads, qk_norm, interval_aware)
        self.caption_attn = CaptionAttention(width, heads, qk_norm) if text else None
        self.mlp = SwiGLU(width, hidden, width)
        self.modulation = Modulation(width, rank, 9 if text else 6)

    def forward(
        self,
        x: Tokens,
        c: Vector,
        interval: Vector,
        turn: Turning,
        caption: Tensor | tuple[Tensor, Tensor] | None = None,
        mask: Bool[Tensor, "images length"] | None = None,
        packing: Packing | None = None,
        kept: Int[Tensor, " kept"] | None = None,
    ) -> Tokens:
        dtype = compute_dtype(self.mlp.gate) or x.dtype  # the stream x and its modulation stay in float32
        parts = spread(self.modulation(c), packing).chunk(6 if self.caption_attn is None else 9, dim=-1)  # (B, 1, D)
        shift, scale, gate = parts[:3]
        x = x + gate * self.attn(modulate(self.norm(x), shift, scale).to(dtype), interval, turn, packing, kept)
        if self.caption_attn is not None:
            shift, scale, gate = parts[3:6]
            y = modulate(self.norm(x), shift, scale).to(dtype)
            assert caption is not None
            keys, values = caption if isinstance(caption, tuple) else self.caption_attn.keys_values(caption)
            x = x + gate * self.caption_attn(y, keys, values, mask, turn, packing)
        shift, scale, gate = parts[-3:]
        return x + gate * self.mlp(modulate(self.norm(x), shift, scale).to(dtype))


class FinalLayer(nn.Module):
    """Norm, modulation and the map to pixels of a patch, in float32."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.modulation = Modulation(width, width // 2, 2)
        self.linear = Float32Linear(width, out)

    def forward(self, x: Tokens, c: Vector, packing: Packing | None = None) -> Float[Tensor, "batch tokens out"]:
        shift, scale = spread(self.modulation(c), packing).chunk(2, dim=-1)
        return self.linear(modulate(self.norm(x), shift, scale))


class TransitionBranch(nn.Module):
    """The last blocks and the final layer once more, for transitions over an interval."""

    def __init__(self, blocks: nn.ModuleList, final_layer: FinalLayer) -> None:
        super().__init__()
        self.blocks, self.final_layer = blocks, final_layer


# ----------------------------------------------------------------------------------------------------------------------
# Model


@dataclass(frozen=True)
class Context:
    """What blocks are told beside their tokens, as `TransitionBlock.forward` takes it; a caption for each block."""

    c: Vector
    interval: Vector
    turn: Turning
    captions: Sequence[Any]
    mask: Tensor | None
    packing: Packing | None
    kept: Tensor | None

    def of(self, images: Int[Tensor, " chosen"]) -> "Context":
        """The same for these images alone, in ascending order."""
        captions = self.captions
        if captions and isinstance(captions[0], Tensor):  # one projected caption for all blocks
            captions = [captions[0][images]] * len(captions)
        else:
            captions = [None if pair is None else (pair[0][images], pair[1][images]) for pair in captions]
        turn, packing = self.turn, self.packing
        if packing is not None:
            place = self.place(images)
            turn = Turning(turn.queries[place], turn.others[place])
            packing = packing.chosen([int(image) for image in images])
        mask = None if self.mask is None else self.mask[images]
        return Context(self.c[images], self.interval[images], turn, captions, mask, packing, self.kept)

    def place(self, images: Int[Tensor, " chosen"]) -> Int[Tensor, " rows"]:
        """Where these images are in the batch: along its first dimension, or along that of the tokens where packed."""
        return (
            images if self.packing is None else torch.isin(self.packing.index_on(images.device), images).nonzero()[:, 0]
        )


@dataclass(frozen=True)
class EncodedCaption:
    """Keys and values of every block for one batch of captions: what does not change from step to step."""

    keys_values: tuple[tuple[Tensor, Tensor], ...]  # (batch, length, heads, head_dim) twice, for each block
    mask: Tensor | None


class TransitionTransformer2DModel(
    ModelMixin, AttentionMixin, ConfigMixin, PeftAdapterMixin, FromOriginalModelMixin, CacheMixin
):
    """f(x_t, t, r, condition): predicts, in the transport's F space, the jump from time t to time r.

    Give either `text_width` (captions) or `num_classes` (labels).

    Args:
        in_channels: channels of a latent.
        patch_size: latent pixels along one side of a token.
        sample_size: latent side the model was trained at; informative.
        hidden_size, depth, num_heads, mlp_ratio: sizes.
        text_width: width of the text encoder's states.
        num_classes, class_dropout_prob: labels run from 0 to num_classes - 1, and num_classes is the null label,
            which exists when class_dropout_prob > 0.
        modulation_rank: width of the modulation bottleneck; (hidden_size // 4) * 3 when None.
        interval_condition: what the second time embedding sees. Of several, all but the last go through the first
            embedding and they are summed.
        shared_time_embedder: whether both embeddings are one.
        max_time_frequency: of the fastest sinusoid in the time embeddings, in radians per unit of network time. At 1,
            that of released weights, none makes a turn over a time from 0 to 1; higher ones tell near times apart.
        zero_init_interval: whether the interval embedding starts at zero, so that f does not depend on r until training
            asks for it. It must be one of its own, and r must not go through the first.
        branch_depth: of the `depth` blocks, those that there are twice: all blocks but these are a trunk that knows t
            alone; after it, one branch answers with the velocity v(x, t) where r = t, and another with f(x, t, r) where
            r < t. r enters in the latter alone, which starts as a copy of the former, so that f = v. 0 for one network.
        guidance_embed: whether the network is told a guidance scale (`guidance` of `forward`), so that it can learn to
            answer as if guided, in one evaluation. The embedding starts at zero.
        trunk_share: by how much the gradient is multiplied that the branch of transitions sends into what both share.
        interval_attention: whether queries, keys and values depend on the interval.
        qk_norm: layer norm of queries and keys.
        rope_grid: `row_major`, or `reference` for released weights (`anystep.models.rotary.positions`).
        rope_scaling: what becomes of positions beyond the trained ones (`anystep.models.rotary.frequencies`).
        rope_extent: the most tokens along one side in training; those of `sample_size` when None.
        mask_text: whether padding of captions is masked; released weights attend to it.
        encoder_depth, projector_dim, z_dim: representation alignment: after block `encoder_depth`, a projector to
            `z_dim`; none when z_dim is 0. It runs only with `return_features`.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ["TransitionBlock"]
    _repeated_blocks = ["TransitionBlock"]
    _skip_layerwise_casting_patterns = [
        "patch_embed", "time_embed", "interval_embed", "guidance_embedding", "norm", "modulation"
    ]  # fmt: skip
    _keep_in_fp32_modules = [
        "time_embed", "interval_embed", "guidance_embedding", "patch_embed", "modulation", "final_layer"
    ]  # fmt: skip

    @register_to_config
    def __init__(
        self,
        in_channels: Width = 4,
        patch_size: Patch = 2,
        sample_size: Side = 32,
        hidden_size: Width = 1152,
        depth: LayerCount = 28,
        num_heads: Width = 16,
        mlp_ratio: Ratio = 4.0,
        text_width: Width | None = None,
        num_classes: Count | None = None,
        class_dropout_prob: Share = 0.1,
        modulation_rank: Width | None = None,
        interval_condition: IntervalCondition = "t-r",
        shared_time_embedder: bool = False,
        max_time_frequency: Frequency = 1.0,
        zero_init_interval: bool = False,
        guidance_embed: bool = False,
        branch_depth: Depth = 0,
        trunk_share: Share = 1.0,
        interval_attention: bool = True,
        qk_norm: bool = True,
        rope_grid: RotaryGrid = "row_major",
        rope_scaling: RotaryScaling = "plain",
        rope_extent: Side | None = None,
        mask_text: bool = True,
        encoder_depth: LayerCount = 8,
        projector_dim: Width = 2048,
        z_dim: OptionalWidth = 0,
    ) -> None:
        super().__init__()
        given = {name: value for name, value in self.config.items() if not name.startswith("_")}
        check_options("transformer", TransitionTransformer2DModel.__init__, given)
        if (text_width is None) == (num_classes is None):
            raise ValueError(f"give one of text_width and num_classes, got {text_width} and {num_classes}")
        if hidden_size % num_heads or (hidden_size // num_heads) % 4:
            raise ValueError(f"hidden_size {hidden_size} / num_heads {num_heads} must be a multiple of 4")
        if not 0 <= branch_depth < depth:
            raise ValueError(f"branch_depth {branch_depth} must leave a trunk of the depth {depth}")
        trunk = depth - branch_depth
        if z_dim and not 1 <= encoder_depth <= trunk:
            raise ValueError(
                f"encoder_depth {encoder_depth} must be a block from 1 to {trunk}, the last before any branch"
            )
        if branch_depth and (shared_time_embedder or interval_condition not in ("t-r", "r")):
            raise ValueError("branch_depth needs an interval_condition of t-r or r, and no shared_time_embedder")
        if trunk_share != 1 and not branch_depth:
            raise ValueError(f"trunk_share {trunk_share} is of a network with branches: branch_depth is 0")
        if zero_init_interval and (shared_time_embedder or interval_condition not in ("t-r", "r", "t,r", "t,t-r")):
            through = "shared_time_embedder" if shared_time_embedder else f"interval_condition {interval_condition!r}"
            raise ValueError(f"zero_init_interval needs r to go through an embedding of its own, not {through}")
        width = hidden_size
        rank = width // 4 * 3 if modulation_rank is None else modulation_rank
        self.gradient_checkpointing = False

        self.patch_embed = Float32Linear(in_channels * patch_size**2, width)
        self.time_embed = TimeEmbedding(width, max_time_frequency)
        self.interval_embed = None if shared_time_embedder else TimeEmbedding(width, max_time_frequency)
        self.guidance_embedding = TimeEmbedding(width) if guidance_embed else None
        self.caption_projection = CaptionProjection(text_width, width) if text_width is not None else None
        self.class_embed = (
            nn.Embedding(num_classes + int(class_dropout_prob > 0), width) if num_classes is not None else None
        )
        hidden = int(width * mlp_ratio) * 2 // 3

        def blocks(count: int, interval_aware: bool) -> nn.ModuleList:
            text = text_width is not None
            return nn.ModuleList(
                TransitionBlock(width, num_heads, hidden, rank, text, interval_aware, qk_norm) for _ in range(count)
            )

        out = in_channels * patch_size**2
        self.blocks = blocks(depth, interval_attention and not branch_depth)
        self.final_layer = FinalLayer(width, out)
        self.transition_branch = (
            TransitionBranch(blocks(branch_depth, interval_attention), FinalLayer(width, out)) if branch_depth else None
        )
        # whether every evaluation runs both branches, if only on one image: processes that share weights call alike
        self.synchronised_forwards = False
        self.projector = (
            nn.Sequential(
                nn.Linear(width, projector_dim), nn.SiLU(),
                nn.Linear(projector_dim, projector_dim), nn.SiLU(),
                nn.Linear(projector_dim, z_dim),
            ) if z_dim else None
        )  # fmt: skip
        self._initialise()
        if branch_depth:
            self.start_transition_branch()

    @property
    def all_blocks(self) -> list[TransitionBlock]:
        """Those of the trunk, of the velocity, and of the transitions."""
        branch = [] if self.transition_branch is None else list(self.transition_branch.blocks)
        return [*self.blocks, *branch]

    @torch.no_grad()
    def start_transition_branch(self) -> None:
        """Make the branch of transitions a copy of the velocity's, its interval zero: then f(x, t, r) = v(x, t)."""
        assert self.transition_branch is not None
        assert self.interval_embed is not None
        for parameter in self.interval_embed.linear_2.parameters():
            parameter.zero_()
        own = nn.ModuleList([*self.blocks[-self.config.branch_depth :], self.final_layer])
        copied = dict(own.named_parameters())
        copy = nn.ModuleList([*self.transition_branch.blocks, self.transition_branch.final_layer])
        for name, parameter in copy.named_parameters():
            if name in copied:  # all but interval_qkv, which has no part while the interval is zero
                parameter.copy_(copied[name])

    def check_saveable(self) -> None:
        """Raise `InputError` where what is saved could not be loaded: while the network carries an adapter."""
        if names := list(getattr(self, "peft_config", {})):
            raise InputError(
                f"the transformer carries the adapter {names[0]!r}, with which it cannot be saved: merge it by "
                "fuse_lora() and unload_lora(), or keep it apart by save_lora_adapter(folder) and then unload_lora()"
            )

    def save_pretrained(self, *arguments: Any, **options: Any) -> None:
        """That of diffusers. Raises `InputError` as `check_saveable` does, before anything is written."""
        self.check_saveable()
        super().save_pretrained(*arguments, **options)

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        embeddings = [self.time_embed, self.interval_embed, self.guidance_embedding]
        small = [*embeddings, self.caption_projection, self.class_embed]
        for module in (part for whole in small if whole is not None for part in whole.modules()):
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
        # blocks start as the identity and the prediction at zero
        silent = [self.final_layer.linear, *(part.down for part in self.modules() if isinstance(part, Modulation))]
        if self.config.zero_init_interval and self.interval_embed is not None:
            silent.append(self.interval_embed.linear_2)  # interval_qkv has no bias, so that it is silent too
        if self.guidance_embedding is not None:
            silent.append(self.guidance_embedding.linear_2)
        for parameter in (parameter for linear in silent for parameter in linear.parameters()):
            nn.init.zeros_(parameter)

    @property
    def null_label(self) -> int:
        """The label that stands for no class."""
        if not self.config.num_classes or not self.config.class_dropout_prob:
            raise ValueError("this network has no null label: num_classes is None or class_dropout_prob is 0")
        return int(self.config.num_classes)

    @apply_forward_hook  # offloading waits for a call of the network before it moves weights to the device
    def encode_condition(
        self, condition: Float[Tensor, "batch length text"] | Int[Tensor, " batch"], condition_mask: Mask | None = None
    ) -> EncodedCaption | Tensor:
        """The part of the work that depends on the condition alone; `forward` takes the answer in its place.

        Captions become the keys and values of every block; labels are returned as they are, and so are captions where
        a hook of diffusers brings the weights of a block for its own forward alone.
        """
        if self.caption_projection is None or any(hasattr(block, "_diffusers_hook") for block in self.all_blocks):
            return condition
        caption = self.project_caption(condition)
        pairs = tuple(block.caption_attn.keys_values(caption) for block in self.all_blocks)  # type: ignore[union-attr]
        return EncodedCaption(pairs, condition_mask)

    def project_caption(self, states: Float[Tensor, "batch length text"]) -> Float[Tensor, "batch length width"]:
        """What every block makes its keys and values of: its norm has no affine part, so it is the same in all."""
        assert self.caption_projection is not None
        return functional.layer_norm(self.caption_projection(states), (self.config.hidden_size,), eps=1e-6)

    def embed_times(self, t: Tensor, r: Tensor) -> tuple[Vector, Vector]:
        """(emb(t), emb(interval))."""
        second = self.time_embed if self.interval_embed is None else self.interval_embed
        seen = {"t": t, "r": r, "t-r": t - r}
        names = self.config.interval_condition.split(",")
        interval = second(seen[names[-1]])
        for name in names[:-1]:
            interval = interval + self.time_embed(seen[name])
        return self.time_embed(t), interval

    def rotary(self, rows: int, columns: int, scaling: RotaryScaling | None = None) -> Rotary:
        """Where the tokens of a grid are; `scaling` is the network's own by default."""
        config = self.config
        extent = config.rope_extent or config.sample_size // config.patch_size
        scaling = scaling or config.rope_scaling
        return rotary(rows, columns, config.hidden_size // config.num_heads, config.rope_grid, scaling, extent)

    def forward(
        self,
        x: Float[Tensor, "batch channels height width"],
        t: Float[Tensor, " images"],
        r: Float[Tensor, " images"],
        condition: Tensor | EncodedCaption,
        condition_mask: Bool[Tensor, "images length"] | None = None,
        return_features: bool = False,
        packing: Packing | None = None,
        rope_scaling: RotaryScaling | None = None,
        key_grid: int | None = None,
        guidance: Float[Tensor, " images"] | None = None,
        return_velocity: bool = False,
        branch: Literal["velocity", "transition"] | None = None,
    ) -> Any:
        """The prediction F, shaped as x, float32; after it, what else was asked for, features first.

        Args:
            x: latents at time t, both sides multiples of `patch_size`; or a packed batch, (tokens, channels,
                patch_size, patch_size).
            t, r: network times of source and target, float32, one an image.
            condition: (images, length, text_width) text states, (images,) labels, or what `encode_condition` gave.
            condition_mask: (images, length), true where `condition` is text and not padding.
            return_features: also return the projector's output (batch, tokens, z_dim) after block `encoder_depth`;
                (tokens, z_dim) of a packed batch.
            packing: whose tokens are whose, of a packed batch.
            rope_scaling: what becomes of positions beyond the trained ones; the network's own by default.
            key_grid: tokens along the longer side that give keys and values (`anystep.models.key_grid`); all by default
                and in a packed batch.
            guidance: the scale to answer as if guided by, where the network is told one; 1, unguided, by default.
            return_velocity: also return v(x, t) of all images, where the network has branches: from the same trunk.
            branch: which one answers for all images. By default that of the velocity does where r = t and that of
                transitions elsewhere; each runs on its own images only, so that an image costs one branch.
        """
        if (return_velocity or branch is not None) and self.transition_branch is None:
            raise ValueError("return_velocity and branch are of a network with branches: branch_depth is 0")
        if return_features and self.projector is None:
            raise ValueError("return_features needs a projector: z_dim is 0")
        if guidance is not None and self.guidance_embedding is None:
            raise ValueError("guidance is for a network that is told it: guidance_embed is false")
        # a block makes its own keys and values of a caption that was not encoded before: its weights may be sharded
        captions: Sequence[Any] = [None] * len(self.all_blocks)
        mask = condition_mask
        if isinstance(condition, EncodedCaption):
            captions, mask = condition.keys_values, condition.mask
        elif self.caption_projection is not None:
            captions = [self.project_caption(condition)] * len(captions)
        mask = mask if self.config.mask_text else None
        patch = self.config.patch_size
        rows, columns = x.shape[-2] // patch, x.shape[-1] // patch

        if packing is None:
            tokens = functional.pixel_unshuffle(x.float(), patch).flatten(2).transpose(1, 2)  # (B, N, C patch^2)
        else:
            tokens = x.float().flatten(1)[None]
        tokens = self.patch_embed(tokens)  # (B, N, D)
        time, interval = self.embed_times(t, r)  # (B, D) each
        c = time if self.transition_branch is not None else time + interval
        if self.class_embed is not None:
            c = c + self.class_embed(condition)
        if self.guidance_embedding is not None:
            c = c + self.guidance_embedding((torch.ones_like(t) if guidance is None else guidance).log())
        grids = ((rows, columns),) if packing is None else packing.grids
        turn = joined(
            [self.rotary(down, across, rope_scaling) for down, across in grids], x.device
        )  # (N, head_dim / 2, 2)

        features = kept = None
        if key_grid is not None and packing is None:
            kept = kept_tokens(rows, columns, key_grid, x.device)
        at = Context(c, interval, turn, captions, mask, packing, kept)
        trunk = len(self.blocks) - self.config.branch_depth
        for index, (block, caption) in enumerate(zip(list(self.blocks)[:trunk], captions[:trunk], strict=True)):
            tokens = self._run(block, tokens, at, caption)  # (B, N, D)
            if return_features and self.projector is not None and index + 1 == self.config.encoder_depth:
                dtype = compute_dtype(self.projector[0]) or tokens.dtype
                features = self.projector(tokens.to(dtype))  # (B, N, z_dim)

        velocity = None
        if self.transition_branch is None:
            out = self.final_layer(tokens, c, packing)  # (B, N, patch^2 C)
        else:
            moves = t != r if branch is None else branch == "transition"
            out, velocity = self._branches(tokens, at, moves, return_velocity)

        def latents(out: Tensor) -> Tensor:
            if packing is not None:
                return out[0].unflatten(-1, (patch, patch, -1)).permute(0, 3, 1, 2)  # (N, C, p, p)
            out = out.unflatten(1, (rows, columns)).unflatten(-1, (patch, patch, -1))  # (B, H, W, p, p, C)
            return out.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)  # (B, C, H p, W p)

        answer: list[Any] = [latents(out)]
        if return_features:
            answer.append(features if packing is None or features is None else features[0])
        if return_velocity and velocity is not None:
            answer.append(latents(velocity))
        return answer[0] if len(answer) == 1 else tuple(answer)

    def _run(self, block: nn.Module, tokens: Tokens, at: Context, caption: Any) -> Tokens:
        """A block, which is run again in the backward pass where its activations are not to be kept."""
        again = torch.is_grad_enabled() and self.gradient_checkpointing
        run: Callable[..., Any] = partial(self._gradient_checkpointing_func, block) if again else block
        return run(tokens, at.c, at.interval, at.turn, caption, at.mask, at.packing, at.kept)

    def _branches(
        self, tokens: Tokens, at: Context, moves: Bool[Tensor, " images"] | bool, return_velocity: bool
    ) -> tuple[Tensor, Tensor | None]:
        """What each image is answered with, and the velocity of all where it is wanted, (batch, tokens, out) each.

        A branch runs on its own images alone: their number depends on the data, as that of the derivative's does, and
        most images of a training batch have no interval. `moves` says which images have; a truth value is of all.
        """
        assert self.transition_branch is not None
        every = torch.arange(len(at.c), device=at.c.device)
        if isinstance(moves, bool):
            moving, still = (every, every[:0]) if moves else (every[:0], every)
            moves = torch.full_like(every, moves, dtype=torch.bool)
        else:
            moving, still = moves.nonzero()[:, 0], (~moves).nonzero()[:, 0]
        if return_velocity:
            still = every
        if self.synchronised_forwards or (self.training and torch.is_grad_enabled()):
            # in every process the same weights are gathered, and all get a gradient, if one of zeros
            moving, still = (images if len(images) else every[:1] for images in (moving, still))

        def answer(blocks: Sequence[nn.Module], final_layer: nn.Module, images: Tensor, at: Context) -> Tensor:
            x = tokens if final_layer is self.final_layer else shared(tokens)
            if len(images) < len(every):
                x, at = x.index_select(dim, at.place(images)), at.of(images)
            for block, caption in zip(blocks, at.captions, strict=True):
                x = self._run(block, x, at, caption)
            out: Tensor = final_layer(x, at.c, at.packing)
            return out

        def shared(value: Tensor) -> Tensor:
            """The value as it is, through which a part of the gradient goes back."""
            part = self.config.trunk_share
            # without gradients tangents may be asked for, which detach() would cut
            return torch.lerp(value.detach(), value, part) if part < 1 and torch.is_grad_enabled() else value

        def everywhere(part: Tensor, images: Tensor) -> Tensor:
            if len(images) == len(every):
                return part
            return part.new_zeros(*tokens.shape[:2], part.shape[-1]).index_copy(dim, at.place(images), part)

        dim, depth = (0 if at.packing is None else 1), self.config.branch_depth
        u = v = None
        if len(still):
            told = replace(at, captions=at.captions[-2 * depth : -depth])
            v = answer(list(self.blocks)[-depth:], self.final_layer, still, told)
        if len(moving):
            captions = at.captions[-depth:]
            if isinstance(captions[0], Tensor):
                captions = [shared(captions[0])] * depth
            told = replace(at, c=shared(at.c) + at.interval, captions=captions)
            branch = self.transition_branch
            u = answer(list(branch.blocks), branch.final_layer, moving, told)
        if u is None or v is None:
            whole = v if u is None else u
            assert whole is not None
            return whole, whole if return_velocity else None
        v = everywhere(v, still)
        mask = moves[:, None, None] if at.packing is None else moves[at.packing.index_on(moves.device)][None, :, None]
        return torch.where(mask, everywhere(u, moving), v), v if return_velocity else None


# what saved folders name, and what survives a move of this file
TransitionTransformer2DModel.__module__ = "anystep"
