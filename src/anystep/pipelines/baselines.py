"""Text-to-image pipelines of diffusers as they are, at any number of steps, beside transition models.

Their network evaluations are counted where they happen, so that guidance by a second evaluation, guidance that the
network is told, guidance by skipped layers and solvers of any order are each what they cost.
"""

import copy
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from inspect import Parameter, signature
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from PIL import Image
from torch import Tensor, nn

from anystep import bounds
from anystep.bounds import check, nearest, shown
from anystep.errors import InputError, refused
from anystep.fingerprint import text_digest
from anystep.models.lora import adapter_state
from anystep.pipelines.image_model import ImageModel, Output, count_parameters
from anystep.pipelines.inputs import check_finite, check_prompts, check_size
from anystep.pipelines.scheduler import Planning
from anystep.sampling import StepPlan
from anystep.seeds import generator_of

# what the cards of published models ask for, where their pipelines would do something else; by the last part of a name
PUBLISHED: dict[str, dict[str, Any]] = {
    "stable-diffusion-3.5-large": {"guidance_scale": 3.5},
    "stable-diffusion-3.5-medium": {"guidance_scale": 4.5},
    "stable-diffusion-3.5-large-turbo": {"guidance_scale": 0.0},
    "flux.1-schnell": {"guidance_scale": 0.0, "max_sequence_length": 256},
    "sdxl-turbo": {"guidance_scale": 0.0},
    "sd-turbo": {"guidance_scale": 0.0},
    "lcm_dreamshaper_v7": {"guidance_scale": 8.0},
}
UNIFORM = "uniform"
NEEDED = {"prompt", "num_inference_steps", "height", "width", "generator", "output_type"}
# arguments of pipelines that start from more than a caption, or make something else than one picture
OTHERS = {"strength", "mask_image", "control_image", "controlnet_conditioning_scale", "num_frames", "frames", "video"}
OTHER_NAMES = re.compile("Edit|Img2Img|Inpaint|Refiner|Adapter|ControlNet|SuperResolution|Pix2Pix|Prior|Video|Onnx")
# arguments that are given here, or that no text says
OWN = {*NEEDED, "self", "num_images_per_prompt", "latents", "return_dict", "image", "sigmas", "timesteps"}
UNTOLD = re.compile("callback|embeds|mask|image|^args$|^kwargs$")
PROBE = 8  # numbers of each tensor that a digest reads


