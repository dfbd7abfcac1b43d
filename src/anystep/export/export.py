"""`anystep export`: a model as a folder that draws without PyTorch, compared with the model before it is published."""

import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from anystep.bounds import shown
from anystep.errors import InputError
from anystep.export import sample
from anystep.export.programs import (
    Program,
    difference,
    onnx_runner,
    programs_of,
    require_runtime,
    write_exported,
    write_onnx,
)
from anystep.export.readme import readme
from anystep.files import check_room, write_json, write_text
from anystep.models.transformer import TransitionTransformer2DModel
from anystep.pipelines.load import load
from anystep.pipelines.transition import TransitionPipeline
from anystep.publishing import check_free, publishing
from anystep.sampling import without_ends

KIND = "model's export"  # of folders that it writes
TOLERANCE = 1e-4  # of a program's largest answer: float32 leaves 1e-6 to 1e-5, anything that is wrong far more
STEPS, SIDE = 4, 8  # of the images that are compared: transitions, and tokens along a side
LETTERS = ", Café naïve 苹果"  # in a caption, which tokenizers treat in many ways
GUIDANCE = 2.0  # away from a negative prompt


@dataclass(frozen=True)
class Request:
    """What to export.

    Attributes:
        model: `builtin`, a folder or a hub id.
        out: the folder.
        no_text_encoder: leave it out; captions are then given as states.
    """

    model: str
    out: Path
    no_text_encoder: bool = False


@dataclass(frozen=True)
class Exported:
    """What was made: by name, the largest difference from the model in parts of its largest answer."""

    differences: dict[str, float]


def export_model(request: Request) -> Exported:
    """Write a model to the folder `request.out`, in float32.

    It holds `network.onnx` and `network.pt2`, `decoder.onnx` and `encoder.onnx` of a codec, `text_encoder.onnx` with
    the tokenizer and the states of the empty caption, `model.json` with everything else as plain values, `sample.py`,
    which draws with them by onnxruntime and NumPy alone, `report.json` and `README.md`.

    Raises:
        InputError: no such model, one that depends on its sizes in a way that cannot be written, a part that differs
            by more than `TOLERANCE`, a missing package, or a folder that cannot be written.
    """
    require_runtime()
    out = request.out.resolve()
    check_free(out, KIND, _is_export)
    pipeline = load(request.model, "cpu").pipeline
    if not isinstance(pipeline.transformer, TransitionTransformer2DModel):
        raise InputError(
            f"model {shown(request.model)}: its network is a {type(pipeline.transformer).__name__}; exported are "
            "transition models of anystep's own network"
        )
    scaling = pipeline.transformer.config.rope_scaling
    if scaling != "plain":
        raise InputError(
            f"rope_scaling {scaling!r}: its angles depend on the size in a way that no exported network keeps; "
            "expected plain"
        )
    text = pipeline.transformer.config.text_width is not None
    if request.no_text_encoder and not text:
        raise InputError("--no-text-encoder: this model reads classes and has none")
    programs = list(programs_of(pipeline, text and not request.no_text_encoder))
    check_room(out, sum(_size(each) * (1 + (each.name == "network")) for each in programs))
    torch.manual_seed(0)
    with publishing(out, KIND, _is_export) as part:
        part.mkdir(parents=True)
        differences: dict[str, float] = {}
        for program in programs:
            differences |= _write(program, part)
        write_json(part / "model.json", settings_of(pipeline))
        shutil.copyfile(sample.__file__, part / "sample.py")
        if text:
            np.save(part / "null_states.npy", _null_states(pipeline))
        if text and not request.no_text_encoder:
            encoder: Any = pipeline.conditioner
            encoder.tokenizer.save_pretrained(part / "tokenizer")
        drawn = _compare_images(pipeline, part, request.no_text_encoder)
        differences["latents of sample.py"] = _tolerated("latents of sample.py", drawn)
        write_json(part / "report.json", {"tolerance": TOLERANCE, "largest differences": differences})
        write_text(part / "README.md", readme(request.model, pipeline, programs, differences, TOLERANCE))
    return Exported(differences)


def _is_export(folder: Path) -> bool:
    return (folder / "sample.py").exists()


