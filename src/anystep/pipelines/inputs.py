"""What a call of the pipeline takes, and its settings: each checked once, and refused in one line that says why."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
import torch
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from torch import Tensor

from anystep import bounds
from anystep.bounds import check, shown
from anystep.errors import InputError
from anystep.models.rotary import RotaryScaling
from anystep.objective.presets import OBJECTIVES

MAX_ASPECT = 5  # longest side over shortest
STRENGTH = 0.6  # how far back to begin from an image, where nobody says
CLEAN = "pred_original_sample"  # the name in diffusers for what a step takes the data to be
NAMES = ("class_names", "concepts", "trained_shapes")  # settings of a pipeline that are lists
CALLBACK_TENSORS = ["latents", "prompt_embeds", "negative_prompt_embeds", CLEAN]


@dataclass
class CallOptions:
    """The arguments of a call that do not depend on the model, as plain values once they are checked.

    Attributes:
        images: what is started from: none, one for all, or one for each prompt or image.
        callback_tensors: names of the tensors that the callback is given.
    """

    num_images_per_prompt: Any
    guidance_interval: Any
    seeds: Any
    rope_scaling: Any
    key_grid: Any
    images: Any
    strength: Any
    callback: Any
    callback_tensors: Any
    plan: Any = None
    shift: Any = None
    sigmas: Any = None
    timesteps: Any = None

    @property
    def times_given(self) -> bool:
        """Whether the call says where each step begins."""
        return self.sigmas is not None or self.timesteps is not None

    def __post_init__(self) -> None:
        self.num_images_per_prompt = check("num_images_per_prompt", self.num_images_per_prompt, bounds.Images)
        if self.guidance_interval is not None:
            self.guidance_interval = _interval(self.guidance_interval)
        if self.seeds is not None:
            if isinstance(self.seeds, str | bytes) or not hasattr(self.seeds, "__len__"):
                raise InputError(f"seeds {shown(self.seeds)}: expected whole numbers, one an image")
            self.seeds = [check("seed", seed, bounds.Seed) for seed in self.seeds]
        if self.rope_scaling is not None and self.rope_scaling not in get_args(RotaryScaling):
            words = ", ".join(get_args(RotaryScaling))
            raise InputError(f"rope_scaling {shown(self.rope_scaling)}: expected one of {words}")
        if self.key_grid is not None:
            self.key_grid = check("key_grid", self.key_grid, bounds.KeyGrid)
        self.strength = check("strength", self.strength, bounds.PositiveShare)
        if self.times_given:
            for name in ("plan", "shift"):
                if getattr(self, name) is not None:
                    raise InputError(f"{name}: goes with a number of steps, and the times of the steps are given")
            if self.strength != STRENGTH:
                raise InputError(f"strength {self.strength:g}: the first of the times that are given says it")
        if self.images is not None:
            if isinstance(self.images, np.ndarray | Tensor) and self.images.ndim == 4:
                self.images = list(self.images)
            self.images = list(self.images) if isinstance(self.images, list | tuple) else [self.images]
        elif self.strength == STRENGTH:
            self.images, self.strength = [], 1.0
        else:
            raise InputError(f"strength {self.strength:g}: goes with an image to start from only")
        if isinstance(self.callback, PipelineCallback | MultiPipelineCallbacks):
            self.callback_tensors = self.callback.tensor_inputs
        elif self.callback is not None and not callable(self.callback):
            raise InputError(f"callback_on_step_end {shown(self.callback)}: expected a function")
        unknown = [name for name in self.callback_tensors if name not in CALLBACK_TENSORS]
        if unknown:
            raise InputError(f"unknown callback tensors {shown(unknown)}: expected {CALLBACK_TENSORS}")


def _interval(ends: Any) -> tuple[float, float]:
    """A guidance interval; its ends may be infinite."""
    try:
        low, high = (float(each) for each in ends)
    except (TypeError, ValueError):
        low = high = math.nan
    if not low <= high:
        raise InputError(f"guidance_interval {shown(ends)}: expected the lower time first")
    return low, high


def listed(prompt: Any) -> list[Any]:
    """The prompts of a call: one stands for a list of one. Raises `InputError` for a mapping."""
    if isinstance(prompt, str | bytes) or getattr(prompt, "ndim", 1) == 0 or not hasattr(prompt, "__iter__"):
        return [prompt]
    if isinstance(prompt, Mapping):
        raise InputError(f"prompt {shown(prompt)}: expected a prompt, or a list of them")
    return list(prompt)


def check_prompts(prompts: Sequence[Any], reads_text: bool) -> None:
    """Refuse prompts that are empty, and what is not text where the model reads text."""
    for prompt in prompts:
        if isinstance(prompt, str) and not prompt.strip():
            raise InputError('empty prompt: say what to draw, for example "a red apple"')
        check_text("prompt", prompt, reads_text)
    if not prompts:
        raise InputError('no prompt given: say what to draw, for example "a red apple"')


def check_text(name: str, prompt: Any, reads_text: bool) -> None:
    """Refuse what is not text where the model reads text, and text that is none."""
    if reads_text and not isinstance(prompt, str):
        raise InputError(f"{name} {shown(prompt)}: expected text, which is what this model reads")
    if isinstance(prompt, str) and any("\ud800" <= letter <= "\udfff" for letter in prompt):
        raise InputError(f"{name} {shown(prompt)}: not text, its bytes are no UTF-8")


def check_embeds(name: str, embeds: Any, mask: Any, width: int | None) -> None:
    """Refuse states of captions, and a mask of them, that are not what the network reads."""
    if embeds is None and mask is None:
        return
    if width is None:
        raise InputError(f"{name}_embeds: goes with captions, and this model reads classes")
    if not isinstance(embeds, Tensor) or not embeds.is_floating_point():
        raise InputError(f"{name}_embeds {shown(type(embeds).__name__)}: expected a tensor of floating point")
    if embeds.ndim != 3 or embeds.shape[2] != width or 0 in embeds.shape:
        raise InputError(f"{name}_embeds of shape {tuple(embeds.shape)}: expected (prompts, tokens, {width})")
    if not bool(embeds.float().isfinite().all()):  # the narrow kinds do not know of it
        raise InputError(f"{name}_embeds: expected finite numbers")
    if mask is not None and (not isinstance(mask, Tensor) or mask.shape != embeds.shape[:2]):
        found = tuple(mask.shape) if isinstance(mask, Tensor) else shown(mask)
        raise InputError(f"{name}_attention_mask {found}: expected a tensor of shape {tuple(embeds.shape[:2])}")
    if mask is not None and not bool(mask.any(dim=1).all()):
        raise InputError(f"{name}_attention_mask: expected a token that is read in every row")


def cut_short(times: Tensor, finish_after: Any) -> Tensor:
    """Times that go to the end in one step after so many transitions; all of them for None."""
    if finish_after is None:
        return times
    kept = check("finish_after", finish_after, bounds.OptionalCount)
    if kept > len(times) - 2:
        raise InputError(f"finish_after {kept}: expected fewer than the {len(times) - 1} transitions")
    return torch.cat([times[: kept + 1], times[-1:]])


def check_size(height: Any, width: Any, multiple: int) -> None:
    """Refuse sides that are no multiples of what one token covers, or that are too unlike."""
    for name, side in (("height", height), ("width", width)):
        check(name, side, bounds.Side)
    if height % multiple or width % multiple:
        raise InputError(f"size {width}x{height}: both sides must be multiples of {multiple}")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise InputError(f"size {width}x{height}: one side may be {MAX_ASPECT} times the other at most")


def check_latents(latents: Any, shape: Sequence[int]) -> None:
    """Refuse initial noise that is no tensor of finite numbers of that shape."""
    if not isinstance(latents, Tensor) or not latents.is_floating_point():
        raise InputError(f"latents {shown(type(latents).__name__)}: expected a tensor of floating point")
    if not bool(latents.float().isfinite().all()):
        raise InputError("latents: expected finite numbers")
    if tuple(latents.shape) != tuple(shape):
        raise InputError(f"latents of shape {tuple(latents.shape)}: expected {tuple(shape)}")


def check_generator(generator: Any, count: int) -> None:
    """Refuse what is neither None, one generator, nor a list of one an image."""
    each = generator if isinstance(generator, list) else [] if generator is None else [generator]
    if not all(isinstance(one, torch.Generator) for one in each):
        raise InputError(f"generator {shown(generator)}: expected a torch.Generator, or a list of one an image")
    if isinstance(generator, list) and len(generator) != count:
        raise InputError(f"{len(generator)} generators for {count} images: expected one each")


def latents_of(changed: Any, given: Mapping[str, Any]) -> Tensor | None:
    """The latents that a callback wants to go on with, or None.

    It may return the other tensors that it was given, of embeds also the last rows alone, as callbacks of diffusers do.
    """
    for name, value in changed.items() if isinstance(changed, Mapping) else ():
        if name not in CALLBACK_TENSORS:
            raise InputError(f"a callback returned {shown(name)}: expected a dict with some of {CALLBACK_TENSORS}")
        if name.endswith("_embeds") and value is not (embeds := given[name]):
            rows = value if isinstance(value, Tensor) and isinstance(embeds, Tensor) else None
            if rows is None or not torch.equal(rows, embeds[max(0, len(embeds) - len(rows)) :]):
                raise InputError(f"a callback returned other {name}: a call draws what it began with to its end")
    x, latents = given["latents"], changed.get("latents") if isinstance(changed, Mapping) else changed
    if latents is not None and (not isinstance(latents, Tensor) or latents.shape != x.shape):
        raise InputError(f"a callback returned {shown(changed)}: expected a dict with latents of {tuple(x.shape)}")
    if latents is not None and latents is not x and not bool(latents.float().isfinite().all()):
        raise InputError("a callback returned latents that are not finite: expected finite numbers")
    return None if latents is None else latents.to(x)


def check_finite(numbers: Tensor, source: str) -> None:
    """Refuse a sample that is not finite: it would be a black picture."""
    if not bool(numbers.isfinite().all()):
        raise InputError(
            f"{source} gives numbers that are not finite: the weights are damaged, or do not bear these settings or "
            "this precision"
        )


def in_order(names: Any) -> Any:
    """A list of names that an index holds as a dict by number, as a list; anything else as it is."""
    if not isinstance(names, Mapping) or not all(str(number).isdecimal() for number in names):
        return names
    return [names[number] for number in sorted(names, key=int)]


def check_settings(settings: Mapping[str, Any]) -> None:
    """Refuse values of a pipeline's settings, or of its model_index.json, that are not of their kind."""
    for name in NAMES:
        texts = in_order(settings.get(name))
        if texts is not None and not (isinstance(texts, list | tuple) and all(isinstance(each, str) for each in texts)):
            raise InputError(f"{name} {shown(texts)}: expected a list of texts")
    for name in ("open_guidance_interval", "escape_captions"):
        if not isinstance(settings.get(name, False), bool):
            raise InputError(f"{name} {shown(settings[name])}: expected true or false")
    for name in ("text_encoder_name", "vae_name", "license"):
        if not isinstance(settings.get(name), str | None):
            raise InputError(f"{name} {shown(settings[name])}: expected text")
    words = sorted({preset.sampling for preset in OBJECTIVES.values()})
    if settings.get("sampling", words[0]) not in words:
        raise InputError(f"sampling {shown(settings['sampling'])}: expected one of {', '.join(words)}")
    check("guidance_scale", settings.get("guidance_scale", 1.0), bounds.Guidance)
