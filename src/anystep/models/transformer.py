"""The transition transformer: a diffusion transformer that is given the time t it is at and the time r it predicts.

Architecture of Transition Models (TiM, arXiv 2509.04394, section 4.1): adaptive layer norm from a low-rank
bottleneck, two time embeddings (of t and of the interval t - r), interval-aware self-attention, SwiGLU, query-key
normalisation and a 2-D rotary embedding. Class- and text-conditional models differ in the condition alone.
"""

from collections.abc import Callable, Sequence
from functools import partial, wraps
from typing import Any, Literal

import torch
import torch.nn.functional as functional
from diffusers import CacheMixin, ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.hooks import FirstBlockCacheConfig
from diffusers.hooks._helpers import TransformerBlockMetadata, TransformerBlockRegistry
from diffusers.loaders import PeftAdapterMixin
from diffusers.models.attention import AttentionMixin
from diffusers.utils.accelerate_utils import apply_forward_hook
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from anystep import bounds
from anystep.errors import InputError
from anystep.models.attention import EncodedCaption
from anystep.models.blocks import BlockInputs, FinalLayer, TransitionBlock
from anystep.models.branches import Branch, TransitionBranch, run_branches
from anystep.models.embeddings import (
    CaptionPool,
    CaptionProjection,
    PositionEmbedding,
    TimeEmbedding,
    patchify,
    unpatchify,
)
from anystep.models.initialise import initialise, start_transition_branch
from anystep.models.kv_downsampling import kv_tokens
from anystep.models.layers import Float32Linear, Mask, Tokens, Vector, compute_dtype
from anystep.models.rotary import RopeAngles, RotaryGrid, RotaryScaling, rope, rope_angles
from anystep.models.single_file import SingleFileLoading
from anystep.packing import Packing

IntervalCondition = Literal["t-r", "r", "t,r", "t,t-r", "r,t-r", "t,r,t-r"]


