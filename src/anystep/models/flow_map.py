"""Flow-matching transformers of diffusers as flow maps f(x_t, t, r): Stable Diffusion 3, FLUX.1 and SANA.

Their velocity is what `ot_fm` calls F: noise minus data, at t from 0 (data) to 1 (noise). What they lack is the end r
of a transition. An embedding of the interval t - r, zero at first, is added to their own embedding of t, for all blocks
or only for the last ones, as decoupled MeanFlow has it (arXiv 2510.24474). Their own forward does all else.

A condition is one tensor, as objectives and samplers pass it on: the token states of a caption and, for networks that
read a pooled state too, that state before them as a row of its own (`anystep.flow_families.joined_states`).
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.configuration_utils import FrozenDict
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import pad, pixel_shuffle, pixel_unshuffle

from anystep.bounds import Guidance, PositiveShare, Side, shown
from anystep.errors import InputError
from anystep.flow_families import FAMILIES, family_of
from anystep.models.embeddings import TimeEmbedding
from anystep.models.layers import Mask
from anystep.models.transformer import TransitionTransformer2DModel

# radians per unit of the interval: a smooth function of it, which finite differences can be taken of
MAX_FREQUENCY = 20.0
SCALE = 1000  # of the times that these networks are given
FLUX_SIDE = 128  # of the latents that FLUX.1 was trained on, which its configuration does not say
ADDED = ("interval_embedder", "scale_embedder")  # the parts that a flow map has beside its base


@dataclass(frozen=True)
class FlowMapOptions:
    """How a base is made a flow map.

    Attributes:
        interval_share: the share of the blocks, the last ones, that are given the interval.
        guidance_embed: whether the network is given a guidance scale.
        sample_size: side of the latents that it was adapted to; that of its base when None.
        base_guidance: the scale that a base which reads one, such as FLUX.1-dev, is given where nobody says another.
    """

    interval_share: PositiveShare = 1.0
    guidance_embed: bool = False
    sample_size: Side | None = None
    base_guidance: Guidance = 3.5


class FlowMapEmbedding(nn.Module):
    """A network's own embedding of t, with that of the interval added, and of a guidance scale where there is one.

    Args:
        base: the embedding that the network has.
        width: of the embedding.
        decoupled: whether to answer twice as wide, with what some blocks are given first: the embedding of t alone.
        guided: whether to add an embedding of a guidance scale.

    Attributes:
        schedule: what says where a step ends, for a pipeline of diffusers, which passes the beginning alone.
        guidance: the scale that is given where such a pipeline draws.
    """

    def __init__(self, base: nn.Module, width: int, decoupled: bool, guided: bool) -> None:
        super().__init__()
        self.base, self.decoupled = base, decoupled
        self.interval_embedder = TimeEmbedding(width, MAX_FREQUENCY)
        self.scale_embedder = TimeEmbedding(width, MAX_FREQUENCY) if guided else None
        self.schedule: Any = None
        self.guidance = 1.0
        for added in filter(None, (self.interval_embedder, self.scale_embedder)):
            for linear in (added.linear_1, added.linear_2):
                nn.init.normal_(linear.weight, std=0.02)
                nn.init.zeros_(linear.bias)
            nn.init.zeros_(added.linear_2.weight)

    def times_of(self, timestep: Tensor) -> Float[Tensor, "batch 3"]:
        """t, r and the guidance scale of a step of a pipeline of diffusers."""
        t = timestep.float() / SCALE
        r = t if self.schedule is None else self.schedule.targets_of(t)
        return torch.stack([t, r, torch.full_like(t, self.guidance)], 1)

    def moved(self, own: Float[Tensor, "batch width"], times: Tensor) -> Float[Tensor, "batch width"]:
        """The embedding of t with all that is added to it: nothing, before training, and to that of the base alone."""
        if times.shape[1] < 3:
            return own
        t, r, scale = times[:, :3].unbind(1)
        own = own + self.interval_embedder(t - r).to(own)
        if self.scale_embedder is not None:  # 1 means unguided
            own = own + self.scale_embedder(scale.clamp(min=1).log()).to(own)
        return own

    @property
    def dtype(self) -> torch.dtype:
        """That the base computes in."""
        return next(self.base.parameters()).dtype


class PooledFlowMapEmbedding(FlowMapEmbedding):
    """Of SD3 and FLUX.1. Times come behind the pooled state, in float32: FLUX.1 rounds timesteps."""

    pooled_width = 0

    def forward(self, timestep: Tensor, *more: Tensor) -> Tensor:
        *scales, pooled = more
        pooled, times = pooled[:, : self.pooled_width], pooled[:, self.pooled_width :].float()
        if not times.shape[1]:
            times = self.times_of(timestep)
        elif scales:
            scales = [SCALE * times[:, -1]]
        with torch.autocast(pooled.device.type, enabled=False):
            own: Tensor = self.base(SCALE * times[:, 0], *scales, pooled.to(self.dtype))
            moved = self.moved(own, times)
        return torch.cat([own, moved], 1) if self.decoupled else moved


class ModulatingFlowMapEmbedding(FlowMapEmbedding):
    """Of SANA, which answers with the modulation of all blocks and with what that was made from."""

    def forward(self, timestep: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
        times = self.times_of(timestep) if timestep.ndim == 1 else timestep.float()
        base: Any = self.base
        with torch.autocast(timestep.device.type, enabled=False):
            modulation, own = base(SCALE * times[:, 0], **{**options, "hidden_dtype": self.dtype})
            moved = self.moved(own, times)
            again: Tensor = base.linear(base.silu(moved))
        return (torch.cat([modulation, again], 1), torch.cat([own, moved], 1)) if self.decoupled else (again, moved)


@dataclass(frozen=True)
class GiveHalf:
    """Before a block is run: it is given its half of a doubled embedding. It keeps no state, as checkpointing needs."""

    place: int
    name: str
    moved: bool

    def __call__(self, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        if self.name in kwargs:
            return args, {**kwargs, self.name: kwargs[self.name].chunk(2, 1)[self.moved].contiguous()}
        half = args[self.place].chunk(2, 1)[self.moved].contiguous()
        return (*args[: self.place], half, *args[self.place + 1 :]), kwargs


def blocks_of(transformer: Any) -> list[nn.Module]:
    """In the order in which they run."""
    return [*transformer.transformer_blocks, *getattr(transformer, "single_transformer_blocks", ())]


def embedding_of(transformer: nn.Module) -> FlowMapEmbedding:
    """What is in the place of a network's embedding of t. Raises `InputError` where that is its own."""
    found = getattr(transformer, FAMILIES[family_of(transformer)].embedding)
    if not isinstance(found, FlowMapEmbedding):
        raise InputError("the network is no flow map")
    return found


