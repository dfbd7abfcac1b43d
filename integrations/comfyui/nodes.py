"""Load, encode, sample and decode.

ComfyUI's own samplers hand a model one time, where the sample is. A transition model must also be told the time that it
is to be carried to, so the sampler is a node of its own; it asks anystep's pipeline, and images are those that
`anystep generate` draws with the same seed.
"""

from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.utils
import folder_paths
import torch

CATEGORY = "anystep"
FOLDER = "anystep"  # of ComfyUI's models, with a folder for each model
LARGEST_SEED = 2**62 - 1 - 4096
LATEST = 100000.0  # time, beyond those of every transport
DENOISE = 0.6  # where nobody says
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

folder_paths.add_model_folder_path(FOLDER, str(Path(folder_paths.models_dir) / FOLDER))


def model_folders() -> dict[str, str]:
    """The models that can be loaded, by name: the built-in one, and the folders below `models/anystep`."""
    places = [Path(place) for place in folder_paths.get_folder_paths(FOLDER)]
    found = sorted(file.parent for place in places for file in place.glob("*/model_index.json"))
    return {"builtin": "builtin", **{folder.name: str(folder) for folder in found}}


class AnystepLoader:
    """A transition model."""

    CATEGORY, FUNCTION = CATEGORY, "load"
    RETURN_TYPES, RETURN_NAMES = ("ANYSTEP_MODEL",), ("model",)
    DESCRIPTION = "A transition model: the built-in one, or a folder below ComfyUI's models/anystep."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        return {"required": {"name": (list(model_folders()),), "precision": (list(PRECISIONS),)}}

    def load(self, name: str, precision: str) -> tuple[Any]:
        import anystep

        device = comfy.model_management.get_torch_device()
        return (anystep.load(model_folders()[name], device, PRECISIONS[precision]).pipeline,)


class AnystepEncode:
    """A caption, or the name or number of a class, as a condition; blank text is the empty one."""

    CATEGORY, FUNCTION = CATEGORY, "encode"
    RETURN_TYPES = ("CONDITIONING",)
    DESCRIPTION = "A caption as the states of the model's text encoder; of a model of classes, a class."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        text = ("STRING", {"multiline": True, "default": "a red apple on a blue background"})
        return {"required": {"model": ("ANYSTEP_MODEL",), "text": text}}

    def encode(self, model: Any, text: str) -> tuple[Any]:
        if not text.strip():
            states, mask = model.conditioner.null(1)
            return ([[states, {"attention_mask": mask}]],)
        encoded = model.encode_prompt(text, do_classifier_free_guidance=False)
        return ([[encoded.prompt_embeds, {"attention_mask": encoded.prompt_attention_mask}]],)


