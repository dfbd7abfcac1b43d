"""What drawing one image takes, before it is drawn: parameters, memory, operations; and what would fit.

Network and codec are run on tensors without data, as `anystep.models.cost` does for training. Counted is what they hold
beside their weights; the text encoder and the libraries' own code are not.
"""

import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderDC, AutoencoderKL
from torch._subclasses.fake_tensor import FakeTensorMode

from anystep.bounds import check_options, nearest, shown
from anystep.codecs import AutoencoderCodec, to_uint8
from anystep.codecs.codec import downsampling_factor
from anystep.codecs.tiling import TILE, Cut
from anystep.device import memory_of
from anystep.errors import InputError, refused
from anystep.model_folder import check_model_folder, check_sizes
from anystep.models.cost import (
    FakeNetwork,
    InputShape,
    LiveMemoryTracker,
    count_parameters,
    extrapolated,
    flop_counter,
    weight_bytes,
)
from anystep.models.presets import PRESETS, depths_of
from anystep.models.transformer import TransitionTransformer2DModel
from anystep.pipelines.image_model import ImageModel
from anystep.pipelines.load import Model, find
from anystep.pipelines.saved import EARLIER_VAE
from anystep.pipelines.transition import ONE_BATCH_TOKENS
from anystep.sampling import evaluations_per_step, is_guided
from anystep.weights import BUILTIN

# the published autoencoders, without their weights
DC_AE_F32: dict[str, Any] = {
    "_class_name": "AutoencoderDC",
    "latent_channels": 32,
    "encoder_block_types": ["ResBlock"] * 3 + ["EfficientViTBlock"] * 3,
    "decoder_block_types": ["ResBlock"] * 3 + ["EfficientViTBlock"] * 3,
    "encoder_block_out_channels": [128, 256, 512, 512, 1024, 1024],
    "decoder_block_out_channels": [128, 256, 512, 512, 1024, 1024],
    "encoder_layers_per_block": [0, 4, 8, 2, 2, 2],
    "decoder_layers_per_block": [0, 5, 10, 2, 2, 2],
    "encoder_qkv_multiscales": [[], [], [], [], [], []],
    "decoder_qkv_multiscales": [[], [], [], [], [], []],
}
SD_VAE_F8: dict[str, Any] = {
    "_class_name": "AutoencoderKL",
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "block_out_channels": [128, 256, 512, 512],
    "layers_per_block": 2,
    "latent_channels": 4,
}
BUILTIN_PRESET = "t2i-emoji"
PUBLISHED = {
    "t2i-xl": DC_AE_F32, "t2i-8b": DC_AE_F32, "c2i-xl-1": DC_AE_F32, "c2i-xl-2": SD_VAE_F8, "c2i-b-4": SD_VAE_F8,
}  # fmt: skip


@dataclass(frozen=True)
class ModelSpec:
    """What a model is made of, without weights.

    Attributes:
        name: what it was called.
        network: options of the transformer.
        codec: config of the autoencoder; None where the model draws pixels.
    """

    name: str
    network: dict[str, Any]
    codec: dict[str, Any] | None

    @classmethod
    def of(cls, model: str | Model) -> "ModelSpec":
        """The spec of a loaded model, a preset, `builtin`, a run, a pipeline's folder or a hub id.

        Only configs are read.

        Raises:
            InputError: none of these.
        """
        if isinstance(model, Model):
            vae = model.pipeline.vae
            codec = None if vae is None else {**vae.config, "_class_name": type(vae).__name__}
            return cls(model.name, _network_options(model.pipeline.transformer.config), codec)
        if model in PRESETS and model != BUILTIN_PRESET:
            return cls(model, PRESETS[model], PUBLISHED.get(model))
        try:
            where = find(BUILTIN if model == BUILTIN_PRESET else model)
        except InputError as error:
            raise InputError(f"{error}, or a preset{nearest(model, PRESETS)}") from None
        if Path(where).is_dir():
            check_model_folder(Path(where))
        with refused(f"model {model!r}"):
            network = TransitionTransformer2DModel.load_config(where, subfolder="transformer")
        kind = network.get("_class_name", TransitionTransformer2DModel.__name__)
        if kind != TransitionTransformer2DModel.__name__:
            raise InputError(f"model {model!r}: its network is a {shown(kind)}, and transition models are planned")
        codec = None  # of a model of pixels
        for folder in ("vae", EARLIER_VAE):
            with suppress(OSError, ValueError):
                codec = codec or AutoencoderDC.load_config(where, subfolder=folder)
        if codec is not None:
            check_sizes(codec, f"the codec of {model!r}")
        return cls(model, _network_options(network), codec)

    @property
    def channels(self) -> int:
        return int(self.network["in_channels"])

    @property
    def patch(self) -> int:
        return int(self.network["patch_size"])

    @cached_property
    def factor(self) -> int:
        return 1 if self.codec is None else downsampling_factor(self.codec)

    @property
    def multiple(self) -> int:
        """Both sides of an image are multiples of it."""
        return self.factor * self.patch

    def make_codec(self) -> AutoencoderCodec | None:
        """Make the codec, with tensors of the current mode: without data in a fake one."""
        if self.codec is None:
            return None
        kind = AutoencoderKL if self.codec["_class_name"] == "AutoencoderKL" else AutoencoderDC
        codec = AutoencoderCodec(kind.from_config({**self.codec}).eval().requires_grad_(False))
        codec.fingerprint = "without weights"
        return codec