class TransitionTransformer2DModel(
    ModelMixin, AttentionMixin, ConfigMixin, PeftAdapterMixin, SingleFileLoading, CacheMixin
):
    """f(x_t, t, r, condition): predicts, in the transport's F space, the transition from time t to time r.

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
        max_time_frequency: the highest frequency of the time embeddings, in radians per unit of c_noise. At 1, as in
            released weights, no sinusoid makes a turn from 0 to 1; higher ones separate times that are close.
        zero_init_interval: whether the interval embedding starts at zero, so that f does not depend on r before
            training. The interval must have an embedding of its own, and r must not go through the first.
        branch_depth: number of the last blocks that exist twice. The others are a trunk that is given t alone; after
            it, one branch predicts the velocity v(x, t) where r = t, and another f(x, t, r) where r < t. r enters the
            latter alone, which starts as a copy of the former, so that f = v. 0 for a network without branches.
        guidance_embed: whether the network is given a guidance scale (`guidance` of `forward`), so that it can learn
            to predict guided answers in one evaluation. The embedding starts at zero.
        trunk_share: factor on the gradient that the branch of transitions sends into what both branches share.
        interval_attention: whether queries, keys and values depend on the interval.
        qk_norm: layer norm of queries and keys.
        position_embed: whether tokens are told where on their canvas they are (`PositionEmbedding`), beside how far
            from each other, which the rotary embedding tells. The embedding starts at zero.
        caption_pool: whether the mean of a caption's states modulates the blocks, beside attention to its tokens
            (`CaptionPool`). It starts at zero.
        rope_grid: `row_major`, or `reference` for released weights (`anystep.models.rotary.positions`).
        rope_scaling: how positions beyond the trained ones are encoded (`anystep.models.rotary.frequencies`).
        rope_extent: the largest number of tokens along one side in training; that of `sample_size` when None.
        mask_text: whether padding of captions is masked; released weights attend to it.
        encoder_depth, projector_dim, z_dim: a projector to width `z_dim` after block `encoder_depth`, for
            representation alignment; none when z_dim is 0. It runs only with `return_features`.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ["TransitionBlock"]
    _repeated_blocks = ["TransitionBlock"]
    _skip_layerwise_casting_patterns = [
        "patch_embed", "time_embed", "interval_embed", "guidance_embedding", "position_embedding", "caption_pooling",
        "norm", "modulation",
    ]  # fmt: skip
    _keep_in_fp32_modules = [
        "time_embed", "interval_embed", "guidance_embedding", "position_embedding", "caption_pooling", "patch_embed",
        "modulation", "final_layer",
    ]  # fmt: skip

    @register_to_config
    def __init__(
        self,
        in_channels: bounds.Width = 4,
        patch_size: bounds.Patch = 2,
        sample_size: bounds.Side = 32,
        hidden_size: bounds.Width = 1152,
        depth: bounds.LayerCount = 28,
        num_heads: bounds.Width = 16,
        mlp_ratio: bounds.Ratio = 4.0,
        text_width: bounds.Width | None = None,
        num_classes: bounds.Count | None = None,
        class_dropout_prob: bounds.Share = 0.1,
        modulation_rank: bounds.Width | None = None,
        interval_condition: IntervalCondition = "t-r",
        shared_time_embedder: bool = False,
        max_time_frequency: bounds.Frequency = 1.0,
        zero_init_interval: bool = False,
        guidance_embed: bool = False,
        branch_depth: bounds.Depth = 0,
        trunk_share: bounds.Share = 1.0,
        interval_attention: bool = True,
        qk_norm: bool = True,
        position_embed: bool = False,
        caption_pool: bool = False,
        rope_grid: RotaryGrid = "row_major",
        rope_scaling: RotaryScaling = "plain",
        rope_extent: bounds.Side | None = None,
        mask_text: bool = True,
        encoder_depth: bounds.LayerCount = 8,
        projector_dim: bounds.Width = 2048,
        z_dim: bounds.OptionalWidth = 0,
    ) -> None:
        super().__init__()
        given = {name: value for name, value in self.config.items() if not name.startswith("_")}
        bounds.check_options("transformer", TransitionTransformer2DModel.__init__, given)
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
        if caption_pool and text_width is None:
            raise ValueError("caption_pool is of a network that reads captions: text_width is None")
        width = hidden_size
        rank = width // 4 * 3 if modulation_rank is None else modulation_rank
        self.gradient_checkpointing = False

        self.patch_embed = Float32Linear(in_channels * patch_size**2, width)
        self.time_embed = TimeEmbedding(width, max_time_frequency)
        self.interval_embed = None if shared_time_embedder else TimeEmbedding(width, max_time_frequency)
        self.guidance_embedding = TimeEmbedding(width) if guidance_embed else None
        self.caption_projection = None if text_width is None else CaptionProjection(text_width, width)
        self.caption_pooling = CaptionPool(text_width, width) if caption_pool and text_width is not None else None
        self.position_embedding = PositionEmbedding(width) if position_embed else None
        labels = 0 if num_classes is None else num_classes + int(class_dropout_prob > 0)
        self.class_embed = nn.Embedding(labels, width) if labels else None
        hidden, text = int(width * mlp_ratio) * 2 // 3, text_width is not None

        def blocks(count: int, interval_aware: bool) -> nn.ModuleList:
            return nn.ModuleList(
                TransitionBlock(width, num_heads, hidden, rank, text, interval_aware, qk_norm) for _ in range(count)
            )

        out = in_channels * patch_size**2
        self.blocks = blocks(depth, interval_attention and not branch_depth)
        self.final_layer = FinalLayer(width, out)
        self.transition_branch = (
            TransitionBranch(blocks(branch_depth, interval_attention), FinalLayer(width, out)) if branch_depth else None
        )
        self.synchronised_forwards = False  # both branches run, if only on one image: processes share weights
        self.projector = (
            nn.Sequential(
                nn.Linear(width, projector_dim), nn.SiLU(),
                nn.Linear(projector_dim, projector_dim), nn.SiLU(),
                nn.Linear(projector_dim, z_dim),
            ) if z_dim else None
        )  # fmt: skip
        initialise(self)
        if branch_depth:
            start_transition_branch(self)

    @property
    def all_blocks(self) -> list[TransitionBlock]:
        """The blocks of the trunk, of the velocity, and of the transitions."""
        return [*self.blocks, *([] if self.transition_branch is None else self.transition_branch.blocks)]

    def check_saveable(self) -> None:
        """Raise `InputError` where what is saved could not be loaded: while the network carries an adapter."""
        if names := list(getattr(self, "peft_config", {})):
            raise InputError(
                f"the transformer carries the adapter {names[0]!r}, with which it cannot be saved: merge it by "
                "fuse_lora() and unload_lora_weights() of its pipeline, or keep it apart by save_lora_weights(folder, "
                "network)"
            )

    @wraps(ModelMixin.save_pretrained)  # pipelines of diffusers look whether it takes `variant` and `max_shard_size`
    def save_pretrained(self, *arguments: Any, **options: Any) -> None:
        """Save as diffusers does; raises `InputError` as `check_saveable` does, before anything is written."""
        self.check_saveable()
        super().save_pretrained(*arguments, **options)

    def enable_cache(self, config: Any) -> None:
        """Leave out blocks whose output has hardly changed since the step before: `FirstBlockCacheConfig` of diffusers.

        Raises:
            InputError: another kind, or a network with branches, whose last blocks are not those of every evaluation.
        """
        if not isinstance(config, FirstBlockCacheConfig):
            raise InputError(f"cache {type(config).__name__}: expected a FirstBlockCacheConfig")
        if self.transition_branch is not None:
            raise InputError(
                "FirstBlockCacheConfig: this network has branches, whose blocks cannot stand for each other"
            )
        TransformerBlockRegistry.register(TransitionBlock, TransformerBlockMetadata(return_hidden_states_index=0))
        super().enable_cache(config)

    @apply_forward_hook  # offloading waits for a call of the network before it moves weights to the device
    def encode_condition(
        self, condition: Float[Tensor, "batch length text"] | Int[Tensor, " batch"], condition_mask: Mask | None = None
    ) -> EncodedCaption | Tensor:
        """The part of a forward pass that depends on the condition alone; `forward` takes the result in its place.

        Captions become the keys and values of every block; labels are returned unchanged, and so are captions where a
        hook of diffusers loads the weights of a block for that block's forward alone.
        """
        if self.caption_projection is None or any(hasattr(block, "_diffusers_hook") for block in self.all_blocks):
            return condition
        caption = self.project_caption(condition)
        pairs = tuple(block.caption_attn.keys_values(caption) for block in self.all_blocks)  # type: ignore[union-attr]
        return EncodedCaption(pairs, condition_mask, self.pool_caption(condition, condition_mask))

    def project_caption(self, states: Float[Tensor, "batch length text"]) -> Float[Tensor, "batch length width"]:
        """The input of every block's keys and values: the norm has no affine part, so it is the same for all blocks."""
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

    def rope_angles(self, rows: int, columns: int, scaling: RotaryScaling | None = None) -> RopeAngles:
        """The rotary angles of the tokens of a grid; `scaling` is the network's own setting by default."""
        config = self.config
        extent = config.rope_extent or config.sample_size // config.patch_size
        scaling = scaling or config.rope_scaling
        return rope_angles(rows, columns, config.hidden_size // config.num_heads, config.rope_grid, scaling, extent)

    def conditioning_vector(
        self, time: Vector, interval: Vector, condition: Any, guidance: Tensor | None, pooled: Vector | None = None
    ) -> Vector:
        """c, which modulates the blocks; the interval is no part of it in a network with branches."""
        c = time if self.transition_branch is not None else time + interval
        if self.class_embed is not None:
            c = c + self.class_embed(condition)
        if pooled is not None:
            c = c + pooled
        if self.guidance_embedding is not None:
            scale = torch.ones_like(time[:, 0], dtype=torch.float32) if guidance is None else guidance
            c = c + self.guidance_embedding(scale.log())
        return c

    def pool_caption(self, states: Tensor, mask: Mask | None, mask_text: bool | None = None) -> Vector | None:
        """What the whole of each caption adds to c; None in a network without a `caption_pool`."""
        pool = self.caption_pooling
        return None if pool is None else pool(states, mask if self._masked(mask_text) else None)

    def _masked(self, mask_text: bool | None) -> bool:
        return bool(self.config.mask_text if mask_text is None else mask_text)

    def read_captions(
        self, condition: Tensor | EncodedCaption, mask: Tensor | None, mask_text: bool | None = None
    ) -> tuple[Sequence[Any], Tensor | None, Vector | None]:
        """The caption of each block, its mask, and what the whole of it adds to c.

        The first are keys and values, or states that a block makes its own of: blocks project a caption that was not
        encoded before themselves, because their weights may be sharded.
        """
        captions: Sequence[Any] = [None] * len(self.all_blocks)
        pooled = None
        if isinstance(condition, EncodedCaption):
            captions, mask, pooled = condition.keys_values, condition.mask, condition.pooled
        elif self.caption_projection is not None:
            captions = [self.project_caption(condition)] * len(captions)
            pooled = self.pool_caption(condition, mask, mask_text)
        return captions, mask if self._masked(mask_text) else None, pooled

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
        mask_text: bool | None = None,
    ) -> Any:
        """The prediction of F, float32, shaped as x; in a tuple with features and velocity where these are asked for.

        Args:
            x: latents at time t, both sides multiples of `patch_size`; or a packed batch, (tokens, channels,
                patch_size, patch_size).
            t, r: `c_noise` of source and target time, float32, one an image.
            condition: (images, length, text_width) text states, (images,) labels, or what `encode_condition` gave.
            condition_mask: (images, length), true where `condition` is text and not padding.
            return_features: also return the projector's output (batch, tokens, z_dim) after block `encoder_depth`;
                (tokens, z_dim) of a packed batch.
            packing: which token belongs to which image, in a packed batch.
            rope_scaling: how positions beyond the trained ones are encoded; the network's own setting by default.
            key_grid: tokens along the longer side that give keys and values (`anystep.models.kv_downsampling`); all by
                default and in a packed batch.
            guidance: the guidance scale, of a network with a guidance embedding; 1, unguided, by default.
            return_velocity: also return v(x, t) of all images, where the network has branches: from the same trunk.
            branch: the branch that all images go through. By default it is that of the velocity where r = t and that
                of transitions elsewhere; each runs on its own images only, so that an image costs one branch.
            mask_text: whether `condition_mask` is followed; the network's own setting by default.
        """
        if (return_velocity or branch is not None) and self.transition_branch is None:
            raise ValueError("return_velocity and branch are of a network with branches: branch_depth is 0")
        if return_features and self.projector is None:
            raise ValueError("return_features needs a projector: z_dim is 0")
        if guidance is not None and self.guidance_embedding is None:
            raise ValueError("guidance is for a network that is told it: guidance_embed is false")
        captions, mask, pooled = self.read_captions(condition, condition_mask, mask_text)
        patch = self.config.patch_size
        rows, columns = (side // patch for side in x.shape[-2:])
        tokens = self.patch_embed(patchify(x, patch, packing))  # (B, N, C p^2) -> (B, N, D)
        time, interval = self.embed_times(t, r)  # (B, D) each
        c = self.conditioning_vector(time, interval, condition, guidance, pooled)  # (B, D)
        grids = ((rows, columns),) if packing is None else packing.grids
        if self.position_embedding is not None:
            tokens = tokens + self.position_embedding(grids, x.device)
        rotation = rope((self.rope_angles(down, across, rope_scaling) for down, across in grids), x.device)
        kv_index = None
        if key_grid is not None and packing is None:
            kv_index = kv_tokens(rows, columns, key_grid, x.device)  # (K,)
        inputs = BlockInputs(c, interval, rotation, captions, mask, packing, kv_index)

        features, trunk = None, len(self.blocks) - self.config.branch_depth
        for index, (block, caption) in enumerate(zip(list(self.blocks)[:trunk], captions[:trunk], strict=True)):
            tokens = self._run(block, tokens, inputs, caption)  # (B, N, D)
            if return_features and self.projector is not None and index + 1 == self.config.encoder_depth:
                dtype = compute_dtype(self.projector[0]) or tokens.dtype
                features = self.projector(tokens.to(dtype))  # (B, N, z_dim)

        velocity = None
        if self.transition_branch is None:
            out = self.final_layer(tokens, c, packing)  # (B, N, p^2 C)
        else:
            own, depth = self.transition_branch, self.config.branch_depth
            branches = Branch(list(own.blocks), own.final_layer), Branch(list(self.blocks)[-depth:], self.final_layer)
            has_interval = t != r if branch is None else branch == "transition"
            # gradients reach every weight, if as zeros, and processes that share weights gather the same ones
            both = self.synchronised_forwards or (self.training and torch.is_grad_enabled())
            out, velocity = run_branches(
                self._run, branches, tokens, inputs, has_interval, return_velocity, both, self.config.trunk_share
            )  # (B, N, p^2 C) each
        answer: list[Any] = [unpatchify(out, patch, rows, columns, packing)]  # (B, C, H p, W p)
        if return_features:
            answer.append(features if packing is None or features is None else features[0])
        if return_velocity and velocity is not None:
            answer.append(unpatchify(velocity, patch, rows, columns, packing))
        return answer[0] if len(answer) == 1 else tuple(answer)

    def _run(self, block: nn.Module, tokens: Tokens, inputs: BlockInputs, caption: Any) -> Tokens:
        """The output of a block, which is computed again in the backward pass under gradient checkpointing."""
        again = torch.is_grad_enabled() and self.gradient_checkpointing
        run: Callable[..., Any] = partial(self._gradient_checkpointing_func, block) if again else block
        return run(
            tokens, inputs.c, inputs.interval, inputs.rope, caption, inputs.mask, inputs.packing, inputs.kv_index
        )


# what saved folders name, and what survives a move of this file
TransitionTransformer2DModel.__module__ = "anystep"