class AnystepSampler:
    """Latents in any number of steps."""

    CATEGORY, FUNCTION = CATEGORY, "sample"
    RETURN_TYPES = ("LATENT",)
    DESCRIPTION = "Any number of steps, each told the time that it goes to. AnystepDecode makes images of the latents."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        side = {"min": 8, "max": 16384, "step": 8}
        time = {"min": 0.0, "max": LATEST, "step": 0.01}
        return {
            "required": {
                "model": ("ANYSTEP_MODEL",),
                "positive": ("CONDITIONING",),
                "seed": ("INT", {"default": 0, "min": 0, "max": LARGEST_SEED, "control_after_generate": True}),
                "steps": ("INT", {"default": 4, "min": 1, "max": 10000}),
                "guidance": (
                    "FLOAT",
                    {"default": 0.0, "min": 0.0, "max": 100.0, "step": 0.1, "tooltip": "0: the model's own; 1: none"},
                ),
                "width": ("INT", {"default": 64, **side}),
                "height": ("INT", {"default": 64, **side}),
                "batch_size": ("INT", {"default": 1, "min": 1, "max": 4096}),
                "plan": (["model", "uniform"],),
            },
            "optional": {
                "negative": ("CONDITIONING", {"tooltip": "in place of the empty caption"}),
                "noise": ("LATENT", {"tooltip": "in place of that of the seed"}),
                "sigmas": ("SIGMAS", {"tooltip": "times in place of a number of steps"}),
                "image": ("IMAGE", {"tooltip": "to start from"}),
                "denoise": ("FLOAT", {"default": DENOISE, "min": 0.01, "max": 1.0, "step": 0.01}),
                "guide_from": ("FLOAT", {**time, "default": 0.0, "tooltip": "the lowest time at which to guide"}),
                "guide_to": ("FLOAT", {**time, "default": LATEST, "tooltip": "the highest time at which to guide"}),
            },
        }

    def sample(
        self,
        model: Any,
        positive: Any,
        seed: int,
        steps: int,
        guidance: float,
        width: int,
        height: int,
        batch_size: int,
        plan: str,
        negative: Any = None,
        noise: dict[str, torch.Tensor] | None = None,
        sigmas: torch.Tensor | None = None,
        image: torch.Tensor | None = None,
        denoise: float = DENOISE,
        guide_from: float = 0.0,
        guide_to: float = LATEST,
    ) -> tuple[dict[str, torch.Tensor]]:
        progress = comfy.utils.ProgressBar(steps)

        def on_step(pipeline: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            comfy.model_management.throw_exception_if_processing_interrupted()
            progress.update_absolute(step + 1, pipeline.num_timesteps)
            return {}

        guidance = guidance or model.config.guidance_scale
        labels, condition = None, conditions(model, positive, negative if guidance > 1 else None)
        if model.transformer.config.num_classes is not None:
            labels = condition.pop("prompt")
        options: dict[str, Any] = {"plan": plan} if sigmas is None else {"sigmas": begins_of(sigmas, model)}
        if image is not None:
            options["image"] = list(image.movedim(-1, 1).clamp(0, 1).cpu())  # nodes that resize go beyond
            if sigmas is None:
                options["strength"] = denoise
            elif denoise != DENOISE:
                raise ValueError(
                    f"denoise {denoise:g}: sigmas say where to begin; leave it at {DENOISE:g}, or give steps"
                )
        if (guide_from, guide_to) != (0.0, LATEST):
            options["guidance_interval"] = (guide_from, guide_to)
        if noise is not None:
            options["latents"] = noise["samples"]
        images = len(positive[0][0]) * batch_size
        drawn = model(
            labels, height=height, width=width, num_inference_steps=steps, guidance_scale=guidance,
            num_images_per_prompt=batch_size, seeds=[seed + number for number in range(images)],
            output_type="latent", callback_on_step_end=on_step, **condition, **options,
        )  # fmt: skip
        return ({"samples": drawn.images.cpu()},)


def conditions(model: Any, positive: Any, negative: Any) -> dict[str, Any]:
    """What to draw, and what to guide away from where that is not the empty condition, as the pipeline's arguments."""
    given = {"prompt": positive} if negative is None else {"prompt": positive, "negative_prompt": negative}
    classes, found = model.transformer.config.num_classes is not None, {}
    for name, conditioning in given.items():
        (states, more), *others = conditioning
        if others:
            raise ValueError(f"{name}: {len(conditioning)} conditions were combined, and a transition model reads one")
        # marks of ours would be copied to what other nodes make of it
        null = model.conditioner.null(1)[0].cpu()
        empty = states.shape[1:] == null.shape[1:] and bool((states.cpu() == null).all())
        if empty and name == "negative_prompt":
            continue
        if empty and classes:
            raise ValueError("prompt: blank text is no class to draw; of a model of classes it is for negative alone")
        if classes:
            found[name] = states.tolist()
            continue
        found |= {f"{name}_embeds": states, f"{name}_attention_mask": more.get("attention_mask")}
    return found


def begins_of(sigmas: torch.Tensor, model: Any) -> torch.Tensor:
    """The times at which steps begin, of those that end where images are finished."""
    end = model.schedule.transport.t_min
    if len(sigmas) < 2 or float(sigmas[-1]) > end + 1e-6:
        raise ValueError(
            f"sigmas {[round(each, 4) for each in sigmas.tolist()]}: expected two or more that end at {end:g}; this "
            "sampler goes all the way, so the high sigmas of SplitSigmas are none for it"
        )
    return sigmas[:-1]


class AnystepDecode:
    """Images of latents, by the model's own autoencoder."""

    CATEGORY, FUNCTION = CATEGORY, "decode"
    RETURN_TYPES = ("IMAGE",)
    DESCRIPTION = "Images of latents of AnystepSampler, which are of unit variance: other decoders do not fit them."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        return {"required": {"model": ("ANYSTEP_MODEL",), "samples": ("LATENT",)}}

    def decode(self, model: Any, samples: dict[str, torch.Tensor]) -> tuple[torch.Tensor]:
        from anystep.codecs import to_uint8

        pixels = to_uint8(model.decode_latents(samples["samples"]))
        return ((pixels.movedim(1, -1) / 255).float().cpu(),)


NODE_CLASS_MAPPINGS = {each.__name__: each for each in (AnystepLoader, AnystepEncode, AnystepSampler, AnystepDecode)}
NODE_DISPLAY_NAME_MAPPINGS = {
    "AnystepLoader": "Load transition model (anystep)",
    "AnystepEncode": "Encode caption (anystep)",
    "AnystepSampler": "Any-step sampler (anystep)",
    "AnystepDecode": "Decode (anystep)",
}
