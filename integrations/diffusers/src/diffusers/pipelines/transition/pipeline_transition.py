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

from typing import Any, Callable

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ...callbacks import MultiPipelineCallbacks, PipelineCallback
from ...image_processor import VaeImageProcessor
from ...models import AutoencoderDC, AutoencoderKL
from ...models.transformers.transformer_transition import TransitionTransformer2DModel
from ...schedulers.scheduling_transition import TransitionScheduler
from ...utils import is_torch_xla_available, logging, replace_example_docstring
from ...utils.torch_utils import randn_tensor
from ..pipeline_utils import DiffusionPipeline, ImagePipelineOutput


if is_torch_xla_available():
    import torch_xla.core.xla_model as xm

    XLA_AVAILABLE = True
else:
    XLA_AVAILABLE = False


logger = logging.get_logger(__name__)  # pylint: disable=invalid-name


EXAMPLE_DOC_STRING = """
    Examples:
        ```py
        >>> import torch
        >>> from diffusers import TransitionPipeline

        >>> pipe = TransitionPipeline.from_pretrained("path/to/a/transition/model", torch_dtype=torch.bfloat16)
        >>> pipe.to("cuda")

        >>> # the same weights in any number of steps
        >>> image = pipe("a red apple on a blue background", num_inference_steps=4).images[0]
        >>> image = pipe("a red apple on a blue background", num_inference_steps=32).images[0]
        ```
"""


