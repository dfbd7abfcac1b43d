"""Prompts to images: encode, sample in any number of steps, decode."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderDC, AutoencoderKL, FlowMapEulerDiscreteScheduler
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from anystep import bounds
from anystep.bounds import check, shown
from anystep.errors import InputError
from anystep.models.flow_map import Network
from anystep.models.lora import adapter_state
from anystep.pipelines import inputs
from anystep.pipelines.calls import CallState, registered
from anystep.pipelines.images import OUTPUT_TYPES, ImageCoding
from anystep.pipelines.inputs import CallOptions
from anystep.pipelines.lora import LoraLoading
from anystep.pipelines.prompts import PromptEncoding, Prompts
from anystep.pipelines.saved import SavedPipeline
from anystep.pipelines.scheduler import Planning, TransitionScheduler, transition_scheduler
from anystep.sampling import (
    Sampled,
    StepPlan,
    evaluations_per_step,
    guided,
    initial_sample,
    is_guided,
    noise,
    sample,
    without_ends,
)
from anystep.seeds import drawn_seeds

# tokens of all images of a call up to which a guided step is one batch unless a call says: beyond, a processor is busy
# with one half, and two halves take twice the memory (benchmarks/pipeline.py)
ONE_BATCH_TOKENS = 1024


@dataclass
class TransitionPipelineOutput(BaseOutput):
    """`images` in the form asked for, and what was spent on each: `nfe` network evaluations in `steps` transitions."""

    images: Any
    nfe: int
    steps: int = 0


class TransitionPipeline(CallState, PromptEncoding, ImageCoding, LoraLoading, SavedPipeline):
    """Text- or class-to-image generation with a transition model.

    Args:
        transformer, scheduler: the network (None: prompts and latents are encoded and decoded alone), and its transport
            with the times. A FlowMapEulerDiscreteScheduler of diffusers may stand for the scheduler of `ot_fm`.
        vae: a diffusers AutoencoderDC or AutoencoderKL; None for a model of pixels.
        text_encoder, tokenizer: of the captions. None where `text_encoder_name` says what to load instead, or where
            the model is class-conditional.
        text_encoder_name: `builtin`, or a folder or hub id.
        class_names: of a class-conditional model; their order is that of the labels. Like the other lists of names
            they may be a dict by number.
        concepts: what the model was shown, for suggestions.
        guidance_scale: used when a call gives none.
        license: of the weights.
        sampling: how the network was trained to be asked, a word of `anystep.objective.presets`.
        trained_shapes: sizes in pixels, the most frequent first; squares of the base size when None.
        vae_name: a folder or hub id that the autoencoder is loaded from with the pipeline, where it is not in there.
        open_guidance_interval: whether steps that begin at an end of the guidance interval are unguided, and so is the
            first where no interval is given, as with released weights.
        escape_captions: whether captions are escaped (`TextEncoder.escape`), as released weights learned them.
    """

    model_cpu_offload_seq = "text_encoder->transformer->vae"
    _optional_components = ["vae", "text_encoder", "tokenizer"]
    _callback_tensor_inputs = inputs.CALLBACK_TENSORS

    def __init__(
        self,
        transformer: Network | None,
        scheduler: TransitionScheduler | FlowMapEulerDiscreteScheduler,
        vae: AutoencoderDC | AutoencoderKL | None = None,
        text_encoder: Any = None,
        tokenizer: Any = None,
        text_encoder_name: str | None = None,
        class_names: list[str] | dict[str, str] | None = None,
        concepts: list[str] | dict[str, str] | None = None,
        guidance_scale: float = 1.0,
        license: str | None = None,
        sampling: str = "transition",
        trained_shapes: list[str] | dict[str, str] | None = None,
        vae_name: str | None = None,
        open_guidance_interval: bool = False,
        escape_captions: bool = False,
    ) -> None:
        super().__init__()
        self.register_modules(
            transformer=transformer, scheduler=scheduler, vae=vae, text_encoder=text_encoder, tokenizer=tokenizer
        )
        self.register_to_config(
            text_encoder_name=text_encoder_name, class_names=inputs.in_order(class_names),
            concepts=inputs.in_order(concepts), guidance_scale=guidance_scale, license=license, sampling=sampling,
            trained_shapes=inputs.in_order(trained_shapes),
            vae_name=vae_name, open_guidance_interval=open_guidance_interval, escape_captions=escape_captions,
        )  # fmt: skip
        inputs.check_settings(self.config)

    @property
    def schedule(self) -> TransitionScheduler:
        """The scheduler as this pipeline reads it; raises `InputError` for one that transitions cannot be made with."""
        return transition_scheduler(self.scheduler)

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
        return bool(self.network_config.get("guidance_embed"))

    def evaluations_per_step(self, scale: Any = None) -> int:
        """Network evaluations of one image in a step of that guidance scale, the model's own for None."""
        return evaluations_per_step(is_guided(self.resolve_guidance(scale)), self.guidance_embedded)

    def evaluations(self, plan: StepPlan, scale: Any = None) -> int:
        """Network evaluations of one image that follows a plan at that guidance scale, in no interval of a call's."""
        if self.evaluations_per_step(plan.guidance(self.resolve_guidance(scale))) == 1:
            return plan.steps
        low, high = self._guided_times(plan) or (-math.inf, math.inf)
        begins = plan.times(self.schedule.transport, self.schedule.config.shift)[:-1].tolist()
        return plan.steps + sum(low <= t <= high for t in begins)

    def _guided_times(self, plan: StepPlan, interval: tuple[float, float] | None = None) -> tuple[float, float] | None:
        """The closed interval in which steps are guided: that of a call, else that of the plan; None for all."""
        transport = self.schedule.transport
        interval = interval or plan.guided_times(transport)
        return without_ends(transport, interval) if self.config.open_guidance_interval else interval

    def plan(self, steps: int, plan: Any = None, stochasticity: Any = None, shift: Any = None) -> StepPlan:
        """What a call with these arguments does with so many steps: see `__call__`.

        Raises:
            InputError: a value that is none of its kind.
        """
        found = self.schedule.plan(steps, plan)
        if found is None:
            found = StepPlan(steps, stochasticity=float(self.config.sampling == "consistency" and steps > 1))
        if self.config.sampling == "instantaneous":
            found = replace(found, velocity_below=1.0)
        said = {"stochasticity": (stochasticity, bounds.Share), "shift": (shift, bounds.TimeShift)}
        changes = {name: check(name, value, kind) for name, (value, kind) in said.items() if value is not None}
        return replace(found, **changes)

    def check_inputs(
        self, prompts: Sequence[Any] | None, height: Any, width: Any, steps: Any, output_type: Any
    ) -> None:
        """Raises InputError in one line for what this model cannot generate; prompts may be checked apart, as None."""
        config, codec = self.transformer.config, self.latent_codec
        if prompts is not None:
            inputs.check_prompts(prompts, reads_text=config.num_classes is None)
        check("steps", steps, bounds.SamplingSteps)
        inputs.check_size(height, width, self.size_multiple)
        channels = config.in_channels
        if codec.channels != channels or (self.vae is None and channels not in (1, 3) and output_type != "latent"):
            other = "there is no codec" if self.vae is None else f"the codec's have {codec.channels}"
            raise InputError(f"the network draws latents of {channels} channels, but {other}: give the codec it is for")
        if output_type not in OUTPUT_TYPES:
            raise InputError(f"output_type {shown(output_type)}: expected one of {', '.join(OUTPUT_TYPES)}")

    def check_guidance(self, scale: Any) -> float:
        """`resolve_guidance`, refused where the network knows no empty class to guide away from."""
        guidance, network = self.resolve_guidance(scale), self.transformer.config
        unconditional = network.num_classes is None or network.class_dropout_prob
        if self.evaluations_per_step(guidance) == 2 and not unconditional:
            raise InputError(f"guidance {guidance:g}: this network knows no empty class, so it draws unguided only")
        return guidance

    def prepare_latents(
        self, shape: Sequence[int], generator: Any, seeds: Sequence[int] | None, latents: Any, device: Any
    ) -> Tensor:
        """Noise of that shape: `latents` as they are, else one CPU generator a seed, else diffusers' generators."""
        if seeds is not None and generator is not None:
            raise InputError("seeds and generator: give one of them")
        inputs.check_generator(generator, shape[0])
        if latents is not None:
            inputs.check_latents(latents, shape)
            return latents.to(device, torch.float32)
        if seeds is not None:
            if len(seeds) != shape[0]:
                raise InputError(f"{len(seeds)} seeds for {shape[0]} images: expected one each")
            return noise(shape[1:], seeds).to(device)
        return randn_tensor(tuple(shape), generator=generator, device=torch.device(device), dtype=torch.float32)

    def _evaluates_twice(self, prompts: Prompts, guidance: float) -> bool:
        """Whether guided steps take two evaluations; with a negative prompt also those of a network told the scale.

        Without guidance nothing is asked of negative embeds, which `encode_prompt` may have given unasked.

        Raises:
            InputError: a negative prompt without guidance.
        """
        if prompts.negative_prompt is not None and not is_guided(guidance):
            raise InputError("negative_prompt: at a scale of 1 and below nothing is guided away from")
        return is_guided(guidance) and (prompts.negative or self.evaluations_per_step(guidance) == 2)

    @torch.no_grad()
    @registered
    def __call__(
        self,
        prompt: str | int | Sequence[str | int] | Tensor | np.ndarray | None = None,
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
        image: Any = None,
        strength: float = inputs.STRENGTH,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[[Any, int, Any, dict[str, Any]], dict[str, Any]] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        negative_prompt: str | int | Sequence[str | int] | None = None,
        prompt_embeds: Tensor | None = None,
        prompt_attention_mask: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        negative_prompt_attention_mask: Tensor | None = None,
        max_sequence_length: int | None = None,
        timesteps: Sequence[float] | Tensor | np.ndarray | None = None,
        sigmas: Sequence[float] | Tensor | np.ndarray | None = None,
        guidance_in_one_batch: bool | None = None,
        finish_after: int | None = None,
        attention_kwargs: dict[str, Any] | None = None,
    ) -> TransitionPipelineOutput | tuple[Any, int]:
        """Images of the prompts.

        Args:
            prompt: a caption, class name or class index, or several.
            height, width: in pixels, multiples of `size_multiple`; the training size by default. A pipeline that was
                made without the codec of its latents knows no pixels: `latents` say the size.
            num_inference_steps: any number; each costs one network evaluation, two where guided by a network that is
                not told the scale. A plan may make fewer.
            guidance_scale: 1 and below mean unguided; the model's own default when None. A plan may have its steps
                take a share of it.
            guidance_interval: closed interval of t in which to guide, in place of the plan's.
            generator, seeds, latents: where the noise comes from; a generator or seeds. A seed gives the same image on
                every device and in every batch.
            stochasticity: of `anystep.sampling.sample`, in place of the plan's. Fresh noise belongs to the seeds, or
                comes from the generator. Without a plan 1 for a consistency model, else 0.
            shift: of the times beside the model's own, in place of the plan's.
            plan: what the steps are spent on: the model's own plan for so many where it has one (None or `model`),
                `uniform` times, or a plan of yours.
            rope_scaling: what becomes of positions beyond those of training (`anystep.models.rotary.frequencies`);
                the model's own when None.
            key_grid: tokens along the longer side that are attended to, all when None
                (`anystep.models.kv_downsampling`).
            image: to start from, or one for each prompt or each image, as `anystep.pipelines.images.as_images` takes
                them; scaled until it covers `height` x `width`, and cropped. Several seeds, or
                `num_images_per_prompt`, give variations of it.
            strength: with `image`: the share of the times to go through from there, above 0 and at most 1, which
                leaves nothing of the image where a transport ends in pure noise.
            output_type: `pil`; `np` (batch, height, width, 3) or `pt` (batch, 3, height, width) in [0, 1]; `latent`.
            callback_on_step_end: called as (pipeline, step, timestep, tensors) after each step, with the timestep that
                the step began at; or a callback of diffusers. It may return {"latents": ...} to go on with, may set
                `pipeline.interrupt` to stop, and `pipeline.guidance_scale` of the steps to come, which a network that
                is not told the scale can only raise above 1 where the call began above 1.
            callback_on_step_end_tensor_inputs: what it is given, of `latents`, `prompt_embeds`,
                `negative_prompt_embeds` and `pred_original_sample`, the latents that the image would have by now.
            negative_prompt: what to guide away from in place of the empty prompt, one for all or one each; a blank one
                is none.
            prompt_embeds, prompt_attention_mask: states of a text encoder (prompts, tokens, width) in place of the
                prompt, and which of them are no padding: as `encode_prompt` gives them.
            negative_prompt_embeds, negative_prompt_attention_mask: likewise, in place of the negative prompt.
            max_sequence_length: tokens of a prompt that are read.
            timesteps, sigmas: where each step begins, in place of a number of steps: as timesteps, or as times t.
                With an image the first says how much noise is put on it.
            finish_after: after so many transitions jump from there to the end in one more; None: make them all.
            guidance_in_one_batch: evaluate a guided step as one batch of twice the images, which is faster for small
                images and takes more memory; by default where all images have at most 1,024 tokens.
            attention_kwargs: `{"scale": s}` for a LoRA that counts s times what it does.

        Raises:
            InputError: what cannot be generated, in one line.
        """
        # 1. Check inputs
        self.require_transformer()
        self.load_named_vae()
        prompts = Prompts(
            prompt, negative_prompt, prompt_embeds, prompt_attention_mask, negative_prompt_embeds,
            negative_prompt_attention_mask, max_sequence_length,
        )  # fmt: skip
        height, width = self.sides(height, width, latents)
        prompts.check(self.transformer.config.text_width)
        self.check_inputs(None, height, width, num_inference_steps, output_type)
        options = CallOptions(
            num_images_per_prompt, guidance_interval, seeds, rope_scaling, key_grid, image, strength,
            callback_on_step_end, callback_on_step_end_tensor_inputs, plan, shift, sigmas, timesteps,
        )  # fmt: skip
        guidance, lora_scale = self.check_guidance(guidance_scale), self.lora_scale_of(attention_kwargs)
        twice = self._evaluates_twice(prompts, guidance)

        # 2. Define call parameters
        schedule, height, width, repeats = self.schedule, int(height), int(width), options.num_images_per_prompt
        count, device, transport = prompts.count * repeats, self._execution_device, schedule.transport

        # 3. Encode prompts
        self._tell_of_cuts(prompts.texts, max_sequence_length)
        embeds = self._encode(prompts, device, repeats, twice)

        # 4. Prepare timesteps
        if options.times_given:
            times = schedule.given_times(sigmas, timesteps)
            planned = self.plan(len(times) - 1, "uniform", stochasticity)
        else:
            planned = self.plan(int(num_inference_steps), plan, stochasticity, shift)
            times = schedule.times(planned, height, width, options.strength)
        times = inputs.cut_short(times, finish_after)
        begins = (times * schedule.config.num_train_timesteps).tolist()

        # 5. Prepare latents
        shape = (count, self.transformer.config.in_channels, height // self.factor, width // self.factor)
        z = self.prepare_latents(shape, generator, options.seeds, latents, device)
        if planned.stochasticity and options.seeds is None:
            options.seeds = drawn_seeds(generator, count)
        init_latents = self._encode_all(options.images, height, width, count, repeats) if image is not None else None
        x = initial_sample(transport, z, times[0].item(), init_latents)

        # 6. Denoising loop
        call = self._call
        call.guidance, call.twice, call.steps = guidance, twice, len(times) - 1
        if guidance_in_one_batch is None:
            guidance_in_one_batch = count * height * width // self.size_multiple**2 <= ONE_BATCH_TOKENS
        predict = guided(
            self.transformer, transport, embeds[:2], embeds[2:] if twice else None,
            lambda: planned.guidance(call.guidance), self._guided_times(planned, options.guidance_interval),
            self.guidance_embedded, guidance_in_one_batch, lambda: adapter_state(self.transformer),
            rope_scaling=options.rope_scaling, key_grid=options.key_grid, mask_text=True,
        )  # fmt: skip
        with self.lora_scaled(lora_scale), self.progress_bar(total=call.steps) as progress:
            sampled = Sampled(x, 0, 0) if call.interrupted else sample(
                predict, transport, x, times, stochasticity=planned.stochasticity,
                velocity_below=planned.velocity_below, memory=planned.memory, seeds=options.seeds,
                callback=self._step_callback(call, options, begins, embeds._asdict(), progress),
            )  # fmt: skip
        inputs.check_finite(sampled.sample, f"the model, in {call.steps} steps with guidance {guidance:g},")

        # 7. Decode
        images = self._show(sampled.sample, output_type)

        # 8. Offload all models
        self.maybe_free_model_hooks()
        if not return_dict:
            return images, sampled.nfe
        return TransitionPipelineOutput(images, sampled.nfe, sampled.steps)


TransitionPipeline.__module__ = "anystep"
