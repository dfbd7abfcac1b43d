"""`anystep.load`: a model by name, ready to draw."""

import difflib
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from diffusers.utils import logging as library_log
from PIL import Image

from anystep.bounds import Count, SamplingSteps, Seed, Side, check, shown
from anystep.device import pick_device
from anystep.errors import InputError
from anystep.pipelines.inputs import listed
from anystep.pipelines.scheduler import Planning
from anystep.pipelines.transition import TransitionPipeline
from anystep.sampling import StepPlan
from anystep.weights import BUILTIN, shipped

if TYPE_CHECKING:
    Prompts: TypeAlias = str | int | Sequence[str | int]
    Seeds: TypeAlias = int | Sequence[int]
    Whole: TypeAlias = int
    Size: TypeAlias = tuple[int, int]
else:  # `generate` checks them itself, and takes the numbers of numpy
    Prompts = Seeds = Whole = Size = Any


@dataclass(frozen=True)
class Generated:
    """Images, those of a prompt beside each other, with the seed of each and with what they cost.

    Attributes:
        steps, nfe: transitions made and network evaluations spent on each image.
        asked: steps that were asked for; a plan may make fewer.
        plan: the plan that the steps followed.
    """

    images: list[Image.Image]
    steps: int
    nfe: int
    seconds: float
    seeds: tuple[int, ...] = ()
    asked: int = 0
    plan: StepPlan | None = None


class Model:
    """A loaded model. `model("a red apple", steps=4, seed=0)` is a list of PIL images.

    Attributes:
        name: what it was loaded from.
        pipeline: the diffusers pipeline behind it.
    """

    def __init__(self, name: str, pipeline: TransitionPipeline) -> None:
        self.name, self.pipeline = name, pipeline

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
            options: further arguments of `TransitionPipeline.__call__`, such as `plan`.

        Raises:
            InputError: what cannot be drawn, in one line.
        """
        if not isinstance(prompt, Integral | Iterable):
            raise InputError(f"prompt {shown(prompt)}: expected one, or a list of them")
        prompts = listed(prompt)
        steps = check("steps", steps, SamplingSteps)
        each = check("num_images_per_prompt", num_images_per_prompt, Count)
        seeds = _seeds(seed, len(prompts), each)
        base = self.pipeline.base_size
        sides = (base, base) if size is None else _several("size", size, 2)
        width, height = (check("size", side, Side) for side in sides)
        start = time.perf_counter()
        output: Any = self.pipeline(
            prompts, height, width, steps, guidance_scale=guidance, seeds=seeds, num_images_per_prompt=each,
            output_type="pil", **options,
        )  # fmt: skip
        if self.pipeline.device.type == "cuda":
            torch.cuda.synchronize()
        seconds = time.perf_counter() - start
        plan = self.pipeline.plan(steps, *(options.get(name) for name in ("plan", "stochasticity", "shift")))
        return Generated(output.images, output.steps, output.nfe, seconds, tuple(seeds), steps, plan)

    def nfe(self, steps: int, guidance: float | None = None, plan: StepPlan | Planning | None = None) -> int:
        """Network evaluations of one image that is generated in so many steps."""
        return self.pipeline.evaluations(self.pipeline.plan(steps, plan), guidance)


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


def load(model: str | Path = BUILTIN, device: str | torch.device = "auto", dtype: torch.dtype = torch.float32) -> Model:
    """Load a model for generation.

    Args:
        model: `builtin`, the folder of a pipeline or of a training run, or a hub id.
        device: `auto` is CUDA, else MPS, else the CPU.
        dtype: precision of the transformer's blocks and the codec; times, modulation and head stay in float32.

    Raises:
        InputError: unknown model, damaged weights, or a device that is not there.
    """
    where = pick_device(str(device))
    library_log.disable_progress_bar()
    try:
        pipeline = TransitionPipeline.from_pretrained(find(model), dtype=dtype)
    finally:
        library_log.enable_progress_bar()
    pipeline.set_progress_bar_config(disable=True)
    return Model(str(model), pipeline.to(where))


def find(model: str | Path) -> str:
    """The folder or hub id that a model's name stands for."""
    if str(model) == BUILTIN:
        return str(shipped(BUILTIN))
    folder = Path(model).expanduser()
    for candidate in (folder, folder / "pipeline"):  # a training run keeps its pipeline in a folder of that name
        if (candidate / "model_index.json").exists():
            return str(candidate)
    # `runs/x` is no hub id where there is a folder `runs`
    is_hub_id = str(model).count("/") == 1 and not str(model).startswith((".", "/", "~"))
    if not is_hub_id or folder.exists() or folder.parent.is_dir():
        raise InputError(f"unknown model {shown(str(model))}: {_instead(folder)}")
    return str(model)


def _instead(folder: Path) -> str:
    """What may have been meant by a folder that holds no model."""
    if (folder / "lora").is_dir():
        return f"a training run of an adapter: give --lora {folder} beside the model that it is for"
    if (folder / "checkpoints").is_dir():
        return "a training run that has not ended yet; its model is written at its end"
    hint = ""
    with suppress(OSError):
        names = [path.name for path in folder.parent.iterdir() if path.is_dir()] + [BUILTIN]
        near = difflib.get_close_matches(folder.name, names, n=1)
        if near and not folder.exists():
            hint = f"did you mean {BUILTIN if near[0] == BUILTIN else folder.with_name(near[0])}? "
    return f"{hint}expected 'builtin', a folder with model_index.json, or a hub id owner/name"