def _network_options(config: Mapping[str, Any]) -> dict[str, Any]:
    known = signature(TransitionTransformer2DModel.__init__).parameters
    options = {key: value for key, value in config.items() if key in known}
    return check_options("transformer", TransitionTransformer2DModel.__init__, options)


@dataclass(frozen=True)
class GenerationPlan:
    """What one image takes.

    Attributes:
        parameters, codec_parameters: numbers of weights of the transformer and of the codec.
        weight_bytes: memory of all weights.
        tokens: length of the transformer's sequence.
        evaluations: network evaluations (NFE).
        evaluation_flops, attention_flops: operations of one evaluation; those of them that grow with the square of the
            tokens (or with the tokens times those that they attend to).
        decode_flops: operations of the decoder.
        sampling_bytes: peak memory beside the weights while the latent is made.
        decode_bytes: peak memory beside the weights while it is decoded.
    """

    parameters: int
    codec_parameters: int
    weight_bytes: int
    tokens: int
    evaluations: int
    evaluation_flops: int
    attention_flops: int
    decode_flops: int
    sampling_bytes: int
    decode_bytes: int

    @property
    def peak_bytes(self) -> int:
        return self.weight_bytes + max(self.sampling_bytes, self.decode_bytes)

    @property
    def flops(self) -> int:
        return self.evaluations * self.evaluation_flops + self.decode_flops


def plan_generation(
    model: ModelSpec,
    width: int,
    height: int,
    steps: int,
    guided: bool = False,
    key_grid: int | None = None,
    precision: torch.dtype = torch.float32,
    caption_tokens: int = 256,
) -> GenerationPlan:
    """What one image of `width x height` pixels in so many steps takes.

    Args:
        guided: whether images are guided: at two evaluations a step where the network is not told the scale.
        key_grid: tokens along the longer side that are attended to; all when None.
        precision: of the blocks and the codec.

    Raises:
        InputError: sides that are no multiples.
    """
    if width % model.multiple or height % model.multiple or min(width, height) < 1:
        raise InputError(f"size {width}x{height}: both sides must be multiples of {model.multiple}")
    rows, columns = height // model.factor, width // model.factor
    evaluations = evaluations_per_step(guided, bool(model.network.get("guidance_embed")))
    options = {"text_width": None, "num_classes": None, **model.network}  # whatever a preset says
    shape = InputShape(1, rows, columns, caption_tokens)
    peaks = []

    def measure(options: dict[str, Any]) -> tuple[int, int]:
        forward = FakeNetwork("t2i-test", options, shape, precision, key_grid=key_grid).forward()
        peaks.append(forward.peak)
        return forward.flops, forward.attention

    flops, attention = extrapolated("t2i-test", options, measure)
    tokens = rows * columns // model.patch**2
    rows_at_once = evaluations if tokens <= ONE_BATCH_TOKENS else 1
    # noise, latents, and while they are combined two more, beside each prediction
    latents = (4 + evaluations) * 4 * model.channels * rows * columns
    hidden = int(model.network["hidden_size"])
    blocks = sum(depths_of("t2i-test", options))  # each with keys and values of its own
    text = 0 if model.network.get("text_width") is None else evaluations * 2 * blocks * caption_tokens * hidden * 4
    size = 2 if precision in (torch.bfloat16, torch.float16) else 4
    decode_flops, decode_bytes, codec_parameters = _decoding(model, rows, columns, size)
    parameters = count_parameters("t2i-test", **options)
    return GenerationPlan(
        parameters=parameters,
        codec_parameters=codec_parameters,
        weight_bytes=weight_bytes("t2i-test", precision, **options) + size * codec_parameters,
        tokens=tokens,
        evaluations=steps * evaluations,
        evaluation_flops=flops,
        attention_flops=attention,
        decode_flops=decode_flops,
        sampling_bytes=rows_at_once * max(peaks) + latents + text,
        decode_bytes=decode_bytes,
    )