class TransitionPipeline(DiffusionPipeline):
    r"""
    Pipeline for text-to-image generation in any number of steps, as introduced in [Transition
    Models](https://huggingface.co/papers/2509.04394).

    This model inherits from [`DiffusionPipeline`]. Check the superclass documentation for the generic methods
    implemented for all pipelines (downloading, saving, running on a particular device, etc.).

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): Tokenizer of the text encoder.
        text_encoder ([`~transformers.PreTrainedModel`]): Text encoder whose last hidden states are the captions.
        vae ([`AutoencoderDC`] or [`AutoencoderKL`]): Variational auto-encoder of the latents.
        transformer ([`TransitionTransformer2DModel`]): Transformer that predicts the transitions.
        scheduler ([`TransitionScheduler`]): Scheduler that makes them.
        guidance_scale (`float`, defaults to 1.0): Scale of classifier-free guidance where a call gives none.
        open_guidance_interval (`bool`, defaults to `False`):
            Whether steps that begin at an end of the guidance interval are unguided, and so the first where a call gives
            none, as the released weights expect.
        escape_captions (`bool`, defaults to `False`):
            Whether captions are escaped as Python does (`\n`, `\xe9`), as the released weights learned them.
    """

    model_cpu_offload_seq = "text_encoder->transformer->vae"
    _callback_tensor_inputs = ["latents", "prompt_embeds", "negative_prompt_embeds"]

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        text_encoder: PreTrainedModel,
        vae: AutoencoderDC | AutoencoderKL,
        transformer: TransitionTransformer2DModel,
        scheduler: TransitionScheduler,
        guidance_scale: float = 1.0,
        open_guidance_interval: bool = False,
        escape_captions: bool = False,
    ):
        super().__init__()
        self.register_modules(
            tokenizer=tokenizer, text_encoder=text_encoder, vae=vae, transformer=transformer, scheduler=scheduler
        )
        self.register_to_config(
            guidance_scale=guidance_scale,
            open_guidance_interval=open_guidance_interval,
            escape_captions=escape_captions,
        )
        self.vae_scale_factor = 8
        if getattr(self, "vae", None) is not None:
            config = self.vae.config
            widths = config.get("encoder_block_out_channels") or config.get("block_out_channels")
            self.vae_scale_factor = 2 ** (len(widths) - 1)
        self.image_processor = VaeImageProcessor(vae_scale_factor=self.vae_scale_factor)
        self.default_sample_size = 32 if getattr(self, "transformer", None) is None else transformer.config.sample_size

    def _encode(self, prompt: list[str], device: torch.device, max_sequence_length: int, padding: str = "longest"):
        if self.config.escape_captions:
            prompt = [each.encode("unicode-escape").decode() for each in prompt]
        inputs = self.tokenizer(
            prompt,
            padding=padding,
            max_length=max_sequence_length,
            truncation=True,
            padding_side="right",
            return_tensors="pt",
        ).to(device)
        mask = inputs.attention_mask
        states = self.text_encoder(input_ids=inputs.input_ids, attention_mask=mask).last_hidden_state
        return states, mask.bool()

    def _encode_padded(self, length: int, device: torch.device) -> torch.Tensor:
        """
        The empty prompt with padding up to `length`, for transformers that were trained to attend to padding. Padded
        tokens attend to nothing, as in the flash attention that these were trained with.
        """
        mask = self.tokenizer([""], padding="max_length", max_length=length, truncation=True, padding_side="right")
        padding = torch.tensor(mask["attention_mask"], device=device)[..., None] == 0

        def silence(module, inputs):
            return (inputs[0].masked_fill(padding, 0), *inputs[1:])

        projections = [each for name, each in self.text_encoder.named_modules() if name.endswith(".o_proj")]
        hooks = [each.register_forward_pre_hook(silence) for each in projections]
        try:
            return self._encode([""], device, length, "max_length")[0]
        finally:
            for hook in hooks:
                hook.remove()

    def encode_prompt(
        self,
        prompt: str | list[str],
        do_classifier_free_guidance: bool = True,
        negative_prompt: str | list[str] | None = None,
        num_images_per_prompt: int = 1,
        device: torch.device | None = None,
        prompt_embeds: torch.Tensor | None = None,
        prompt_attention_mask: torch.Tensor | None = None,
        negative_prompt_embeds: torch.Tensor | None = None,
        negative_prompt_attention_mask: torch.Tensor | None = None,
        max_sequence_length: int = 256,
    ):
        r"""
        Encodes the prompt into text encoder hidden states.

        Args:
            prompt (`str` or `list[str]`): Prompt to be encoded.
            do_classifier_free_guidance (`bool`, defaults to `True`): Whether to encode what is guided away from.
            negative_prompt (`str` or `list[str]`, *optional*):
                What to guide away from; the empty prompt if not given, or if blank.
            num_images_per_prompt (`int`, defaults to 1): Number of images that are generated for a prompt.
            device (`torch.device`, *optional*): Device for the results.
            prompt_embeds (`torch.Tensor`, *optional*): Pre-generated states, in place of the prompt.
            prompt_attention_mask (`torch.Tensor`, *optional*): Which of them are not padding.
            negative_prompt_embeds (`torch.Tensor`, *optional*): Likewise, in place of the negative prompt.
            negative_prompt_attention_mask (`torch.Tensor`, *optional*): Which of them are not padding.
            max_sequence_length (`int`, defaults to 256): Tokens of a prompt that are read.

        Returns:
            `tuple`: States and mask of the prompt, and those of the negative prompt or `None`.
        """
        device, negative_prompt = device or self._execution_device, _without_blank(negative_prompt)
        limit = getattr(self.text_encoder.config, "max_position_embeddings", max_sequence_length)
        max_sequence_length = min(max_sequence_length, limit)
        if prompt_embeds is None:
            prompt = [prompt] if isinstance(prompt, str) else prompt
            prompt_embeds, prompt_attention_mask = self._encode(prompt, device, max_sequence_length)
        elif prompt_attention_mask is None:
            prompt_attention_mask = torch.ones(prompt_embeds.shape[:2], dtype=torch.bool, device=device)
        batch_size = len(prompt_embeds)
        if do_classifier_free_guidance and negative_prompt_embeds is None:
            if negative_prompt is None and not self.transformer.config.mask_text:
                negative_prompt_embeds = self._encode_padded(prompt_embeds.shape[1], device)
                negative_prompt_embeds = negative_prompt_embeds.expand(batch_size, -1, -1)
                # each image is guided as if its caption were alone
                negative_prompt_attention_mask = prompt_attention_mask
            else:
                negative_prompt = "" if negative_prompt is None else negative_prompt
                negative_prompt = [negative_prompt] if isinstance(negative_prompt, str) else negative_prompt
                negative_prompt_embeds, negative_prompt_attention_mask = self._encode(
                    negative_prompt, device, max_sequence_length
                )
        elif do_classifier_free_guidance and negative_prompt_attention_mask is None:
            shape = negative_prompt_embeds.shape[:2]
            negative_prompt_attention_mask = torch.ones(shape, dtype=torch.bool, device=device)

        def rows(tensor):
            if tensor is None:
                return None
            return tensor.repeat_interleave(batch_size * num_images_per_prompt // len(tensor), dim=0).to(device)

        if not do_classifier_free_guidance:
            negative_prompt_embeds = negative_prompt_attention_mask = None
        embeds = (prompt_embeds, prompt_attention_mask, negative_prompt_embeds, negative_prompt_attention_mask)
        return tuple(rows(each) for each in embeds)

    def check_inputs(
        self,
        prompt,
        height,
        width,
        negative_prompt=None,
        prompt_embeds=None,
        negative_prompt_embeds=None,
        callback_on_step_end_tensor_inputs=None,
        guidance_scale=None,
    ):
        multiple = self.vae_scale_factor * self.transformer.config.patch_size
        if height % multiple != 0 or width % multiple != 0:
            raise ValueError(f"`height` and `width` have to be divisible by {multiple} but are {height} and {width}.")
        if callback_on_step_end_tensor_inputs is not None and not all(
            k in self._callback_tensor_inputs for k in callback_on_step_end_tensor_inputs
        ):
            raise ValueError(
                f"`callback_on_step_end_tensor_inputs` has to be in {self._callback_tensor_inputs}, but found "
                f"{[k for k in callback_on_step_end_tensor_inputs if k not in self._callback_tensor_inputs]}"
            )
        if (prompt is None) == (prompt_embeds is None):
            raise ValueError("Provide one of `prompt` and `prompt_embeds`.")
        if prompt is not None and not isinstance(prompt, (str, list)):
            raise ValueError(f"`prompt` has to be of type `str` or `list` but is {type(prompt)}")
        if isinstance(prompt, list) and not prompt:
            raise ValueError("`prompt` has to hold at least one prompt but is empty.")
        if negative_prompt is not None and negative_prompt_embeds is not None:
            raise ValueError("Provide one of `negative_prompt` and `negative_prompt_embeds`.")
        if negative_prompt is not None and not isinstance(negative_prompt, (str, list)):
            raise ValueError(f"`negative_prompt` has to be of type `str` or `list` but is {type(negative_prompt)}")
        count, negatives = (
            1 if isinstance(given, str) else len(given)
            for given in (
                prompt_embeds if prompt is None else prompt,
                next((each for each in (negative_prompt, negative_prompt_embeds) if each is not None), ""),
            )
        )
        if negatives not in (1, count):
            raise ValueError(f"Expected one negative prompt, or one for each of {count} prompts, but got {negatives}.")
        if guidance_scale is not None and not 0 <= guidance_scale < float("inf"):
            raise ValueError(f"`guidance_scale` has to be a finite number from 0 but is {guidance_scale}.")

    def prepare_latents(self, batch_size, num_channels, height, width, device, generator, latents=None):
        shape = (batch_size, num_channels, height // self.vae_scale_factor, width // self.vae_scale_factor)
        if latents is not None:
            if latents.shape != shape:
                raise ValueError(f"Unexpected latents shape, got {latents.shape}, expected {shape}")
            return latents.to(device=device, dtype=torch.float32) * self.scheduler.init_noise_sigma
        if isinstance(generator, list) and len(generator) != batch_size:
            raise ValueError(
                f"You have passed a list of generators of length {len(generator)}, but requested an effective batch"
                f" size of {batch_size}. Make sure the batch size matches the length of the generators."
            )
        # latents, times and transitions stay in float32 whatever the precision of the transformer
        latents = randn_tensor(shape, generator=generator, device=device, dtype=torch.float32)
        return latents * self.scheduler.init_noise_sigma

    def _denormalize(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents as the auto-encoder has them, of those of zero mean and unit variance that the transformer has."""
        config = self.vae.config
        if config.get("latents_mean") is not None:
            mean, std = (torch.tensor(config[name]).view(1, -1, 1, 1) for name in ("latents_mean", "latents_std"))
            return latents * std.to(latents) + mean.to(latents)
        return latents / config.scaling_factor + (config.get("shift_factor") or 0.0)

    @property
    def guidance_scale(self):
        return self._guidance_scale

    @property
    def do_classifier_free_guidance(self):
        return self._guidance_scale > 1.0 and not self._guidance_embedded

    @property
    def attention_kwargs(self):
        return self._attention_kwargs

    @property
    def num_timesteps(self):
        return self._num_timesteps

    @property
    def interrupt(self):
        return self._interrupt

    @torch.no_grad()
    @replace_example_docstring(EXAMPLE_DOC_STRING)
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 4,
        timesteps: list[float] | None = None,
        sigmas: list[float] | None = None,
        guidance_scale: float | None = None,
        guidance_interval: tuple[float, float] | None = None,
        negative_prompt: str | list[str] | None = None,
        num_images_per_prompt: int = 1,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
        prompt_embeds: torch.Tensor | None = None,
        prompt_attention_mask: torch.Tensor | None = None,
        negative_prompt_embeds: torch.Tensor | None = None,
        negative_prompt_attention_mask: torch.Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        attention_kwargs: dict[str, Any] | None = None,
        callback_on_step_end: Callable[[int, int], None] | PipelineCallback | MultiPipelineCallbacks | None = None,
        callback_on_step_end_tensor_inputs: list[str] = ["latents"],
        max_sequence_length: int = 256,
    ) -> ImagePipelineOutput | tuple:
        """
        Function invoked when calling the pipeline for generation.

        Args:
            prompt (`str` or `list[str]`, *optional*): The prompt or prompts to guide the image generation.
            height (`int`, *optional*): The height in pixels of the image; that of training by default.
            width (`int`, *optional*): The width in pixels of the image; that of training by default.
            num_inference_steps (`int`, defaults to 4): Any number of transitions.
            timesteps (`list[float]`, *optional*): Where the steps begin, in place of a number.
            sigmas (`list[float]`, *optional*): The same as times of the transport.
            guidance_scale (`float`, *optional*):
                Scale of classifier-free guidance; 1 and below mean none. That of the pipeline's config by default.
            guidance_interval (`tuple[float, float]`, *optional*): Closed interval of times in which to guide.
            negative_prompt (`str` or `list[str]`, *optional*):
                What to guide away from in place of the empty prompt; a blank one is none.
            num_images_per_prompt (`int`, defaults to 1): The number of images to generate per prompt.
            generator (`torch.Generator` or `list[torch.Generator]`, *optional*): To make generation deterministic.
            latents (`torch.Tensor`, *optional*): Noise to begin with.
            prompt_embeds (`torch.Tensor`, *optional*): Pre-generated text states, in place of `prompt`.
            prompt_attention_mask (`torch.Tensor`, *optional*): Attention mask of `prompt_embeds`.
            negative_prompt_embeds (`torch.Tensor`, *optional*): Pre-generated text states to guide away from.
            negative_prompt_attention_mask (`torch.Tensor`, *optional*): Attention mask of these.
            output_type (`str`, defaults to `"pil"`): `"pil"`, `"np"`, `"pt"` or `"latent"`.
            return_dict (`bool`, defaults to `True`): Whether to return an [`ImagePipelineOutput`].
            attention_kwargs (`dict`, *optional*): Passed on to the transformer.
            callback_on_step_end (`Callable`, *optional*): Called at the end of each step.
            callback_on_step_end_tensor_inputs (`list`, defaults to `["latents"]`): Tensors that it is given.
            max_sequence_length (`int`, defaults to 256): Tokens of a prompt that are read.

        Examples:

        Returns:
            [`ImagePipelineOutput`] or `tuple`: The images.
        """
        if isinstance(callback_on_step_end, (PipelineCallback, MultiPipelineCallbacks)):
            callback_on_step_end_tensor_inputs = callback_on_step_end.tensor_inputs

        # 1. Check inputs
        height = height or self.default_sample_size * self.vae_scale_factor
        width = width or self.default_sample_size * self.vae_scale_factor
        self.check_inputs(
            prompt,
            height,
            width,
            negative_prompt,
            prompt_embeds,
            negative_prompt_embeds,
            callback_on_step_end_tensor_inputs,
            guidance_scale,
        )
        self._guidance_scale = self.config.guidance_scale if guidance_scale is None else guidance_scale
        # a transformer that reads the scale needs no second evaluation, unless there is something to guide away from
        negative_prompt = _without_blank(negative_prompt)
        negative = negative_prompt is not None or negative_prompt_embeds is not None
        self._guidance_embedded = self.transformer.config.guidance_embed and not negative
        self._attention_kwargs = attention_kwargs
        self._interrupt = False
        device = self._execution_device

        # 2. Encode prompts
        guided = self.do_classifier_free_guidance
        prompt_embeds, prompt_attention_mask, negative_prompt_embeds, negative_prompt_attention_mask = (
            self.encode_prompt(
                prompt,
                guided,
                negative_prompt,
                num_images_per_prompt,
                device,
                prompt_embeds,
                prompt_attention_mask,
                negative_prompt_embeds,
                negative_prompt_attention_mask,
                max_sequence_length,
            )
        )
        embeds, mask = prompt_embeds, prompt_attention_mask
        if guided:
            embeds, mask = _concatenate(
                (negative_prompt_embeds, prompt_embeds), (negative_prompt_attention_mask, prompt_attention_mask)
            )

        # 3. Prepare timesteps
        if timesteps is None and sigmas is None:
            self.scheduler.set_timesteps(num_inference_steps, device=device, height=height, width=width)
        else:
            self.scheduler.set_timesteps(device=device, timesteps=timesteps, sigmas=sigmas)
        scale = self.scheduler.config.num_train_timesteps
        begins, times = self.scheduler.timesteps, self.scheduler.sigmas.to(device)
        self._num_timesteps = len(begins)

        # 4. Prepare latents
        latents = self.prepare_latents(
            len(prompt_embeds), self.transformer.config.in_channels, height, width, device, generator, latents
        )

        # 5. Denoising loop
        t_min, t_max = self.scheduler.t_min, self.scheduler.t_max
        # a little lower than planned: times in float32 that are the end of the interval are in it
        planned = t_min + self.scheduler.guided_above * (1 - 1e-5) * (t_max - t_min)
        low, high = guidance_interval or (planned, t_max)
        share = self.scheduler.guidance_share
        short = self.scheduler.velocity_below * (t_max - t_min) * (1 + 1e-5)  # of equal jumps all are, or none is
        before = None
        with self.progress_bar(total=self._num_timesteps) as progress_bar:
            for i, t in enumerate(begins):
                if self.interrupt:
                    continue
                time, goal = float(times[i]), float(times[i + 1])
                end = goal if i + 1 == len(begins) else goal - self.scheduler.stochasticity * (goal - t_min)
                velocity = time - end <= short
                inside = low < time < high if self.config.open_guidance_interval else low <= time <= high
                inside = inside and share > 0
                guidance_scale = 1 + share * (self.guidance_scale - 1)
                twice = self.do_classifier_free_guidance and inside
                if twice and not guided:
                    raise ValueError("A call that began with a `guidance_scale` of 1 or below cannot be guided later.")
                model_input = torch.cat([latents] * 2) if twice else latents
                t_batch, r_batch = (
                    self.scheduler.c_noise(each * scale).expand(len(model_input))
                    for each in (times[i], times[i] if velocity else torch.full_like(times[i], end))
                )
                guidance = None
                if self._guidance_embedded and inside:
                    guidance = torch.full_like(t_batch, max(1.0, guidance_scale))
                noise_pred = self.transformer(
                    hidden_states=model_input,
                    timestep=t_batch,
                    r_timestep=r_batch,
                    encoder_hidden_states=embeds if twice else prompt_embeds,
                    encoder_attention_mask=mask if twice else prompt_attention_mask,
                    guidance=guidance,
                    attention_kwargs=self.attention_kwargs,
                    return_dict=False,
                )[0].float()
                if twice:
                    noise_pred_uncond, noise_pred_text = noise_pred.chunk(2)
                    noise_pred = noise_pred_uncond + guidance_scale * (noise_pred_text - noise_pred_uncond)

                jump = None
                if velocity and self.scheduler.memory:
                    jump = (
                        (self.scheduler.components(noise_pred, t, latents), float(t)),
                        inside and self.guidance_scale > 1,
                    )
                if jump and before and before[1] == jump[1]:  # not where guidance begins or ends
                    noise_pred = self.scheduler.extrapolate(noise_pred, float(t), end * scale, before[0])
                latents = self.scheduler.step(noise_pred, t, latents, end * scale, return_dict=False)[0]
                before = jump
                if end < goal:  # fresh noise makes another path
                    noise = randn_tensor(latents.shape, generator=generator, device=device, dtype=latents.dtype)
                    latents, before = self.scheduler.renoise(latents, end * scale, goal * scale, noise), None

                if callback_on_step_end is not None:
                    tensors = {
                        "latents": latents,
                        "prompt_embeds": prompt_embeds,
                        "negative_prompt_embeds": negative_prompt_embeds,
                    }
                    callback_kwargs = {k: tensors[k] for k in callback_on_step_end_tensor_inputs}
                    kept = latents.clone() if before else None  # the callback may write into them
                    callback_outputs = callback_on_step_end(self, i, t, callback_kwargs)
                    latents = callback_outputs.pop("latents", latents)
                    before = before if kept is not None and torch.equal(latents, kept) else None

                progress_bar.update()
                if XLA_AVAILABLE:
                    xm.mark_step()

        # 6. Decode
        image = latents
        if output_type != "latent":
            image = self.vae.decode(self._denormalize(latents).to(self.vae.dtype), return_dict=False)[0]
            image = self.image_processor.postprocess(image, output_type=output_type)

        # 7. Offload all models
        self.maybe_free_model_hooks()

        if not return_dict:
            return (image,)
        return ImagePipelineOutput(images=image)


def _without_blank(negative_prompt):
    """`None` for a negative prompt that is blank, or several of which all are: the empty one is guided away from."""
    prompts = [negative_prompt] if isinstance(negative_prompt, str) else negative_prompt or []
    return negative_prompt if any(prompt.strip() for prompt in prompts) else None


def _concatenate(states, masks):
    """States of two prompts as one batch, the shorter padded."""
    length = max(each.shape[1] for each in states)
    states = [torch.nn.functional.pad(each, (0, 0, 0, length - each.shape[1])) for each in states]
    masks = [torch.nn.functional.pad(each.bool(), (0, length - each.shape[1])) for each in masks]
    return torch.cat(states), torch.cat(masks)
