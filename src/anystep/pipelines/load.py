"""`anystep.load`: a model by name, ready to draw."""

import difflib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from diffusers.utils import logging as library_log

from anystep.bounds import shown
from anystep.device import pick_device
from anystep.errors import InputError
from anystep.pipelines.adapted import find_flow_map, load_adapted
from anystep.pipelines.image_model import ImageModel, Output, count_parameters
from anystep.pipelines.scheduler import Planning
from anystep.pipelines.transition import TransitionPipeline
from anystep.pretrained import may_be_hub_id
from anystep.sampling import StepPlan
from anystep.weights import BUILTIN, shipped


class Model(ImageModel):
    """A loaded transition model. `model("a red apple", steps=4, seed=0)` is a list of PIL images.

    Attributes:
        name: what it was loaded from.
        pipeline: the diffusers pipeline behind it.
    """

    def __init__(self, name: str, pipeline: TransitionPipeline) -> None:
        self.name, self.pipeline = name, pipeline

    @property
    def class_names(self) -> list[str] | None:
        return self.pipeline.classes or None

    @property
    def device(self) -> torch.device:
        where: torch.device = self.pipeline.device
        return where

    @property
    def dtype(self) -> torch.dtype:
        kind: torch.dtype = self.pipeline.transformer.dtype
        return kind

    def to(self, device: torch.device) -> "Model":
        return Model(self.name, self.pipeline.to(device))

    @property
    def base_size(self) -> int:
        return self.pipeline.base_size

    @property
    def digest(self) -> str:
        from anystep.pipelines.describe import model_digest  # which describes what is loaded here

        return model_digest(self)

    def facts(self) -> dict[str, Any]:
        kind, dtype = type(self.pipeline).__name__, str(self.dtype).removeprefix("torch.")
        return {"pipeline": kind, "parameters": count_parameters(self.pipeline), "dtype": dtype}

    def resolve_guidance(self, scale: float | None) -> float:
        return self.pipeline.resolve_guidance(scale)

    def plan_settings(self, plan: StepPlan | Planning | None, steps: int | None = None) -> Any:
        if steps is not None:
            planned, uniform = (self.pipeline.plan(steps, each) for each in (plan, "uniform"))
            return planned if planned != uniform else None
        if isinstance(plan, StepPlan):
            return str(plan)
        return self.pipeline.schedule.config.plans if plan in (None, "model") else None

    def nfe(self, steps: int, guidance: float | None = None, plan: StepPlan | Planning | None = None) -> int:
        return self.pipeline.evaluations(self.pipeline.plan(steps, plan), guidance)

    def check(self, prompts: Sequence[Any] | None, width: int, height: int, steps: int) -> None:
        self.pipeline.check_inputs(prompts, height, width, steps, "pil")

    def check_conditions(self, prompts: Sequence[Any]) -> None:
        conditioner: Any = self.pipeline.conditioner
        conditioner(prompts)

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
        output: Any = self.pipeline(
            prompts, height, width, steps, guidance_scale=guidance, seeds=seeds, plan=plan, output_type=output_type,
            num_images_per_prompt=len(seeds) // max(1, len(prompts)), **options,
        )  # fmt: skip
        return Output(output.images, output.steps, output.nfe)

    def followed_plan(self, steps: int, **options: Any) -> StepPlan | None:
        return self.pipeline.plan(steps, *(options.get(name) for name in ("plan", "stochasticity", "shift")))


def load(model: str | Path = BUILTIN, device: str | torch.device = "auto", dtype: torch.dtype = torch.float32) -> Model:
    """Load a model for generation.

    Args:
        model: `builtin`, the folder of a pipeline or of a training run, the file of a flow map, or a hub id.
        device: `auto` is CUDA, else MPS, else the CPU.
        dtype: precision of the transformer's blocks and the codec; times, modulation and head stay in float32.

    Raises:
        InputError: unknown model, damaged weights, or a device that is not there.
    """
    where = pick_device(str(device))
    library_log.disable_progress_bar()
    try:
        found = find(model)
        file = find_flow_map(found)
        pipeline = load_adapted(file, dtype) if file else TransitionPipeline.from_pretrained(found, dtype=dtype)
    finally:
        library_log.enable_progress_bar()
    pipeline.set_progress_bar_config(disable=True)
    return Model(str(model), pipeline.to(where))


def find(model: str | Path) -> str:
    """The folder, the file of a flow map, or the hub id that a model's name stands for."""
    if str(model) == BUILTIN:
        return str(shipped(BUILTIN))
    if (file := find_flow_map(model)) is not None:
        return str(file)
    folder = Path(model).expanduser()
    for candidate in (folder, folder / "pipeline"):  # a training run keeps its pipeline in a folder of that name
        if (candidate / "model_index.json").exists():
            return str(candidate)
    if folder.exists() or not may_be_hub_id(str(model)):
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