def _decoding(model: ModelSpec, rows: int, columns: int, size: int) -> tuple[int, int, int]:
    """Operations and most bytes of decoding one latent to pixels of 8 bits, and the weights of the codec.

    `size` is that of a number inside the codec; what is gathered and rounded has 32 bits.
    All tiles are alike, so one is decoded, beside what is gathered of the whole image: `anystep.codecs.tiling`.
    """
    mode = FakeTensorMode()
    with mode:
        codec = model.make_codec()
        if codec is None:  # pixels, and three times as many while they are rounded
            return 0, 4 * 4 * 3 * rows * columns, 0
        cut = Cut.of(codec.factor)
        spans = [cut.spans(length) for length in (rows, columns)]
        tile = torch.empty(1, model.channels, *(each[0][1] for each in spans))
        image = torch.empty(1, 3, rows * codec.factor, columns * codec.factor)
        weights = list(codec.autoencoder.parameters())
    tiles = math.prod(map(len, spans))
    with mode, torch.no_grad(), flop_counter() as counter, LiveMemoryTracker([*weights, tile]) as decoding:
        part = codec.decode(tile)
    with mode, torch.no_grad(), LiveMemoryTracker([image]) as rounding:
        to_uint8(image)
    # three channels and their weight, of what is gathered and of the tile before this one
    beside = 4 * 4 * (image[0, 0].numel() + part[0, 0].numel()) if tiles > 1 else 0
    most = max(beside + decoding.peak * size // 4, 4 * image.numel() + rounding.peak)
    return tiles * int(counter.get_total_flops()), most, sum(weight.numel() for weight in weights)


def check_fits(model: ModelSpec, width: int, height: int, steps: int, memory: float, **options: Any) -> GenerationPlan:
    """Return the plan of an image if it fits into the memory.

    Raises:
        InputError: it does not; says how much it takes, and the largest image of its shape that would fit.
    """
    plan = plan_generation(model, width, height, steps, **options)
    if plan.peak_bytes <= memory:
        return plan
    whole = max(width, height) // model.multiple  # the longer side in multiples, as are these
    low, high = 0, whole
    while high - low > 1:
        middle = (low + high) // 2
        sides = _scaled(model, width, height, middle / whole)
        fits = plan_generation(model, *sides, steps, **options).peak_bytes <= memory
        low, high = (middle, high) if fits else (low, middle)
    best = _scaled(model, width, height, low / whole)
    hint = f"{best[0]}x{best[1]} would fit" if low > 0 else "not even the smallest image would fit"
    raise InputError(
        f"size {width}x{height} takes {plan.peak_bytes / 1e9:.2f} GB, there are {memory / 1e9:.2f} GB: {hint}"
    )


def check_room(model: ImageModel, width: int, height: int, scale: float | None, key_grid: int | None = None) -> None:
    """Refuse what memory cannot hold; only large images of transition models are worth the second that it takes."""
    if width * height <= 1024 * 1024 or not isinstance(model, Model):
        return
    if not isinstance(model.pipeline.transformer, TransitionTransformer2DModel):  # other networks are not planned
        return
    memory, guided = memory_of(model.pipeline.device), is_guided(model.pipeline.resolve_guidance(scale))
    check_fits(ModelSpec.of(model), width, height, 1, memory, guided=guided, key_grid=key_grid)


def _scaled(model: ModelSpec, width: int, height: int, share: float) -> tuple[int, int]:
    """That share of both sides, in multiples of at least one."""
    across, down = (max(1, round(share * side / model.multiple)) * model.multiple for side in (width, height))
    return across, down


def describe(plan: GenerationPlan, memory: float, rate: float) -> dict[str, str]:
    """Describe a plan, by name and in words.

    Args:
        memory: bytes there are.
        rate: operations a second.
    """
    tiles = "" if plan.decode_flops == 0 else f", in tiles of at most {TILE}x{TILE} pixels"
    seconds = plan.flops / rate
    return {
        "parameters": f"{plan.parameters:,} and {plan.codec_parameters:,} of the codec, "
        f"{plan.weight_bytes / 1e9:.2f} GB",
        "tokens": f"{plan.tokens:,} in one sequence",
        "network evaluations": f"{plan.evaluations} of {plan.evaluation_flops / 1e12:,.3f} TFLOP, "
        f"{plan.attention_flops / max(1, plan.evaluation_flops):.0%} of it attention",
        "decoding": f"{plan.decode_flops / 1e12:,.3f} TFLOP{tiles}",
        "memory": f"{plan.peak_bytes / 1e9:.2f} GB of {memory / 1e9:.0f} GB: the weights, and "
        f"{plan.sampling_bytes / 1e9:.2f} GB while sampling or {plan.decode_bytes / 1e9:.2f} GB while decoding",
        "not counted": "a text encoder, where the model has one",
        "time": f"{seconds:,.1f} s an image at {rate / 1e12:.3g} TFLOP/s",
    }
