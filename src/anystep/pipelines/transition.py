"""Prompts to images: encode, sample in any number of steps, decode."""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from threading import RLock, get_ident
from typing import Any, get_args

import numpy as np
import torch
from diffusers import AutoencoderDC, AutoencoderKL, DiffusionPipeline
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image
from torch import Tensor

from anystep import bounds
from anystep.bounds import Guidance, check, shown
from anystep.codecs import AutoencoderCodec, Codec, IdentityCodec, to_uint8
from anystep.codecs.codec import check_whole, load_autoencoder
from anystep.codecs.tiling import decode_tiled, encode_tiled
from anystep.conditioning import Conditioner, LabelEncoder, TextEncoder, load_text_encoder
from anystep.data.images import to_rgb, to_tensor
from anystep.data.sizing import resize_and_crop
from anystep.errors import InputError
from anystep.files import read_json
from anystep.model_folder import check_model_folder
from anystep.models.rotary import RotaryScaling
from anystep.models.transformer import TransitionTransformer2DModel
from anystep.objective.presets import OBJECTIVES
from anystep.pipelines.scheduler import Planning, TransitionScheduler
from anystep.sampling import StepPlan, StopSampling, guided, initial_sample, is_guided, noise, sample

MOST_ASPECT = 5  # longest side over shortest
EARLIER_VAE = "codec"  # what the component `vae` was called, and its folder
MOST_TOLD = 5  # prompts that are cut, of which one pipeline tells
HUB_OPTIONS = ("cache_dir", "force_download", "proxies", "local_files_only", "token", "revision", "variant",
               "use_safetensors")  # fmt: skip
log = logging.getLogger(__name__)
_LOADING = RLock()  # transformers builds one model at a time


@dataclass
class TransitionPipelineOutput(BaseOutput):
    """`images` in the form asked for, and what was spent on each: `nfe` network evaluations in `steps` transitions."""

    images: Any
    nfe: int
    steps: int = 0


@dataclass
class _Call:
    """What one call is doing. Calls of other threads have their own, so that they do not meet."""

    guidance: float = 1.0
    steps: int = 0
    interrupted: bool = False