def add_interval(transformer: Any, options: FlowMapOptions) -> None:
    """Make a network of diffusers read where a step ends; its answers stay what they are.

    Raises:
        InputError: a network that is none of `FAMILIES`, or a flow map already.
    """
    family, config = family_of(transformer), transformer.config
    traits, guided = FAMILIES[family], options.guidance_embed and not config.get("guidance_embeds")
    own = getattr(transformer, traits.embedding)
    if isinstance(own, FlowMapEmbedding):
        raise InputError("the network is a flow map already: load its pipeline anew")
    if family == "sana" and config.get("guidance_embeds"):
        raise InputError("this SANA reads a guidance scale, as SANA-Sprint does, which is no flow-matching model")
    width = config.num_attention_heads * config.attention_head_dim
    blocks, decoupled = blocks_of(transformer), options.interval_share < 1
    kind = ModulatingFlowMapEmbedding if family == "sana" else PooledFlowMapEmbedding
    weight = next(own.parameters())
    embedding = kind(own, width, decoupled, guided).to(weight.device)
    if isinstance(embedding, PooledFlowMapEmbedding):
        embedding.pooled_width = config.pooled_projection_dim
    setattr(transformer, traits.embedding, embedding)
    if decoupled:
        first = len(blocks) - math.ceil(len(blocks) * options.interval_share - 1e-9)
        for number, block in enumerate(blocks):
            hook = GiveHalf(traits.place, traits.name, number >= first)
            block.register_forward_pre_hook(hook, with_kwargs=True)
        transformer.norm_out.register_forward_pre_hook(GiveHalf(1, "temb", True), with_kwargs=True)


