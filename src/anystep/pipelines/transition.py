"""Prompts to images: encode, sample in any number of steps, decode."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from threading import RLock
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderDC, AutoencoderKL
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image
from torch import Tensor

from anystep import bounds
from anystep.bounds import check, shown
from anystep.codecs import AutoencoderCodec, Codec, IdentityCodec, to_uint8
from anystep.codecs.tiling import decode_tiled, encode_tiled
from anystep.conditioning import Conditioner, LabelEncoder, TextEncoder, load_text_encoder
from anystep.data.images import to_rgb, to_tensor
from anystep.data.sizing import resize_and_crop
from anystep.errors import InputError, refused
from anystep.models.transformer import TransitionTransformer2DModel
from anystep.pipelines import inputs
from anystep.pipelines.calls import Call, CallState
from anystep.pipelines.inputs import CallOptions, listed
from anystep.pipelines.saved import SavedPipeline
from anystep.pipelines.scheduler import Planning, TransitionScheduler
from anystep.sampling import (
    StepPlan,
    drawn_seeds,
    evaluations_per_step,
    guided,
    initial_sample,
    is_guided,
    noise,
    sample,
)

MAX_WARNINGS = 5  # about prompts that are cut, of one pipeline
log = logging.getLogger(__name__)
_LOADING = RLock()  # transformers builds one model at a time


@dataclass
class TransitionPipelineOutput(BaseOutput):
    """`images` in the form asked for, and what was spent on each: `nfe` network evaluations in `steps` transitions."""

    images: Any
    nfe: int
    steps: int = 0


class TransitionPipeline(CallState, SavedPipeline):
    """Text- or class-to-image generation with a transition model.

    Args:
        transformer, scheduler: the network and its transport.
        vae: a diffusers AutoencoderDC or AutoencoderKL; None for a model of pixels.
        text_encoder, tokenizer: of the captions. None where `text_encoder_name` says what to load instead, or where
            the model is class-conditional.
        text_encoder_name: `builtin`, or a folder or hub id.
        class_names: of a class-conditional model; their order is that of the labels.
        concepts: what the model was shown, for suggestions.
        guidance_scale: used when a call gives none.
        license: of the weights.
        sampling: how the network was trained to be asked, a word of `anystep.objective.presets`.
        trained_shapes: sizes in pixels, the most frequent first; squares of the base size when None.
    """

    model_cpu_offload_seq = "text_encoder->transformer->vae"
    _optional_components = ["vae", "text_encoder", "tokenizer"]
    _callback_tensor_inputs = inputs.CALLBACK_TENSORS

    def __init__(
        self,
        transformer: TransitionTransformer2DModel,
        scheduler: TransitionScheduler,
        vae: AutoencoderDC | AutoencoderKL | None = None,
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
            transformer=transformer, scheduler=scheduler, vae=vae, text_encoder=text_encoder, tokenizer=tokenizer
        )
        self.register_to_config(
            text_encoder_name=text_encoder_name, class_names=class_names, concepts=concepts,
            guidance_scale=guidance_scale, license=license, sampling=sampling, trained_shapes=trained_shapes,
        )  # fmt: skip
        inputs.check_settings(self.config)
        self._conditioner: Conditioner | None = None
        self._warned: set[str] = set()

    @property
    def conditioner(self) -> Conditioner:
        """What encodes prompts; a text encoder given by name is loaded on first use.

        Raises:
            InputError: no text encoder, or one of another width; class names that are not as many as the classes.
        """
        with _LOADING:
            if self._conditioner is None:
                self._conditioner = self._make_conditioner()
            return self._conditioner

    def _make_conditioner(self) -> Conditioner:
        config, name = self.transformer.config, self.config.text_encoder_name
        if config.num_classes is not None:
            names = self.config.class_names or [str(number) for number in range(config.num_classes)]
            if len(names) != config.num_classes:
                raise InputError(f"{len(names)} class_names for a network of {config.num_classes} classes")
            return LabelEncoder(names)
        if self.text_encoder is not None and self.tokenizer is not None:
            encoder = TextEncoder(self.tokenizer, self.text_encoder, "pipeline")
        elif name is None:
            raise InputError(
                "this pipeline has no text encoder: give it text_encoder and tokenizer, or text_encoder_name "
                "('builtin', a folder or a hub id)"
            )
        else:
            encoder = load_text_encoder(name)
            encoder.model.to(self._execution_device if self.device.type == "meta" else self.device)
        if encoder.width != config.text_width:
            states = f"text encoder {encoder.name!r} gives states {encoder.width} wide"
            raise InputError(f"{states}, but the network reads {config.text_width}")
        return encoder

    @property
    def codec(self) -> AutoencoderDC | AutoencoderKL | None:
        """The autoencoder under its earlier name."""
        return self.vae

    @property
    def latent_codec(self) -> Codec:
        return IdentityCodec(self.transformer.config.in_channels) if self.vae is None else AutoencoderCodec(self.vae)

    @property
    def size_multiple(self) -> int:
        """Both sides of an image must be multiples of this."""
        return self.latent_codec.factor * int(self.transformer.config.patch_size)

    @property
    def base_size(self) -> int:
        """Side in pixels of the images the model was trained on."""
        return self.latent_codec.factor * int(self.transformer.config.sample_size)

    def resolve_guidance(self, scale: Any) -> float:
        """The guidance scale of a call: the model's own for None, and 1.0 for all that mean unguided.

        Raises:
            InputError: negative, not finite or no number.
        """
        scale = self.config.guidance_scale if scale is None else scale
        checked = float(check("guidance_scale", scale, bounds.Guidance))
        return checked if is_guided(checked) else 1.0

    @property
    def guidance_embedded(self) -> bool:
        """Whether the network is told the guidance scale, and answers as if guided in one evaluation."""
        return bool(self.transformer.config.get("guidance_embed"))

    def evaluations_per_step(self, scale: Any = None) -> int:
        """Network evaluations of one image in a step of that guidance scale, the model's own for None."""
        return evaluations_per_step(is_guided(self.resolve_guidance(scale)), self.guidance_embedded)

    @property
    def do_classifier_free_guidance(self) -> bool:
        """Whether the step that comes next is guided, by a second evaluation."""
        return is_guided(self.guidance_scale) and not self.guidance_embedded

    def plan(self, steps: int, plan: Any = None, stochasticity: Any = None, shift: Any = None) -> StepPlan:
        """What a call with these arguments does with so many steps: see `__call__`.

        Raises:
            InputError: a value that is none of its kind.
        """
        found = self.scheduler.plan(steps, plan)
        if found is None:
            found = StepPlan(steps, stochasticity=float(self.config.sampling == "consistency" and steps > 1))
        if self.config.sampling == "instantaneous":
            found = replace(found, velocity_below=1.0)
        said = {"stochasticity": (stochasticity, bounds.Share), "shift": (shift, bounds.TimeShift)}
        changes = {name: check(name, value, kind) for name, (value, kind) in said.items() if value is not None}
        return replace(found, **changes)

    def check_inputs(self, prompts: Sequence[Any], height: Any, width: Any, steps: Any, output_type: Any) -> None:
        """Raises InputError in one line for what this model cannot generate."""
        config, codec = self.transformer.config, self.latent_codec
        inputs.check_prompts(prompts, reads_text=config.num_classes is None)
        check("steps", steps, bounds.SamplingSteps)
        inputs.check_size(height, width, self.size_multiple)
        channels = config.in_channels
        if codec.channels != channels or (self.vae is None and channels not in (1, 3) and output_type != "latent"):
            other = "there is no codec" if self.vae is None else f"the codec's have {codec.channels}"
            raise InputError(f"the network draws latents of {channels} channels, but {other}: give the codec it is for")
        if output_type not in ("pil", "np", "pt", "latent"):
            raise InputError(f"output_type {shown(output_type)}: expected pil, np, pt or latent")

    def _check_guidance(self, scale: Any) -> float:
        """`resolve_guidance`, refused where the network knows no empty class to guide away from."""
        guidance, network = self.resolve_guidance(scale), self.transformer.config
        unconditional = network.num_classes is None or network.class_dropout_prob
        if self.evaluations_per_step(guidance) == 2 and not unconditional:
            raise InputError(f"guidance {guidance:g}: this network knows no empty class, so it draws unguided only")
        return guidance

    @torch.no_grad()
    def encode(self, image: Any, height: int, width: int) -> Tensor:
        """The latent (1, channels, rows, columns) of an image, scaled until it covers that size, and cropped.

        Raises:
            InputError: no image, or one whose pixels cannot be read as RGB.
        """
        if not isinstance(image, Image.Image):
            raise InputError(f"image {shown(type(image).__name__)}: expected a PIL image, or one for each prompt")
        with refused("image: cannot be read"):  # a file that PIL opens lazily
            pixels = to_tensor(resize_and_crop(to_rgb(image), (width, height)))
        return encode_tiled(self.latent_codec, pixels[None].to(self._execution_device))

    def encode_prompt(self, prompts: Any, device: Any) -> tuple[Tensor, Tensor | None]:
        """Condition and mask of the prompts, or of one, on the device."""
        return _on_device(self.conditioner(listed(prompts)), device)

    def _tell_of_cuts(self, prompts: Sequence[Any]) -> None:
        """Say in one line what of a prompt is not read, once for each of the first few."""
        if not isinstance(self.conditioner, TextEncoder):
            return
        for prompt in [each for each in dict.fromkeys(prompts) if each not in self._warned]:
            if len(self._warned) < MAX_WARNINGS and (rest := self.conditioner.cut_off(prompt)):
                self._warned.add(prompt)
                read, rest = self.conditioner.max_length, shown(rest.strip(), 120)
                log.warning("the prompt is longer than the %d tokens that are read: %s is not drawn", read, rest)

    def prepare_latents(
        self, shape: Sequence[int], generator: Any, seeds: Sequence[int] | None, latents: Any, device: Any
    ) -> Tensor:
        """Noise of that shape: `latents` as they are, else one CPU generator a seed, else diffusers' generators."""
        if latents is not None:
            inputs.check_latents(latents, shape)
            return latents.to(device, torch.float32)
        if seeds is not None:
            if len(seeds) != shape[0]:
                raise InputError(f"{len(seeds)} seeds for {shape[0]} images: expected one each")
            return noise(shape[1:], seeds).to(device)
        inputs.check_generator(generator, shape[0])
        return randn_tensor(tuple(shape), generator=generator, device=torch.device(device), dtype=torch.float32)

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | int | Sequence[str | int] | Tensor | np.ndarray,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 4,
        guidance_scale: float | None = None,
        guidance_interval: tuple[float, float] | None = None,
        num_images_per_prompt: int = 1,
        generator: torch.Generator | list[torch.Generator] | None = None,
        seeds: Sequence[int] | Tensor | np.ndarray | None = None,
        latents: Tensor | None = None,
        stochasticity: float | None = None,
        shift: float | None = None,
        plan: StepPlan | Planning | None = None,
        rope_scaling: str | None = None,
        key_grid: int | None = None,
        image: Image.Image | Sequence[Image.Image] | None = None,
        strength: float = inputs.STRENGTH,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[[Any, int, Any, dict[str, Any]], dict[str, Any]] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> TransitionPipelineOutput | tuple[Any, int]:
        """Images of the prompts.

        Args:
            prompt: a caption, class name or class index, or several.
            height, width: in pixels, multiples of `size_multiple`; the training size by default.
            num_inference_steps: any number; each costs one network evaluation, two where guided by a network that is
                not told the scale. A plan may make fewer.
            guidance_scale: 1 and below mean unguided; the model's own default when None.
            guidance_interval: closed interval of t in which to guide.
            generator, seeds, latents: where the noise comes from. A seed gives the same image on every device and in
                every batch.
            stochasticity: of `anystep.sampling.sample`, in place of the plan's. Fresh noise belongs to the seeds, or
                comes from the generator. Without a plan 1 for a consistency model, else 0.
            shift: of the times beside the model's own, in place of the plan's.
            plan: what the steps are spent on: the model's own plan for so many where it has one (None or `model`),
                `uniform` times, or a plan of yours.
            rope_scaling: what becomes of positions beyond those of training (`anystep.models.rotary.frequencies`);
                the model's own when None.
            key_grid: tokens along the longer side that are attended to, all when None
                (`anystep.models.kv_downsampling`).
            image: to start from, or one for each prompt or each image; scaled until it covers `height` x `width`, and
                cropped. Several seeds, or `num_images_per_prompt`, give variations of it.
            strength: with `image`: the share of the times to go through from there, above 0 and at most 1, which
                leaves nothing of the image where a transport ends in pure noise.
            output_type: `pil`; `np` (batch, height, width, 3) or `pt` (batch, 3, height, width) in [0, 1]; `latent`.
            callback_on_step_end: called as (pipeline, step, timestep, tensors) after each step, with the timestep that
                the step began at; or a callback of diffusers. It may return {"latents": ...} to go on with, may set
                `pipeline.interrupt` to stop, and `pipeline.guidance_scale` of the steps to come.
            callback_on_step_end_tensor_inputs: what it is given, of `latents` and `prompt_embeds`.

        Raises:
            InputError: what cannot be generated, in one line.
        """
        # 1. Check inputs
        prompts = listed(prompt)
        height, width = self.base_size if height is None else height, self.base_size if width is None else width
        self.check_inputs(prompts, height, width, num_inference_steps, output_type)
        options = CallOptions(
            num_images_per_prompt, guidance_interval, seeds, rope_scaling, key_grid, image, strength,
            callback_on_step_end, callback_on_step_end_tensor_inputs,
        )  # fmt: skip
        planned = self.plan(int(num_inference_steps), plan, stochasticity, shift)
        guidance = self._check_guidance(guidance_scale)

        # 2. Define call parameters
        height, width, repeats = int(height), int(width), options.num_images_per_prompt
        count, device, transport = len(prompts) * repeats, self._execution_device, self.scheduler.transport

        # 3. Encode prompts
        self._tell_of_cuts(prompts)
        condition = self.encode_prompt([each for each in prompts for _ in range(repeats)], device)
        twice = self.evaluations_per_step(guidance) == 2
        null = _on_device(self.conditioner.null(count), device) if twice else None

        # 4. Prepare timesteps
        times = self.scheduler.times(planned, height, width, options.strength)
        timesteps = (times * self.scheduler.config.num_train_timesteps).tolist()

        # 5. Prepare latents
        factor = self.latent_codec.factor
        shape = (count, self.transformer.config.in_channels, height // factor, width // factor)
        z = self.prepare_latents(shape, generator, options.seeds, latents, device)
        if planned.stochasticity and options.seeds is None:
            options.seeds = drawn_seeds(generator, count)
        init_latents = self._encode_all(options.images, height, width, count, repeats) if image is not None else None
        x = initial_sample(transport, z, times[0].item(), init_latents)

        # 6. Denoising loop
        call = Call(guidance, planned.steps)
        predict = guided(
            self.transformer, transport, condition, null, lambda: call.guidance, options.guidance_interval,
            self.guidance_embedded, rope_scaling=options.rope_scaling, key_grid=options.key_grid,
        )  # fmt: skip
        with self._running(call), self.progress_bar(total=planned.steps) as progress:
            sampled = sample(
                predict, transport, x, times, stochasticity=planned.stochasticity,
                velocity_below=planned.velocity_below, memory=planned.memory, seeds=options.seeds,
                callback=self._step_callback(call, options, timesteps, condition[0], progress),
            )  # fmt: skip
        inputs.check_finite(sampled.sample, f"the model, in {planned.steps} steps with guidance {guidance:g},")

        # 7. Decode
        images = self._decode(sampled.sample, output_type)

        # 8. Offload all models
        self.maybe_free_model_hooks()
        if not return_dict:
            return images, sampled.nfe
        return TransitionPipelineOutput(images, sampled.nfe, sampled.steps)

    def _decode(self, latents: Tensor, output_type: str) -> Any:
        """Images of latents; `to_uint8` is the one rule by which numbers become pixels."""
        if output_type == "latent":
            return latents
        decoded = decode_tiled(self.latent_codec, latents)
        inputs.check_finite(decoded, "the codec")
        pixels = to_uint8(decoded)
        if output_type == "pil":
            return [Image.fromarray(each) for each in pixels.permute(0, 2, 3, 1).cpu().numpy()]
        scaled = (pixels / 255).float()
        return scaled if output_type == "pt" else scaled.permute(0, 2, 3, 1).cpu().numpy()

    def _encode_all(self, images: list[Any], height: int, width: int, count: int, repeats: int) -> Tensor:
        """The latents of one image for all, of one for each prompt, or of one for each of `count` images."""
        if len(images) not in (1, count // repeats, count):
            raise InputError(f"{len(images)} images to start from: expected one, or one for each of {count // repeats}")
        latents = torch.cat([self.encode(each, height, width) for each in images])
        return latents.repeat_interleave(count // len(images), dim=0)


def _on_device(condition: tuple[Tensor, Tensor | None], device: Any) -> tuple[Tensor, Tensor | None]:
    states, mask = condition
    return states.to(device), None if mask is None else mask.to(device)


TransitionPipeline.__module__ = "anystep"