def _size(program: Program) -> int:
    return sum(each.nbytes for each in program.module.state_dict().values())


def _write(program: Program, folder: Path) -> dict[str, float]:
    """Write a program in its forms; returns by the name of each file how far it is off."""
    path = folder / f"{program.name}.onnx"
    write_onnx(program, path)
    found = {path.name: _tolerated(path.name, difference(program, onnx_runner(program, path)))}
    if program.name == "network":
        other = path.with_suffix(".pt2")
        write_exported(program, other)
        found[other.name] = _tolerated(other.name, difference(program, torch.export.load(other).module()))
    return found


def _tolerated(name: str, found: float) -> float:
    """A difference, refused where it is more than rounding."""
    if not found <= TOLERANCE:
        raise InputError(
            f"{name} would differ from the model by {found:.2g} of its largest answer, and {TOLERANCE:g} is tolerated: "
            "a part of it depends on sizes in a way that is not exported; nothing was written"
        )
    return found


def settings_of(pipeline: TransitionPipeline) -> dict[str, Any]:
    """What `sample.py` is told of a model: plain values, with every default written out."""
    config, schedule = pipeline.config, pipeline.schedule
    network, transport = pipeline.transformer.config, pipeline.schedule.transport
    ends = (transport.t_min, transport.t_max)
    return {
        "format": 1,
        "license": config.license,
        "transport": {"name": transport.name, **asdict(transport)},
        "shift": schedule.config.shift,
        "base_size": schedule.config.base_size,
        "plans": {str(budget): plan.plain() for budget, plan in schedule.plans.items()},
        "sampling": config.sampling,
        "guidance_scale": config.guidance_scale,
        "guidance_embed": pipeline.guidance_embedded,
        "guided_times": without_ends(transport) if config.open_guidance_interval else ends,
        "channels": network.in_channels,
        "factor": pipeline.latent_codec.factor,
        "multiple": pipeline.size_multiple,
        "side": pipeline.base_size,
        "classes": network.num_classes,
        "class_names": config.class_names,
        "mask_text": network.mask_text,
        "escape_captions": config.escape_captions,
        "max_length": None if network.text_width is None else pipeline.conditioner.max_length,  # type: ignore[attr-defined]
    }


def _null_states(pipeline: TransitionPipeline) -> np.ndarray:
    """States of the empty caption; padded as far as captions go where the network attends to padding."""
    encoder: Any = pipeline.conditioner
    masked = pipeline.transformer.config.mask_text
    states = encoder.null(1)[0] if masked else encoder.padded_null(encoder.max_length)
    return states.numpy()


def _compare_images(pipeline: TransitionPipeline, folder: Path, from_states: bool) -> float:
    """How far the latents of `sample.py` are from those of the pipeline, in parts of the largest, at a small size.

    Drawn are images with the guidance of the model, and images guided away from a negative prompt where they can be.
    """
    side, config = SIDE * pipeline.size_multiple, pipeline.transformer.config
    text, concepts = config.text_width is not None, pipeline.config.concepts
    caption = f"{(concepts or ['a red apple'])[0]}{LETTERS}"
    prompt, negative = (caption, "blue") if text else (0, config.num_classes - 1)
    ways = [(None, None), *[(negative, GUIDANCE)] * bool(text or config.class_dropout_prob)]
    model, largest = sample.Model(folder, torch.get_num_threads()), 0.0

    def read(prompt: Any) -> Any:
        return pipeline.encode_prompt(prompt).prompt_embeds.numpy() if from_states and prompt is not None else prompt

    for away, guidance in ways:
        drawn: Any = pipeline(
            prompt, side, side, STEPS, guidance_scale=guidance, negative_prompt=away, seeds=[1, 2],
            num_images_per_prompt=2, output_type="latent",
        )  # fmt: skip
        found = model.draw(read(prompt), STEPS, [1, 2], (side, side), guidance, read(away))
        wanted = drawn.images.numpy()
        apart = np.abs(found - wanted).max() / max(1.0, np.abs(wanted).max())
        largest = max(largest, float(apart) if np.isfinite(apart) else float("inf"))
    return largest