class FlowMapTransformer(nn.Module):
    """f(x_t, t, r, condition) of a transformer of diffusers, with the interface of `TransitionTransformer2DModel`.

    Args:
        transformer: an SD3Transformer2DModel, FluxTransformer2DModel or SanaTransformer2DModel; it is changed in place.
    """

    synchronised_forwards = False

    def __init__(self, transformer: Any, options: FlowMapOptions) -> None:
        super().__init__()
        self.family, self.options = family_of(transformer), options
        add_interval(transformer, options)
        self.transformer = transformer
        self.config = FrozenDict(self._config())

    def _config(self) -> dict[str, Any]:
        base, options, packed = self.transformer.config, self.options, 2 if self.family == "flux" else 1
        pooled, states = (
            base.get("pooled_projection_dim"),
            base.get("joint_attention_dim", base.get("caption_channels")),
        )
        side = base.get("sample_size", FLUX_SIDE) if options.sample_size is None else options.sample_size
        return {
            "family": self.family,
            "in_channels": base.in_channels // packed**2,
            "patch_size": base.get("patch_size", 1) * packed,
            "sample_size": side,
            "hidden_size": base.num_attention_heads * base.attention_head_dim,
            "depth": len(self.all_blocks),
            "text_width": max(states, pooled or 0),
            "num_classes": None,
            "mask_text": True,
            "guidance_embed": options.guidance_embed or bool(base.get("guidance_embeds")),
            "interval_share": options.interval_share,
        }

    @property
    def all_blocks(self) -> list[nn.Module]:
        """The blocks in the order in which they run."""
        return blocks_of(self.transformer)

    @property
    def added(self) -> dict[str, Tensor]:
        """The weights that the base does not have, adapters apart."""
        return {name: value for name, value in embedding_of(self.transformer).state_dict().items()
                if name.startswith(ADDED)}  # fmt: skip

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        kind: torch.dtype = self.transformer.dtype
        return kind

    def enable_gradient_checkpointing(self) -> None:
        """As of diffusers."""
        self.transformer.enable_gradient_checkpointing()

    def compile_repeated_blocks(self) -> None:
        """Compile every block."""
        for block in self.all_blocks:
            block.compile()

    @contextmanager
    def as_base(self) -> Iterator[None]:
        """A block in which adapters do nothing."""
        layers: list[Any] = [each for each in self.modules() if hasattr(each, "_disable_adapters")]
        before = [layer._disable_adapters for layer in layers]
        for layer in layers:
            layer._disable_adapters = True
        try:
            yield
        finally:
            for layer, was in zip(layers, before, strict=True):
                layer._disable_adapters = was

    def forward(
        self,
        x: Float[Tensor, "batch channels height width"],
        t: Float[Tensor, " batch"],
        r: Float[Tensor, " batch"],
        condition: Float[Tensor, "batch rows text"],
        condition_mask: Mask | None = None,
        guidance: Float[Tensor, " batch"] | None = None,
        base: bool = False,
        **unread: Any,
    ) -> Float[Tensor, "batch channels height width"]:
        """The mean velocity from t to r.

        Args:
            condition: as `anystep.flow_families.joined_states` has it, or token states alone for SANA.
            guidance: a guidance scale, of a network that reads one.
            base: the velocity at t of the network that was there before, without gradient; r is not read.
            unread: of transition transformers: only None, and `mask_text`, which needs nothing here.

        Raises:
            InputError: an option that these networks do not have.
        """
        for name, value in unread.items():
            if value is not None and name != "mask_text":
                raise InputError(f"{name} {shown(value)}: is of transition transformers, and this is a {self.family}")
        if guidance is None:
            own = bool(self.transformer.config.get("guidance_embeds"))
            guidance = torch.full_like(t, self.options.base_guidance if own else 1.0)
        columns = [t, guidance] if base else [t, r, guidance, guidance]
        times = torch.stack([each.float() for each in columns], 1)
        if not base:
            return self._predict(x, times, condition, condition_mask)
        with torch.no_grad(), self.as_base():
            return self._predict(x, times, condition, condition_mask)

    def _predict(self, x: Tensor, times: Tensor, condition: Tensor, mask: Tensor | None) -> Tensor:
        config, dtype = self.transformer.config, self.dtype
        answer: Tensor
        if self.family == "sana":
            times = times[:, :1] if times.shape[1] == 2 else times[:, :3]
            answer = self.transformer(
                x.to(dtype), encoder_hidden_states=condition.to(dtype), timestep=times,
                encoder_attention_mask=mask, return_dict=False,
            )[0]  # fmt: skip
            return answer[:, : x.shape[1]]  # some predict a deviation too
        width = config.pooled_projection_dim
        given = {
            "encoder_hidden_states": condition[:, 1:, : config.joint_attention_dim].to(dtype),
            "pooled_projections": torch.cat([condition[:, 0, :width].float(), times], 1),
            "timestep": times[:, 0],
            "return_dict": False,
        }
        if self.family == "sd3":
            answer = self.transformer(x.to(dtype), **given)[0]
            return answer
        rows, columns = (side // 2 for side in x.shape[-2:])
        given["txt_ids"] = torch.zeros(condition.shape[1] - 1, 3, device=x.device)
        given["img_ids"] = _positions(rows, columns, x.device)
        if config.guidance_embeds:
            given["guidance"] = times[:, -1]
        tokens = pixel_unshuffle(x, 2).flatten(2).transpose(1, 2)  # (B, 4C, H/2, W/2) -> (B, N, 4C)
        answer = self.transformer(tokens.to(dtype), **given)[0]
        return pixel_shuffle(answer.transpose(1, 2).unflatten(2, (rows, columns)), 2)


def _positions(rows: int, columns: int, device: torch.device) -> Float[Tensor, "tokens 3"]:
    """What FLUX.1 knows of the place of each token: nothing, its row and its column."""
    grid = torch.cartesian_prod(torch.arange(rows, device=device), torch.arange(columns, device=device))
    return pad(grid.float(), (1, 0))


def base_probe(transformer: nn.Module) -> Float[Tensor, " weights"]:
    """The middle number of every tensor of a base, by which it is told from others in whatever precision it is loaded.

    What a flow map has beside its base is left out.
    """
    numbers = {}
    for name, value in transformer.named_parameters():
        if "lora_" in name or any(added in name for added in ADDED):
            continue
        numbers[plain_name(name)] = value.detach().reshape(-1)[value.numel() // 2].float().cpu()
    return torch.stack([numbers[name] for name in sorted(numbers)])


def plain_name(name: str) -> str:
    """What the base calls a weight that an adapter or the embedding of the interval has wrapped."""
    return name.replace(".base_layer", "").replace(".base.", ".")


Network = TransitionTransformer2DModel | FlowMapTransformer
"""What is trained and drawn with."""