class Baseline(ImageModel):
    """A text-to-image pipeline of diffusers.

    Args:
        name: what it was loaded from.
        pipeline: the pipeline, where it computes.
        options: arguments of its `__call__` that differ from its own, and `plan`.
        hollow: whether its networks have no weights.

    Raises:
        InputError: it draws no captions, or options that it does not have.
    """

    def __init__(
        self, name: str, pipeline: Any, options: Mapping[str, Any] = MappingProxyType({}), hollow: bool = False
    ) -> None:
        check_text_to_image(type(pipeline))
        self.name, self.pipeline, self.hollow = name, pipeline, hollow
        self._parameters = signature(type(pipeline).__call__).parameters
        told = {key for key in self._parameters if key not in OWN and not UNTOLD.search(key)} | {"plan"}
        for key in options:
            if key not in told:
                raise InputError(f"model {name!r}: unknown option {shown(key)}{nearest(key, sorted(told))}")
        known = PUBLISHED.get(re.split(r"[/\\]", name.split("?")[0].rstrip("/\\"))[-1].lower(), {})
        self.options = {**known, **options}
        self.note = f"{name} is a {type(pipeline).__name__}: its evaluations were counted at its network."
        self._said = frozenset(options)
        self._nfe: dict[tuple[Any, ...], int] = {}
        self._size: tuple[int, int] | None = None
        pipeline.set_progress_bar_config(disable=True)
        if not self.networks:
            raise InputError(f"model {name!r}: has no `transformer` and no `unet` whose evaluations could be counted")

    @property
    def networks(self) -> list[Any]:
        """Those that are evaluated at each step."""
        parts = self.pipeline.components.items()
        return [part for name, part in parts if re.search("transformer|unet", name) and isinstance(part, nn.Module)]

    @property
    def device(self) -> torch.device:
        return torch.device(self.pipeline._execution_device)

    @property
    def dtype(self) -> torch.dtype:
        return next(self.networks[0].parameters()).dtype

    def to(self, device: torch.device) -> "Baseline":
        if device.type != self.device.type and not self.hollow:
            self.pipeline.to(device)
        return self

    @property
    def base_size(self) -> int:
        factor = getattr(self.pipeline, "vae_scale_factor", 1)
        side = getattr(self.pipeline, "default_sample_size", None)
        side = self.networks[0].config.get("sample_size") if side is None else side
        if not isinstance(side, int):
            raise InputError(f"model {self.name!r}: its folder does not say which size it draws: give --size")
        return side * int(factor)

    @property
    def digest(self) -> str:
        """Of the configurations and adapters, the shapes of all tensors, and a few numbers of each."""
        said: list[Any] = [type(self.pipeline).__name__, {k: v for k, v in self.options.items() if k != "plan"}]
        for name, part in sorted(self.pipeline.components.items()):
            config = getattr(part, "config", None) or {}
            config = config.to_dict() if hasattr(config, "to_dict") else dict(config)
            said += [name, type(part).__name__, {key: config[key] for key in config if not key.startswith("_")}]
            said += adapter_state(part) if isinstance(part, nn.Module) else ()
            for key, tensor in part.state_dict().items() if isinstance(part, nn.Module) else ():
                flat = tensor.flatten()
                numbers = [] if tensor.is_meta else flat[:: max(1, len(flat) // PROBE)][:PROBE].float().tolist()
                said += [key, list(tensor.shape), str(tensor.dtype), numbers]
        return text_digest(json.dumps(said, sort_keys=True, default=str))

    def facts(self) -> dict[str, Any]:
        """What it is and how it is asked, as plain values."""
        dtype = "without weights" if self.hollow else str(self.dtype)
        kinds = {"pipeline": type(self.pipeline).__name__, "scheduler": type(self.pipeline.scheduler).__name__}
        return {
            **kinds,
            "options": self.options,
            "parameters": count_parameters(self.pipeline),
            "dtype": dtype.removeprefix("torch."),
        }

    @property
    def _guidance_name(self) -> str:
        """The argument that guidance is asked for with; a pipeline may have two, and one without a default."""
        first = self._parameters.get("guidance_scale")
        untold = first is None or first.default in (None, Parameter.empty)
        return "true_cfg_scale" if untold and "true_cfg_scale" in self._parameters else "guidance_scale"

    def resolve_guidance(self, scale: float | None) -> float:
        """The scale as the pipeline is told it; how much that costs is counted."""
        name = self._guidance_name
        if name not in self._parameters:
            return 1.0
        default = self._parameters[name].default
        given = self.options.get(name, default) if scale is None or name in self._said else scale
        return 1.0 if given is None else float(check(name, given, bounds.Guidance))

    def plan_settings(self, plan: StepPlan | Planning | None, steps: int | None = None) -> Any:
        return UNIFORM if self._is_uniform(plan) else None

    def _is_uniform(self, plan: StepPlan | Planning | None) -> bool:
        """Whether steps begin at uniform times, which the scheduler may shift, instead of at those of the pipeline."""
        plan = self.options.get("plan", plan)
        if plan not in (None, "model", UNIFORM):
            raise InputError(f"plan {shown(str(plan))}: model {self.name!r} has its own schedule (model), or uniform")
        flows = isinstance(self.pipeline.scheduler, FlowMatchEulerDiscreteScheduler) and "sigmas" in self._parameters
        if plan == UNIFORM and not flows:
            kind = type(self.pipeline.scheduler).__name__
            raise InputError(f"plan uniform: model {self.name!r} has a {kind}, which has its own times only")
        return plan == UNIFORM

    def nfe(self, steps: int, guidance: float | None = None, plan: StepPlan | Planning | None = None) -> int:
        """As it was counted when the last such image was drawn; one is drawn for it if none was."""
        key = (type(self.pipeline.scheduler), steps, self.resolve_guidance(guidance), self.plan_settings(plan))
        if key not in self._nfe:
            width, height = self._size or (self.base_size,) * 2
            self.draw(["a red apple"], width, height, steps, [0], guidance, plan, "pt")
        return self._nfe[key]

    def check(self, prompts: Sequence[Any] | None, width: int, height: int, steps: int) -> None:
        if prompts is not None:
            check_prompts(prompts, reads_text=True)
        check("steps", steps, bounds.SamplingSteps)
        config = self.networks[0].config
        patch = config.get("patch_size") if isinstance(config.get("patch_size"), int) else 1
        packed = 2 if hasattr(self.pipeline, "_pack_latents") else 1  # squares of four in one token
        check_size(height, width, int(getattr(self.pipeline, "vae_scale_factor", 1)) * int(patch) * packed)
        self._size = (width, height)
        times = copy.deepcopy(self.pipeline.scheduler)
        known = signature(times.set_timesteps).parameters
        dynamic = {"mu": 1.0} if times.config.get("use_dynamic_shifting") else {}
        given = {**self._call_options(steps), **dynamic}
        with refused(f"model {self.name!r} cannot make {steps} steps"):
            times.set_timesteps(steps, **{key: value for key, value in given.items() if key in known})

    def _call_options(self, steps: int) -> dict[str, Any]:
        """Arguments of the pipeline beside what every pipeline takes."""
        defaults: dict[str, Any] = {"use_resolution_binning": False}  # which draws another size than was asked for
        if steps != 2:
            defaults["intermediate_timesteps"] = None  # where the second of two steps begins
        defaults = {key: value for key, value in defaults.items() if key in self._parameters}
        return {**defaults, **{key: value for key, value in self.options.items() if key != "plan"}}

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
        for name, value in options.items():
            if value is not None:
                raise InputError(f"{name} {shown(value)}: goes with transition models, and {self.name!r} is none")
        self.check(prompts, width, height, steps)
        repeated = [prompt for prompt in prompts for _ in range(len(seeds) // len(prompts))]
        call, scale, name = self._call_options(steps), self.resolve_guidance(guidance), self._guidance_name
        if name in self._parameters:
            call[name] = scale
        if name == "true_cfg_scale" and scale > 1:
            call.setdefault("negative_prompt", " ")
        if self._is_uniform(plan):
            call["sigmas"] = np.linspace(1, 1 / steps, steps).tolist()
        generators = [generator_of(seed) for seed in seeds]
        with refused(f"model {self.name!r} at {steps} steps"), evaluated_rows(self.networks) as rows:
            images = self.pipeline(
                prompt=repeated, width=width, height=height, num_inference_steps=steps, generator=generators,
                output_type="pt", **call,
            ).images  # fmt: skip
        if not isinstance(images, Tensor) or images.shape != (len(repeated), 3, height, width):
            found = tuple(getattr(images, "shape", ()))
            raise InputError(f"model {self.name!r} gave images of shape {found}, asked for {width}x{height}")
        check_finite(images, f"model {self.name!r} at {steps} steps")
        key = (type(self.pipeline.scheduler), steps, scale, self.plan_settings(plan))
        nfe = self._nfe[key] = -(-sum(rows) // len(repeated))
        images = images.float().cpu().contiguous()
        if output_type == "pil":
            pixels = (images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
            return Output([Image.fromarray(each) for each in pixels], steps, nfe)
        return Output(images, steps, nfe)


@contextmanager
def evaluated_rows(networks: Sequence[nn.Module]) -> Iterator[list[int]]:
    """A block that lists the rows of every batch that one of the networks evaluates."""
    rows: list[int] = []

    def count(network: nn.Module, arguments: Any, options: dict[str, Any]) -> None:
        rows.append(len(next(each for each in (*arguments, *options.values()) if isinstance(each, Tensor | list))))

    hooks = [network.register_forward_pre_hook(count, with_kwargs=True) for network in networks]
    try:
        yield rows
    finally:
        for hook in hooks:
            hook.remove()


def check_text_to_image(kind: Any) -> None:
    """Raise `InputError` for a class of diffusers that does not draw pictures of captions alone."""
    parameters = signature(kind.__call__).parameters
    if not parameters.keys() >= NEEDED or parameters.keys() & OTHERS or OTHER_NAMES.search(kind.__name__):
        raise InputError(f"it is a {kind.__name__}, which does not draw captions alone: expected text-to-image")