class TransitionPipeline(DiffusionPipeline):
    """Text- or class-to-image generation with a transition model.

    Args:
        transformer, scheduler: the network and its transport.
        vae: a diffusers AutoencoderDC or AutoencoderKL; None for a model of pixels. Models that were saved when it was
            called `codec` load as before.
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
    _callback_tensor_inputs = ["latents", "prompt_embeds"]

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
        settings = {
            "text_encoder_name": text_encoder_name,
            "class_names": class_names,
            "concepts": concepts,
            "guidance_scale": guidance_scale,
            "license": license,
            "sampling": sampling,
            "trained_shapes": trained_shapes,
        }
        check_settings(settings)
        self.register_modules(
            transformer=transformer, scheduler=scheduler, vae=vae, text_encoder=text_encoder, tokenizer=tokenizer
        )
        self.register_to_config(**settings)
        self._conditioner: Conditioner | None = None
        self._calls: dict[int, _Call] = {}  # those that run, by thread
        self._last = _Call()
        self._told: set[str] = set()

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **options: Any) -> "TransitionPipeline":
        """That of diffusers, of a folder that was looked through before (`anystep.model_folder`).

        Raises:
            InputError: what is missing, damaged or refused, in one line.
        """
        name = str(pretrained_model_name_or_path)
        options.setdefault("use_safetensors", True)
        try:
            hub = {key: value for key, value in options.items() if key in HUB_OPTIONS}
            folder = Path(name if Path(name).is_dir() else cls.download(name, **hub))
            check_model_folder(folder, options)
            index = read_json(folder / "model_index.json")
            if index.get("_class_name") != TransitionPipeline.__name__:
                raise InputError(f"it is a {shown(index.get('_class_name'))}, not a {TransitionPipeline.__name__}")
            check_settings(index)
            if (index.get(EARLIER_VAE) or [None])[0] is not None and "vae" not in options:
                options["vae"] = _load_earlier_vae(folder / EARLIER_VAE, options)
            pipeline: TransitionPipeline = super().from_pretrained(str(folder), **options)
            for part in pipeline.components.values():
                if isinstance(part, torch.nn.Module):
                    check_whole(part)
            _ = pipeline.latent_codec
        except Exception as error:  # diffusers, safetensors and the hub raise many kinds; all mean it is not usable
            reason = " ".join(str(error).split()).replace(f"{name}/", "")
            if not isinstance(error, InputError):
                reason = f"{type(error).__name__}: {reason[:200]}"
                if not Path(name).exists():  # a folder's mistyped name looks like a hub id
                    reason = f"there is no such folder, and no model of that name came from the hub ({reason[:120]})"
            raise InputError(f"cannot load model {name!r}: {reason}") from error
        return pipeline

    @classmethod
    def load_config(cls, *arguments: Any, **options: Any) -> Any:
        """That of diffusers, in the words of today."""
        loaded = super().load_config(*arguments, **options)
        config = loaded[0] if isinstance(loaded, tuple) else loaded
        if EARLIER_VAE in config:
            config["vae"] = config.pop(EARLIER_VAE)
        return loaded

    def save_pretrained(self, save_directory: Any, *arguments: Any, **options: Any) -> None:
        """That of diffusers. Raises `InputError` before anything is written where it could not be loaded."""
        self.transformer.check_saveable()
        super().save_pretrained(save_directory, *arguments, **options)

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
            raise InputError(
                f"text encoder {encoder.name!r} gives states {encoder.width} wide, but the network reads "
                f"{config.text_width}"
            )
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
        checked = float(check("guidance_scale", self.config.guidance_scale if scale is None else scale, Guidance))
        return checked if is_guided(checked) else 1.0

    @property
    def guidance_embedded(self) -> bool:
        """Whether the network is told the guidance scale, and answers as if guided in one evaluation."""
        return bool(self.transformer.config.get("guidance_embed"))

    def evaluations_per_step(self, scale: Any = None) -> int:
        """Network evaluations of one image in a step of that guidance scale, the model's own for None."""
        return 1 + (is_guided(self.resolve_guidance(scale)) and not self.guidance_embedded)

    def plan(
        self,
        steps: int,
        plan: Any = None,
        stochasticity: Any = None,
        shift: Any = None,
    ) -> StepPlan:
        """What a call with these arguments does with so many steps: see `__call__`.

        Raises:
            InputError: a value that is none of its kind.
        """
        found = self.scheduler.plan(steps, plan)
        if found is None:
            found = StepPlan(steps, stochasticity=float(self.config.sampling == "consistency" and steps > 1))
        changes: dict[str, Any] = {"stochasticity": stochasticity, "shift": shift}
        if self.config.sampling == "instantaneous":
            changes["velocity_below"] = 1.0
        changes = {name: value for name, value in changes.items() if value is not None}
        kinds = {"stochasticity": bounds.Share, "shift": bounds.TimeShift, "velocity_below": bounds.Share}
        return replace(found, **{name: check(name, value, kinds[name]) for name, value in changes.items()})

    @property
    def _call(self) -> _Call:
        return self._calls.get(get_ident(), self._last)

    def __repr__(self) -> str:
        """The parts by their classes, and plain settings; lists by their lengths, since errors of Python show it."""
        parts = [f"{name}={type(part).__name__}" for name, part in self.components.items() if part is not None]
        settings = {name: value for name, value in self.config.items() if name not in self.components}
        said = [
            f"{name}=<{len(value)}>" if isinstance(value, list) else f"{name}={value!r}"
            for name, value in settings.items()
            if value is not None and not name.startswith("_")
        ]
        return f"{type(self).__name__}({', '.join([*parts, *said])})"

    @property
    def interrupt(self) -> bool:
        """Whether the call of this thread was stopped. Set in a callback it stops that call, elsewhere all that run."""
        return self._call.interrupted

    @interrupt.setter
    def interrupt(self, value: bool) -> None:
        own = self._calls.get(get_ident())
        for call in [own] if own is not None else list(self._calls.values()):
            call.interrupted = bool(value)

    _interrupt = interrupt  # the name in diffusers

    @property
    def guidance_scale(self) -> float:
        """Of the step that comes next; a callback may set `_guidance_scale`."""
        return self._call.guidance

    @guidance_scale.setter
    def guidance_scale(self, value: float) -> None:
        self._call.guidance = value

    _guidance_scale = guidance_scale

    @property
    def do_classifier_free_guidance(self) -> bool:
        """Whether the step that comes next is guided, by a second evaluation."""
        return is_guided(self.guidance_scale) and not self.guidance_embedded

    @property
    def num_timesteps(self) -> int:
        """Steps of the call that runs, or of the last one."""
        return self._call.steps

    def check_inputs(self, prompts: Sequence[Any], height: Any, width: Any, steps: Any, output_type: Any) -> None:
        """Raises InputError in one line for what cannot be generated."""
        for prompt in prompts:
            if isinstance(prompt, str) and not prompt.strip():
                raise InputError('empty prompt: say what to draw, for example "a red apple"')
            if self.transformer.config.num_classes is None and not isinstance(prompt, str):
                raise InputError(f"prompt {shown(prompt)}: expected text, which is what this model reads")
            if isinstance(prompt, str) and any("\ud800" <= letter <= "\udfff" for letter in prompt):
                raise InputError(f"prompt {shown(prompt)}: not text, its bytes are no UTF-8")
        if not prompts:
            raise InputError('no prompt given: say what to draw, for example "a red apple"')
        check("steps", steps, bounds.SamplingSteps)
        for name, side in (("height", height), ("width", width)):
            check(name, side, bounds.Side)
        if height % self.size_multiple or width % self.size_multiple:
            raise InputError(f"size {width}x{height}: both sides must be multiples of {self.size_multiple}")
        if max(width, height) > MOST_ASPECT * min(width, height):
            raise InputError(f"size {width}x{height}: one side may be {MOST_ASPECT} times the other at most")
        channels, codec = self.transformer.config.in_channels, self.latent_codec
        if codec.channels != channels or (self.vae is None and channels not in (1, 3) and output_type != "latent"):
            other = "there is no codec" if self.vae is None else f"the codec's have {codec.channels}"
            raise InputError(f"the network draws latents of {channels} channels, but {other}: give the codec it is for")
        if output_type not in ("pil", "np", "pt", "latent"):
            raise InputError(f"output_type {shown(output_type)}: expected pil, np, pt or latent")

    @torch.no_grad()
    def encode(self, image: Any, height: int, width: int) -> Tensor:
        """The latent (1, channels, rows, columns) of an image, scaled until it covers that size, and cropped.

        Raises:
            InputError: no image, or one whose pixels cannot be read as RGB.
        """
        if not isinstance(image, Image.Image):
            raise InputError(f"image {shown(type(image).__name__)}: expected a PIL image, or one for each prompt")
        try:
            pixels = to_tensor(resize_and_crop(to_rgb(image), (width, height)))
        except (OSError, ValueError, SyntaxError) as error:  # of a file that PIL opens lazily
            raise InputError(f"image: cannot be read: {' '.join(str(error).split())}") from None
        return encode_tiled(self.latent_codec, pixels[None].to(self._execution_device))

    def encode_prompt(self, prompts: Any, device: Any) -> tuple[Tensor, Tensor | None]:
        """Condition and mask of the prompts, or of one, on the device."""
        return _on_device(self.conditioner(listed(prompts)), device)

    def _tell_of_cuts(self, prompts: Sequence[Any]) -> None:
        """Say in one line what of a prompt is not read, once for each of the first few."""
        if not isinstance(self.conditioner, TextEncoder):
            return
        for prompt in dict.fromkeys(prompts):
            if len(self._told) < MOST_TOLD and prompt not in self._told and (rest := self.conditioner.cut_off(prompt)):
                self._told.add(prompt)
                log.warning(
                    "the prompt is longer than the %d tokens that are read: %s is not drawn",
                    self.conditioner.max_length, shown(rest.strip(), 120),
                )  # fmt: skip

    def prepare_latents(
        self,
        shape: Sequence[int],
        generator: Any,
        seeds: Sequence[int] | None,
        latents: Any,
        device: Any,
    ) -> Tensor:
        """Noise of that shape: `latents` as they are, else one CPU generator a seed, else diffusers' generators."""
        if latents is not None:
            if not isinstance(latents, Tensor) or not latents.is_floating_point():
                raise InputError(f"latents {shown(type(latents).__name__)}: expected a tensor of floating point")
            if not bool(latents.isfinite().all()):
                raise InputError("latents: expected finite numbers")
            if tuple(latents.shape) != tuple(shape):
                raise InputError(f"latents of shape {tuple(latents.shape)}: expected {tuple(shape)}")
            return latents.to(device, torch.float32)
        if seeds is not None:
            if len(seeds) != shape[0]:
                raise InputError(f"{len(seeds)} seeds for {shape[0]} images: expected one each")
            return noise(shape[1:], seeds).to(device)
        given = generator if isinstance(generator, list) else [generator]
        if not all(isinstance(each, torch.Generator | None) for each in given):
            raise InputError(f"generator {shown(generator)}: expected a torch.Generator, or a list of one an image")
        if isinstance(generator, list) and len(generator) != shape[0]:
            raise InputError(f"{len(generator)} generators for {shape[0]} images: expected one each")
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
            key_grid: tokens along the longer side that are attended to (`anystep.models.key_grid`); all when None.
            image: to start from, or one for each prompt or each image; scaled until it covers `height` x `width`, and
                cropped. Several seeds, or `num_images_per_prompt`, give variations of it.
            strength: the share of the times to go through from there, above 0 and at most 1, which leaves nothing of
                the image where a transport ends in pure noise.
            output_type: `pil`; `np` (batch, height, width, 3) or `pt` (batch, 3, height, width) in [0, 1]; `latent`.
            callback_on_step_end: called as (pipeline, step, timestep, tensors) after each step, with the timestep that
                the step began at; or a callback of diffusers. It may return {"latents": ...} to go on with, may set
                `pipeline.interrupt` to stop, and `pipeline.guidance_scale` of the steps to come.
            callback_on_step_end_tensor_inputs: what it is given, of `latents` and `prompt_embeds`.

        Raises:
            InputError: what cannot be generated, in one line.
        """
        prompts = listed(prompt)
        height, width = self.base_size if height is None else height, self.base_size if width is None else width
        self.check_inputs(prompts, height, width, num_inference_steps, output_type)
        height, width, steps = int(height), int(width), int(num_inference_steps)
        repeats = check("num_images_per_prompt", num_images_per_prompt, bounds.Images)
        count = len(prompts) * repeats
        if isinstance(callback_on_step_end, PipelineCallback | MultiPipelineCallbacks):
            callback_on_step_end_tensor_inputs = callback_on_step_end.tensor_inputs
        elif callback_on_step_end is not None and not callable(callback_on_step_end):
            raise InputError(f"callback_on_step_end {shown(callback_on_step_end)}: expected a function")
        unknown = [name for name in callback_on_step_end_tensor_inputs if name not in self._callback_tensor_inputs]
        if unknown:
            raise InputError(f"unknown callback tensors {shown(unknown)}: expected {self._callback_tensor_inputs}")
        if guidance_interval is not None:
            guidance_interval = _interval(guidance_interval)
        if seeds is not None:
            if isinstance(seeds, str | bytes) or not hasattr(seeds, "__len__"):
                raise InputError(f"seeds {shown(seeds)}: expected whole numbers, one an image")
            seeds = [check("seed", seed, bounds.Seed) for seed in seeds]
        planned = self.plan(steps, plan, stochasticity, shift)
        guidance = self.resolve_guidance(guidance_scale)
        network = self.transformer.config
        twice = self.evaluations_per_step(guidance) == 2
        if twice and network.num_classes is not None and not network.class_dropout_prob:
            raise InputError(f"guidance {guidance:g}: this network knows no empty class, so it draws unguided only")
        device, codec = self._execution_device, self.latent_codec
        if image is not None:
            strength = check("strength", strength, bounds.PositiveShare)
        if rope_scaling is not None and rope_scaling not in get_args(RotaryScaling):
            words = ", ".join(get_args(RotaryScaling))
            raise InputError(f"rope_scaling {shown(rope_scaling)}: expected one of {words}")
        if key_grid is not None:
            key_grid = check("key_grid", key_grid, bounds.KeyGrid)

        self._tell_of_cuts(prompts)
        prompts = [each for each in prompts for _ in range(repeats)]
        condition, mask = self.encode_prompt(prompts, device)
        null = _on_device(self.conditioner.null(count), device) if twice else None
        shape = (count, self.transformer.config.in_channels, height // codec.factor, width // codec.factor)
        z = self.prepare_latents(shape, generator, seeds, latents, device)
        if planned.stochasticity and seeds is None:
            seeds = _drawn_seeds(generator, count)
        init_latents = None if image is None else self._encode_all(image, height, width, count, repeats)
        times = self.scheduler.times(planned, height, width, 1.0 if image is None else strength)
        timesteps = (times * self.scheduler.config.num_train_timesteps).tolist()
        call, before = _Call(guidance, planned.steps), self._calls.get(get_ident())
        transport = self.scheduler.transport
        predict = guided(
            self.transformer, transport, (condition, mask), null, lambda: call.guidance, guidance_interval,
            self.guidance_embedded, rope_scaling=rope_scaling, key_grid=key_grid,
        )  # fmt: skip

        with self.progress_bar(total=planned.steps) as progress:

            def on_step(index: int, time: float, x: Tensor) -> Tensor | None:
                progress.update()
                latents: Tensor | None = None
                if callback_on_step_end is not None:
                    tensors = {"latents": x, "prompt_embeds": condition}
                    tensors = {name: tensors[name] for name in callback_on_step_end_tensor_inputs}
                    changed = callback_on_step_end(self, index, timesteps[index], tensors)
                    latents = None if changed is None else _latents_of(changed, x)
                if call.interrupted:
                    raise StopSampling
                return latents

            self._calls[get_ident()] = call
            try:
                sampled = sample(
                    predict,
                    transport,
                    initial_sample(transport, z, float(times[0]), init_latents),
                    times,
                    stochasticity=planned.stochasticity,
                    velocity_below=planned.velocity_below,
                    memory=planned.memory,
                    seeds=seeds,
                    callback=on_step,
                )
            finally:
                self._last = self._calls.pop(get_ident())
                if before is not None:  # a callback has called the pipeline
                    self._calls[get_ident()] = before
        images: Any = sampled.sample
        check_finite(images, f"the model, in {steps} steps with guidance {guidance:g},")
        if output_type != "latent":
            decoded = decode_tiled(codec, images)
            check_finite(decoded, "the codec")
            images = (to_uint8(decoded) / 255).float()
        if output_type in ("np", "pil"):
            images = images.permute(0, 2, 3, 1).cpu().numpy()
        if output_type == "pil":
            images = [Image.fromarray((image * 255).round().astype(np.uint8)) for image in images]
        self.maybe_free_model_hooks()
        if not return_dict:
            return images, sampled.nfe
        return TransitionPipelineOutput(images, sampled.nfe, sampled.steps)

    def _encode_all(self, image: Any, height: int, width: int, count: int, repeats: int) -> Tensor:
        """The latents of one image for all, of one for each prompt, or of one for each of `count` images."""
        images = list(image) if isinstance(image, list | tuple) else [image]
        if len(images) not in (1, count // repeats, count):
            raise InputError(f"{len(images)} images to start from: expected one, or one for each of {count // repeats}")
        latents = torch.cat([self.encode(each, height, width) for each in images])
        return latents.repeat_interleave(count // len(images), dim=0)


def _load_earlier_vae(folder: Path, options: Mapping[str, Any]) -> Any:
    """The autoencoder of a model that was saved with the earlier name, as the options of `from_pretrained` say."""
    dtype = options.get("dtype", options.get("torch_dtype"))
    if isinstance(dtype, Mapping):
        dtype = dtype.get("vae", dtype.get("default", torch.float32))
    more = {name: options[name] for name in ("use_safetensors", "variant") if name in options}
    return load_autoencoder(folder, dtype=dtype, **more)


def check_settings(settings: Mapping[str, Any]) -> None:
    """Refuse values of a pipeline's settings, or of its model_index.json, that are not of their kind.

    Raises:
        InputError: one line that names the setting, its value and what was expected.
    """
    for name in ("class_names", "concepts", "trained_shapes"):
        texts = settings.get(name)
        if texts is not None and not (isinstance(texts, list | tuple) and all(isinstance(each, str) for each in texts)):
            raise InputError(f"{name} {shown(texts)}: expected a list of texts")
    for name in ("text_encoder_name", "license"):
        if not isinstance(settings.get(name), str | None):
            raise InputError(f"{name} {shown(settings[name])}: expected text")
    words = sorted({preset.sampling for preset in OBJECTIVES.values()})
    if settings.get("sampling", words[0]) not in words:
        raise InputError(f"sampling {shown(settings['sampling'])}: expected one of {', '.join(words)}")
    check("guidance_scale", settings.get("guidance_scale", 1.0), Guidance)


def listed(prompt: Any) -> list[Any]:
    """The prompts of a call: one stands for a list of one.

    Raises:
        InputError: neither a prompt nor several.
    """
    if isinstance(prompt, str | bytes) or getattr(prompt, "ndim", 1) == 0 or not hasattr(prompt, "__iter__"):
        return [prompt]
    if isinstance(prompt, Mapping):
        raise InputError(f"prompt {shown(prompt)}: expected a prompt, or a list of them")
    return list(prompt)


def _on_device(condition: tuple[Tensor, Tensor | None], device: Any) -> tuple[Tensor, Tensor | None]:
    states, mask = condition
    return states.to(device), None if mask is None else mask.to(device)


def _drawn_seeds(generator: Any, count: int) -> list[int]:
    """Of fresh noise, where the noise at the start had none: from one generator, or from that of each image."""
    each = generator if isinstance(generator, list) else [generator] * count
    return [int(torch.randint(2**62, (1,), generator=one, device="cpu" if one is None else one.device)) for one in each]


def check_finite(numbers: Tensor, source: str) -> None:
    """Raise `InputError` where a sample is not finite: it would be a black picture."""
    if not bool(numbers.isfinite().all()):
        raise InputError(
            f"{source} gives numbers that are not finite: the weights are damaged, or do not bear these settings or "
            "this precision"
        )


def _interval(given: Any) -> tuple[float, float]:
    """A guidance interval; its ends may be infinite."""
    try:
        low, high = (float(each) for each in given)
    except (TypeError, ValueError):
        low = high = math.nan
    if not low <= high:
        raise InputError(f"guidance_interval {shown(given)}: expected the lower time first")
    return low, high


def _latents_of(changed: Any, x: Tensor) -> Tensor | None:
    """What a callback wants to go on with."""
    latents = changed.get("latents") if isinstance(changed, Mapping) else changed
    if latents is not None and (not isinstance(latents, Tensor) or latents.shape != x.shape):
        raise InputError(f"a callback returned {shown(changed)}: expected a dict with latents of {tuple(x.shape)}")
    return None if latents is None else latents.to(x)


TransitionPipeline.__module__ = "anystep"
