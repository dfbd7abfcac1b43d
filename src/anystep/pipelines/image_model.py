"""A model that draws images of prompts in a number of steps: what commands ask of it, whatever it is made of."""

import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import torch
from PIL import Image
from torch import nn

from anystep.bounds import Count, SamplingSteps, Seed, Side, check, shown
from anystep.errors import InputError
from anystep.pipelines.inputs import listed
from anystep.pipelines.scheduler import Planning
from anystep.sampling import StepPlan

if TYPE_CHECKING:
    Prompts: TypeAlias = str | int | Sequence[str | int]
    Seeds: TypeAlias = int | Sequence[int]
    Whole: TypeAlias = int
    Size: TypeAlias = tuple[int, int]
else:  # `generate` checks them itself, and takes the numbers of numpy
    Prompts = Seeds = Whole = Size = Any

# what arguments of a pipeline are called here
OWN_NAMES = {"num_inference_steps": "steps", "guidance_scale": "guidance", "height": "size", "width": "size",
             "seeds": "seed", "generator": "seed"}  # fmt: skip


class Output(NamedTuple):
    """Images in the form asked for, and the steps made and network evaluations (NFE) spent on each."""

    images: Any
    steps: int
    nfe: int


@dataclass(frozen=True)
class Generated:
    """Images, those of a prompt beside each other, with the seed of each and with what they cost.

    Attributes:
        steps, nfe: transitions made and network evaluations spent on each image.
        asked: steps that were asked for; a plan may make fewer.
        plan: the plan that the steps followed; None for a model without plans.
    """

    images: list[Image.Image]
    steps: int
    nfe: int
    seconds: float
    seeds: tuple[int, ...] = ()
    asked: int = 0
    plan: StepPlan | None = None


class ImageModel(ABC):
    """A loaded model. `model("a red apple", steps=4, seed=0)` is a list of PIL images.

    Attributes:
        name: what it was loaded from.
        note: what to know before its figures are read; may be empty.
    """

    name: str
    note: str = ""

    @property
    def class_names(self) -> list[str] | None:
        """Of a model that reads classes, their numbers where they have no names; None where it reads captions."""
        return None

    def words(self, prompt: str | int) -> str:
        """A prompt as text: of the number of a class its name."""
        return self.class_names[prompt] if self.class_names and isinstance(prompt, int) else str(prompt)

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where it computes."""

    @property
    @abstractmethod
    def dtype(self) -> torch.dtype:
        """What its network computes in, but for layers that are kept in float32."""

    @abstractmethod
    def to(self, device: torch.device) -> "ImageModel":
        """The same model on a device."""

    @property
    @abstractmethod
    def base_size(self) -> int:
        """Side in pixels of the images the model was trained on."""

    @property
    @abstractmethod
    def digest(self) -> str:
        """What tells its weights and configuration from all others, wherever its folder is."""

    @abstractmethod
    def facts(self) -> dict[str, Any]:
        """What it is, as plain values: its `pipeline`, and the `parameters` of each part."""

    @abstractmethod
    def resolve_guidance(self, scale: float | None) -> float:
        """The guidance scale of a call, the model's own for None. Raises `InputError` for one out of bounds."""

    @abstractmethod
    def plan_settings(self, plan: StepPlan | Planning | None, steps: int | None = None) -> Any:
        """What tells images of this planning from others, of one number of steps or of all: plain values or a plan."""

    @abstractmethod
    def nfe(self, steps: int, guidance: float | None = None, plan: StepPlan | Planning | None = None) -> int:
        """Network evaluations of one image that is generated in so many steps."""

    @abstractmethod
    def check(self, prompts: Sequence[Any] | None, width: int, height: int, steps: int) -> None:
        """Raise `InputError` for what this model cannot generate; prompts may be checked apart, as None."""

    def check_conditions(self, prompts: Sequence[Any]) -> None:
        """Raise `InputError` for prompts that cannot be encoded, by encoding them."""
        return None

    @abstractmethod
    def draw(
        self,
        prompts: Sequence[Any],
        width: int,
        height: int,
        steps: int,
        seeds: Sequence[int],
        guidance: float | None = None,
        plan: StepPlan | Planning | None = None,
        output_type: str = "pil",
        **options: Any,
    ) -> Output:
        """Images of the prompts, as PIL images or a tensor `pt` (batch, 3, height, width) in [0, 1].

        Args:
            seeds: of the images, those of a prompt beside each other and as many for each.
        """

    def followed_plan(self, steps: int, **options: Any) -> StepPlan | None:
        """The plan of a call with these options, where there are plans."""
        return None

    def __call__(self, prompt: Prompts, steps: Whole = 4, seed: Seeds = 0, **options: Any) -> list[Image.Image]:
        """The images of `generate`."""
        return self.generate(prompt, steps, seed, **options).images

    def generate(
        self,
        prompt: Prompts,
        steps: Whole = 4,
        seed: Seeds = 0,
        size: Size | None = None,
        guidance: float | None = None,
        num_images_per_prompt: Whole = 1,
        **options: Any,
    ) -> Generated:
        """Generate images of the prompts.

        Args:
            prompt: a caption or class, or several.
            seed: one for all prompts, or one for each image.
            size: (width, height) in pixels; the training size when None.
            guidance: guidance scale; 1 and below mean unguided, None the model's default.
            num_images_per_prompt: with one seed, the further images of a prompt have the seeds after it.
            options: further arguments of the pipeline's `__call__`, such as `plan`; `seed`, `steps`, `size` and
                `guidance` stand for those that it has for these.

        Raises:
            InputError: what cannot be drawn, in one line.
        """
        if not isinstance(prompt, Integral | Iterable):
            raise InputError(f"prompt {shown(prompt)}: expected one, or a list of them")
        for theirs, name in OWN_NAMES.items():
            if theirs in options:
                raise InputError(f"{theirs}: a model takes `{name}` in its place")
        prompts = listed(prompt)
        steps = check("steps", steps, SamplingSteps)
        each = check("num_images_per_prompt", num_images_per_prompt, Count)
        seeds = _seeds(seed, len(prompts), each)
        sides = (self.base_size,) * 2 if size is None else _several("size", size, 2)
        width, height = (check("size", side, Side) for side in sides)
        start = time.perf_counter()
        output = self.draw(prompts, width, height, steps, seeds, guidance, **options)
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        seconds = time.perf_counter() - start
        plan = self.followed_plan(steps, **options)
        return Generated(output.images, output.steps, output.nfe, seconds, tuple(seeds), steps, plan)


def count_parameters(pipeline: Any) -> dict[str, int]:
    """The number of weights of each part of a pipeline that has any."""
    parts = {name: part for name, part in pipeline.components.items() if isinstance(part, nn.Module)}
    return {name: sum(weight.numel() for weight in part.parameters()) for name, part in parts.items()}


def _several(name: str, values: Any, count: int) -> list[Any]:
    found = listed(values)
    if isinstance(values, str | bytes) or len(found) != count:
        raise InputError(f"{name} {shown(values)}: expected {count} of them, got {len(found)}")
    return found


def _seeds(seed: Any, prompts: int, each: int) -> list[int]:
    """The seed of every image, from one for all prompts or one for each image."""
    if isinstance(seed, Iterable) and not isinstance(seed, str | bytes) and getattr(seed, "ndim", 1) > 0:
        return [check("seed", one, Seed) for one in _several("seed", seed, prompts * each)]
    first = check("seed", seed, Seed)
    return [check("seed", first + number, Seed) for number in range(each)] * prompts
