"""Prompts to images: encode, sample in any number of steps, decode."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
import torch
from diffusers import DiffusionPipeline
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image
from torch import Tensor

from anystep.bounds import Guidance, check
from anystep.codecs import AutoencoderCodec, Codec, IdentityCodec, to_uint8
from anystep.codecs.tiling import decode_tiled, encode_tiled
from anystep.conditioning import Conditioner, LabelEncoder, TextEncoder, load_text_encoder
from anystep.data.images import to_tensor
from anystep.data.sizing import fit
from anystep.errors import InputError
from anystep.models.rotary import RotaryScaling
from anystep.models.transformer import TransitionTransformer2DModel
from anystep.pipelines.scheduler import TransitionScheduler
from anystep.sampling import StopSampling, is_guided, noise, sample

MOST_ASPECT = 5  # longest side over shortest


@dataclass
class TransitionPipelineOutput(BaseOutput):
    """`images` in the form asked for, and `nfe`, the network evaluations spent on each."""

    images: Any
    nfe: int


class TransitionPipeline(DiffusionPipeline):
    """Text- or class-to-image generation with a transition model.

    Args:
        transformer, scheduler: the network and its transport.
        codec: a diffusers AutoencoderDC or AutoencoderKL; None for a model of pixels.
        text_encoder, tokenizer: of the captions. None where `text_encoder_name` says what to load instead, or where
            the model is class-conditional.
        text_encoder_name: `builtin`, or a folder or hub id.
        class_names: of a class-conditional model; their order is that of the labels.
        concepts: what the model was shown, for suggestions.
        guidance_scale: used when a call gives none.
        license: of the weights.
        sampling: how the network was trained to be asked, a word of `anystep.objectives`.
        trained_shapes: sizes in pixels, the most frequent first; squares of the base size when None.
    """

    model_cpu_offload_seq = "text_encoder->transformer->codec"
    _optional_components = ["codec", "text_encoder", "tokenizer"]
    _callback_tensor_inputs = ["latents"]

    def __init__(
        self,
        transformer: TransitionTransformer2DModel,
        scheduler: TransitionScheduler,
        codec: Any = None,
        text_encoder: Any = None,
        tokenizer: Any = None,
        text_encoder_name: str | None = None,
        class_names: list[str] | None = None,
        concepts: list[str] | None = None,
        guidance_scale: float = 1.0,
        license: str | None = None,
        sampling: str = "transition",
        trained_shapes: list[str] | None = None,
    ) -> None:
        super().__init__()
        self.register_modules(
            transformer=transformer, scheduler=scheduler, codec=codec, text_encoder=text_encoder, tokenizer=tokenizer
        )
        self.register_to_config(
            text_encoder_name=text_encoder_name,
            class_names=class_names,
            concepts=concepts,
            guidance_scale=guidance_scale,
            license=license,
            sampling=sampling,
            trained_shapes=trained_shapes,
        )
        self._conditioner: Conditioner | None = None
        self._interrupt = False

    @property
    def conditioner(self) -> Conditioner:
        """What encodes prompts; a text encoder given by name is loaded on first use."""
        if self._conditioner is None:
            if self.config.class_names is not None:
                self._conditioner = LabelEncoder(self.config.class_names)
            elif self.text_encoder is not None:
                self._conditioner = TextEncoder(self.tokenizer, self.text_encoder, "pipeline")
            else:
                encoder = load_text_encoder(self.config.text_encoder_name)
                encoder.model.to(self.device)
                self._conditioner = encoder
        return self._conditioner

    @property
    def latent_codec(self) -> Codec:
        return (
            IdentityCodec(self.transformer.config.in_channels) if self.codec is None else AutoencoderCodec(self.codec)
        )

    @property
    def size_multiple(self) -> int:
        """Both sides of an image must be multiples of this."""
        return self.latent_codec.factor * int(self.transformer.config.patch_size)

    @property
    def base_size(self) -> int:
        """Side in pixels of the images the model was trained on."""
        return self.latent_codec.factor * int(self.transformer.config.sample_size)

    def resolve_guidance(self, scale: float | None) -> float:
        """The guidance scale of a call: the model's own for None, and 1.0 for all that mean unguided.

        Raises:
            InputError: negative, not finite or no number.
        """
        checked = float(check("guidance_scale", self.config.guidance_scale if scale is None else scale, Guidance))
        return checked if is_guided(checked) else 1.0

    @property
    def interrupt(self) -> bool:
        return self._interrupt

    def check_inputs(self, prompts: Sequence[Any], height: int, width: int, steps: int, output_type: str) -> None:
        """Raises InputError in one line for what cannot be generated."""
        for prompt in prompts:
            if isinstance(prompt, str) and not prompt.strip():
                raise InputError('empty prompt: say what to draw, for example "a red apple"')
        if not prompts:
            raise InputError('no prompt given: say what to draw, for example "a red apple"')
        if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
            raise InputError(f"steps {steps!r}: expected a whole number of at least 1")
        if height < 1 or width < 1 or height % self.size_multiple or width % self.size_multiple:
            raise InputError(f"size {width}x{height}: both sides must be multiples of {self.size_multiple}")
        if max(width, height) > MOST_ASPECT * min(width, height):
            raise InputError(f"size {width}x{height}: one side may be {MOST_ASPECT} times the other at most")
        if output_type not in ("pil", "np", "pt", "latent"):
            raise InputError(f"output_type {output_type!r}: expected pil, np, pt or latent")

    @contextmanager
    def stretched(self, rope_scaling: str | None, key_grid: int | None) -> Iterator[None]:
        """The transformer changed, for a while, for images larger than those of training."""
        network = self.transformer
        before = network.rope_scaling, network.key_grid
        network.rope_scaling = rope_scaling or before[0]
        network.key_grid = before[1] if key_grid is None else key_grid
        try:
            yield
        finally:
            network.rope_scaling, network.key_grid = before

    def encode(self, image: Image.Image, height: int, width: int) -> Tensor:
        """The latent (1, channels, rows, columns) of an image, scaled until it covers that size, and cropped."""
        return encode_tiled(self.latent_codec, to_tensor(fit(image, (width, height)))[None].to(self.device))

    def encode_prompt(self, prompts: Sequence[Any], device: Any) -> tuple[Tensor, Tensor | None]:
        """Condition and mask of the prompts, on the device."""
        condition, mask = self.conditioner(prompts)
        return condition.to(device), None if mask is None else mask.to(device)

    def prepare_latents(
        self,
        shape: Sequence[int],
        generator: torch.Generator | list[torch.Generator] | None,
        seeds: Sequence[int] | None,
        latents: Tensor | None,
        device: Any,
    ) -> Tensor:
        """Noise of that shape: `latents` as they are, else one CPU generator a seed, else diffusers' generators."""
        if latents is not None:
            if tuple(latents.shape) != tuple(shape):
                raise InputError(f"latents of shape {tuple(latents.shape)}: expected {tuple(shape)}")
            return latents.to(device, torch.float32)
        if seeds is not None:
            if not all(-(2**63) <= seed < 2**63 for seed in seeds):
                raise InputError(f"seeds {list(seeds)}: expected whole numbers of at most 64 bits")
            if len(seeds) != shape[0]:
                raise InputError(f"{len(seeds)} seeds for {shape[0]} images: expected one each")
            return noise(shape[1:], seeds).to(device)
        if isinstance(generator, list) and len(generator) != shape[0]:
            raise InputError(f"{len(generator)} generators for {shape[0]} images: expected one each")
        return randn_tensor(tuple(shape), generator=generator, device=torch.device(device), dtype=torch.float32)

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | int | Sequence[str | int],
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 4,
        guidance_scale: float | None = None,
        guidance_interval: tuple[float, float] | None = None,
        num_images_per_prompt: int = 1,
        generator: torch.Generator | list[torch.Generator] | None = None,
        seeds: Sequence[int] | None = None,
        latents: Tensor | None = None,
        stochasticity: float | None = None,
        rope_scaling: str | None = None,
        key_grid: int | None = None,
        image: Image.Image | None = None,
        strength: float = 0.6,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[[Any, int, Any, dict[str, Any]], dict[str, Any]] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> TransitionPipelineOutput | tuple[Any, int]:
        """Images of the prompts.

        Args:
            prompt: a caption, class name or class index, or several.
            height, width: in pixels, multiples of `size_multiple`; the training size by default.
            num_inference_steps: any number; each costs one network evaluation, two where guided.
            guidance_scale: 1 and below mean unguided; the model's own default when None.
            guidance_interval: closed interval of t in which to guide.
            generator, seeds, latents: where the noise comes from. A seed gives the same image on every device and in
                every batch.
            stochasticity: of `anystep.sampling.sample`; needs `seeds`. By default 1 for a consistency model, else 0.
            rope_scaling: what becomes of positions beyond those of training (`anystep.models.rotary.frequencies`);
                the model's own when None.
            key_grid: tokens along the longer side that are attended to (`anystep.models.key_grid`); the model's own,
                else all, when None.
            image: to start from; scaled until it covers `height` x `width`, and cropped. Several seeds, or
                `num_images_per_prompt`, give variations of it.
            strength: the share of the times to go through from there, above 0 and at most 1, which leaves nothing of
                the image where a transport ends in pure noise.
            output_type: `pil`; `np` (batch, height, width, 3) or `pt` (batch, 3, height, width) in [0, 1]; `latent`.
            callback_on_step_end: called as (pipeline, step, timestep, {"latents": ...}); may return new latents, and
                may set `pipeline._interrupt` to stop.

        Raises:
            InputError: what cannot be generated, in one line.
        """
        prompts = [prompt] if isinstance(prompt, str | int) else list(prompt)
        height, width = height or self.base_size, width or self.base_size
        self.check_inputs(prompts, height, width, num_inference_steps, output_type)
        unknown = set(callback_on_step_end_tensor_inputs) - set(self._callback_tensor_inputs)
        if unknown:
            raise InputError(f"unknown callback tensors {sorted(unknown)}: expected {self._callback_tensor_inputs}")
        if guidance_interval is not None and not guidance_interval[0] <= guidance_interval[1]:
            raise InputError(f"guidance interval {guidance_interval}: expected the lower time first")
        if stochasticity is None:
            stochasticity = float(self.config.sampling == "consistency" and num_inference_steps > 1)
        if not 0 <= stochasticity <= 1:
            raise InputError(f"stochasticity {stochasticity}: expected 0 to 1")
        if stochasticity and seeds is None:
            raise InputError(f"stochasticity {stochasticity} needs seeds, one an image")
        guidance = self.resolve_guidance(guidance_scale)
        device, codec = self._execution_device, self.latent_codec
        self._interrupt = False
        if image is not None and not 0 < strength <= 1:
            raise InputError(f"strength {strength}: expected more than 0 and at most 1")
        if rope_scaling is not None and rope_scaling not in get_args(RotaryScaling):
            raise InputError(f"rope scaling {rope_scaling!r}: expected one of {', '.join(get_args(RotaryScaling))}")

        prompts = [each for each in prompts for _ in range(num_images_per_prompt)]
        condition, mask = self.encode_prompt(prompts, device)
        null, null_mask = self.conditioner.null(len(prompts)) if is_guided(guidance) else (None, None)
        shape = (len(prompts), self.transformer.config.in_channels, height // codec.factor, width // codec.factor)
        z = self.prepare_latents(shape, generator, seeds, latents, device)
        given = None if image is None else self.encode(image, height, width).expand(shape)

        with self.progress_bar(total=num_inference_steps) as progress, self.stretched(rope_scaling, key_grid):

            def on_step(index: int, time: float, x: Tensor) -> Tensor | None:
                progress.update()
                changed: dict[str, Any] = {}
                if callback_on_step_end is not None:
                    timestep = time * self.scheduler.config.num_train_timesteps
                    changed = callback_on_step_end(self, index, timestep, {"latents": x}) or {}
                if self._interrupt:
                    raise StopSampling
                return changed.get("latents")

            sampled = sample(
                self.transformer,
                self.scheduler.transport,
                z,
                condition,
                self.scheduler.times(num_inference_steps, height, width, 1.0 if image is None else strength),
                given=given,
                condition_mask=mask,
                null_condition=None if null is None else null.to(device),
                null_mask=None if null_mask is None else null_mask.to(device),
                guidance=guidance,
                guidance_interval=guidance_interval,
                stochasticity=stochasticity,
                instantaneous=self.config.sampling == "instantaneous",
                seeds=seeds,
                on_step=on_step,
            )
        images: Any = sampled.sample
        if output_type != "latent":
            images = (to_uint8(decode_tiled(codec, images)) / 255).float()
        if output_type in ("np", "pil"):
            images = images.permute(0, 2, 3, 1).cpu().numpy()
        if output_type == "pil":
            images = [Image.fromarray((image * 255).round().astype(np.uint8)) for image in images]
        self.maybe_free_model_hooks()
        return TransitionPipelineOutput(images, sampled.nfe) if return_dict else (images, sampled.nfe)


TransitionPipeline.__module__ = "anystep"
