"""What is asked of the engine: one image, checked before it waits in line."""

from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from PIL import Image

from anystep import bounds
from anystep.bounds import check, check_text, shown
from anystep.errors import InputError
from anystep.pipelines.inputs import STRENGTH, CallOptions, cut_short
from anystep.pipelines.load import Model
from anystep.pipelines.scheduler import Planning
from anystep.sampling import StepPlan, is_guided

APART = (
    "prompt",
    "negative_prompt",
    "seed",
    "image",
    "image_digest",
    "previews",
)  # in which images of one batch may differ


@dataclass(frozen=True)
class ImageRequest:
    """One image. None stands for the model's own setting, as in `TransitionPipeline.__call__`.

    Attributes:
        model: the name under which the engine has it.
        negative_prompt: what guidance leads away from; the empty prompt by default.
        size: width and height in pixels.
        image, strength: what to start from, and how far back.
        image_digest: of the file that the image is from (`anystep.fingerprint.bytes_digest`).
        finish_after: after so many transitions jump to the end in one more; None: go through them all.
        previews: of how many transitions the clean-image estimate is shown, spread evenly; None: of every one.
    """

    prompt: str | int
    model: str = "builtin"
    negative_prompt: str = ""
    steps: int = 4
    seed: int = 0
    size: tuple[int, int] | None = None
    guidance: float | None = None
    guidance_interval: tuple[float, float] | None = None
    stochasticity: float | None = None
    shift: float | None = None
    plan: StepPlan | Planning | None = None
    rope_scaling: str | None = None
    key_grid: int | None = None
    image: Image.Image | None = None
    strength: float = STRENGTH
    image_digest: str | None = None
    finish_after: int | None = None
    previews: int | None = 0

    def together(self) -> tuple[Any, ...]:
        """Requests for which this is equal can be drawn in one batch."""
        same = (getattr(self, each.name) for each in fields(self) if each.name not in APART)
        return (*same, self.image is None, self.negative_prompt == "")

    def shown_after(self, transitions: int) -> set[int]:
        """The numbers of the transitions, from 0, whose estimate is shown; the last one is the image itself."""
        before = transitions - 1
        count = before if self.previews is None else min(self.previews, before)
        return {(2 * number + 1) * before // (2 * count) for number in range(count)}


@dataclass(frozen=True)
class Limits:
    """The most that one image may ask for.

    Attributes:
        pixels: of its area.
        steps: transitions.
        prompt: characters of the prompt, and of the negative one.
    """

    pixels: int = 1024 * 1024
    steps: int = 128
    prompt: int = 2000


def checked(request: ImageRequest, model: Model, limits: Limits) -> ImageRequest:
    """The request with size and guidance as the model has them, and a negative prompt that is blank as none.

    Raises:
        InputError: what this model cannot draw, or more than the limits allow.
    """
    pipeline, request = model.pipeline, replace(request, negative_prompt=request.negative_prompt.strip())
    for name in ("prompt", "negative_prompt"):
        text = getattr(request, name)
        if isinstance(text, str) and len(check_text(text)) > limits.prompt:
            raise InputError(f"{name} of {len(text):,} characters: expected at most {limits.prompt:,}")
    if check("steps", request.steps, bounds.SamplingSteps) > limits.steps:
        raise InputError(f"steps {request.steps}: expected at most {limits.steps} here")
    width, height = request.size or (pipeline.base_size, pipeline.base_size)
    pipeline.check_inputs([request.prompt], height, width, request.steps, "pil")
    if width * height > limits.pixels:
        raise InputError(f"size {width}x{height}: expected at most {limits.pixels:,} pixels here")
    if pipeline.config.class_names is not None:
        pipeline.conditioner([request.prompt, *([request.negative_prompt] if request.negative_prompt else [])])
    guidance = pipeline.check_guidance(request.guidance)
    if (negative := request.negative_prompt) and not is_guided(guidance):
        raise InputError(f"negative_prompt {shown(negative)}: guidance {guidance:g} leads away from nothing")
    check("seed", request.seed, bounds.Seed)
    CallOptions(
        1, request.guidance_interval, None, request.rope_scaling, request.key_grid, request.image, request.strength,
        None, (),
    )  # fmt: skip
    planned = pipeline.plan(request.steps, request.plan, request.stochasticity, request.shift)
    cut_short(torch.zeros(planned.steps + 1), request.finish_after)
    if request.previews is not None:
        check("previews", request.previews, bounds.OptionalCount)
    return replace(request, size=(width, height), guidance=guidance)
