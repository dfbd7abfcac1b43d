"""`anystep.load`: a model by name, ready to draw."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from diffusers.utils import logging as library_log
from PIL import Image

from anystep.codecs.codec import check_whole
from anystep.device import pick_device
from anystep.errors import InputError
from anystep.pipelines.transition import TransitionPipeline

BUILTIN = "builtin"


@dataclass(frozen=True)
class Generated:
    """Images with what they cost."""

    images: list[Image.Image]
    steps: int
    nfe: int
    seconds: float


class Model:
    """A loaded model. `model("a red apple", steps=4, seed=0)` is a list of PIL images.

    Attributes:
        name: what it was loaded from.
        pipeline: the diffusers pipeline behind it.
    """

    def __init__(self, name: str, pipeline: TransitionPipeline) -> None:
        self.name, self.pipeline = name, pipeline

    def __call__(
        self, prompt: str | int | Sequence[str | int], steps: int = 4, seed: int = 0, **options: Any
    ) -> list[Image.Image]:
        """`generate`'s images."""
        return self.generate(prompt, steps, seed, **options).images

    def generate(
        self,
        prompt: str | int | Sequence[str | int],
        steps: int = 4,
        seed: int | Sequence[int] = 0,
        size: tuple[int, int] | None = None,
        guidance: float | None = None,
        **options: Any,
    ) -> Generated:
        """One image a prompt.

        Args:
            prompt: a caption or class, or several.
            seed: one for all prompts, or one each.
            size: (width, height) in pixels.
            guidance: scale; the model's default when None.
            options: further arguments of `TransitionPipeline.__call__`.
        """
        count = 1 if isinstance(prompt, str | int) else len(prompt)
        seeds = [seed] * count if isinstance(seed, int) else list(seed)
        width, height = size or (self.pipeline.base_size, self.pipeline.base_size)
        start = time.perf_counter()
        output: Any = self.pipeline(
            prompt, height, width, steps, guidance_scale=guidance, seeds=seeds, output_type="pil", **options
        )
        if self.pipeline.device.type == "cuda":
            torch.cuda.synchronize()
        return Generated(output.images, steps, output.nfe, time.perf_counter() - start)


def load(model: str | Path = BUILTIN, device: str | torch.device = "auto", dtype: torch.dtype = torch.float32) -> Model:
    """Load a model for generation.

    Args:
        model: `builtin`, the folder of a pipeline or of a training run, or a hub id.
        device: `auto` is CUDA, else MPS, else the CPU.
        dtype: of the transformer's blocks and the codec; times, modulation and head stay in float32.

    Raises:
        InputError: unknown model, damaged weights, or a device that is not there.
    """
    where = pick_device(str(device))
    library_log.disable_progress_bar()
    try:
        pipeline = TransitionPipeline.from_pretrained(find(model), dtype=dtype)
        for part in pipeline.components.values():
            if isinstance(part, torch.nn.Module):
                check_whole(part)
    except InputError:
        raise
    except Exception as error:  # diffusers, safetensors and the hub raise many kinds; all mean the folder is not usable
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"cannot load model {str(model)!r}: {type(error).__name__}: {reason}") from error
    finally:
        library_log.enable_progress_bar()
    pipeline.set_progress_bar_config(disable=True)
    return Model(str(model), pipeline.to(where))


def find(model: str | Path) -> str:
    """The folder or hub id that a model's name stands for."""
    if str(model) == BUILTIN:
        return str(files("anystep") / "weights" / "builtin")
    folder = Path(model)
    for candidate in (folder, folder / "pipeline"):  # a training run keeps its pipeline in a folder of that name
        if (candidate / "model_index.json").exists():
            return str(candidate)
    if folder.exists() or str(model).count("/") != 1 or str(model).startswith((".", "/")):
        raise InputError(
            f"unknown model {str(model)!r}: expected 'builtin', a folder with model_index.json, or a hub id owner/name"
        )
    return str(model)
