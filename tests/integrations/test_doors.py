"""Every door into a model gives the numbers of the reference implementation, to 1e-5 in float32.

Networks and whole guided trajectories of `tests/data`, through: the network in a loop of your own, a pipeline put
together by hand, the folder that `anystep convert` makes, ONNX with the program of `anystep export`, the sampler of
ComfyUI, and the classes for diffusers.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jaxtyping
import numpy as np
import pytest
import torch
from helpers import TRAJECTORIES, GivenStates, opened
from safetensors.torch import load_file
from torch import Tensor

import anystep
from anystep import TransitionPipeline
from anystep.export import sample as numpy_sample
from anystep.export.export import settings_of
from anystep.export.programs import onnx_runner, programs_of, write_onnx
from anystep.files import write_json
from anystep.models import load_reference_transformer
from anystep.pipelines.scheduler import TransitionScheduler
from anystep.sampling import guided, initial_sample, schedule, without_ends
from anystep.transport import make_transport


@dataclass(frozen=True)
class Asked:
    """A trajectory of the fixture: what is drawn, from which noise, in how many steps, and how it is guided."""

    name: str
    y: Tensor
    null: Tensor
    z: Tensor
    steps: int
    scale: float
    interval: tuple[float, float] | None


@dataclass(frozen=True)
class Released:
    """A network of the fixture: its released weights, the folder made of them, and as ONNX."""

    weights: Path
    options: dict[str, Any]
    folder: Path
    onnx: Path


@pytest.fixture(scope="module")
def released(
    converted: dict[str, Path], numbers: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Released]:
    options, made = json.loads((numbers / "meta.json").read_text()), {}
    jaxtyping.config.update("jaxtyping_disable", True)  # exporters give functions tensors for sizes
    for name in ("t2i", "c2i"):
        onnx, pipeline = tmp_path_factory.mktemp(f"{name}-onnx"), opened(converted[name])
        write_onnx(next(programs_of(pipeline, text_encoder=False)), onnx / "network.onnx")
        write_json(onnx / "model.json", settings_of(pipeline))
        made[name] = Released(numbers / f"{name}.weights.safetensors", options[name]["config"], converted[name], onnx)
    jaxtyping.config.update("jaxtyping_disable", False)
    return made


def by_network(made: Released, asked: Asked) -> Tensor:
    transport = make_transport("ot_fm")
    network, interval = load_reference_transformer(made.weights, made.options), without_ends(transport, asked.interval)
    f = guided(network, transport, (asked.y, None), (asked.null, None), asked.scale, interval)
    x = initial_sample(transport, asked.z, 1.0)
    with torch.no_grad():
        return anystep.sampling.sample(f, transport, x, schedule(transport, asked.steps)).sample


def _drawn(pipeline: TransitionPipeline, asked: Asked) -> Tensor:
    pipeline.conditioner = GivenStates(asked.y, asked.null)
    pipeline.set_progress_bar_config(disable=True)
    side = 8 * pipeline.latent_codec.factor
    output: Any = pipeline(
        ["a red apple"] * 3 if asked.name == "t2i" else [1, 2, 3], side, side, asked.steps, latents=asked.z,
        guidance_scale=asked.scale, guidance_interval=asked.interval, output_type="latent",
    )  # fmt: skip
    return output.images


def by_pipeline(made: Released, asked: Asked) -> Tensor:
    network = load_reference_transformer(made.weights, made.options)
    vae = opened(made.folder).vae
    return _drawn(TransitionPipeline(network, TransitionScheduler(), vae, open_guidance_interval=True), asked)


def by_folder(made: Released, asked: Asked) -> Tensor:
    return _drawn(opened(made.folder), asked)


def by_onnx(made: Released, asked: Asked) -> Tensor:
    model, rows = numpy_sample.Model(made.onnx, threads=1), []
    if asked.interval is not None:
        model.settings["guided_times"] = without_ends(make_transport("ot_fm"), asked.interval)
    for n in range(len(asked.z)):
        with pytest.MonkeyPatch.context() as patched:
            condition = asked.y[n : n + 1].numpy(), asked.null[n : n + 1].numpy()
            patched.setattr(model, "condition", lambda prompt, given=condition[0]: given)
            patched.setattr(model, "null", lambda states, given=condition[1]: given)
            patched.setattr(numpy_sample.Noise, "draw", lambda self, shape, row=n: asked.z[row].numpy())
            rows.append(model.draw(None, asked.steps, guidance=asked.scale))
    return torch.from_numpy(np.concatenate(rows))


def by_comfyui(made: Released, asked: Asked, nodes: dict[str, Any]) -> Tensor:
    pipeline = opened(made.folder)
    ends = {} if asked.interval is None else dict(zip(("guide_from", "guide_to"), asked.interval, strict=True))
    sampler, side = nodes["AnystepSampler"](), 8 * pipeline.latent_codec.factor
    answer = sampler.sample(
        pipeline, [[asked.y, {}]], 0, asked.steps, asked.scale, side, side, 1, "model",
        negative=[[asked.null, {}]], noise={"samples": asked.z}, **ends,
    )  # fmt: skip
    found: Tensor = answer[0]["samples"]
    return found


def by_diffusers(made: Released, asked: Asked, upstream: Any) -> Tensor:
    ours = opened(made.folder)
    network = upstream.TransitionTransformer2DModel.from_config(ours.transformer.config)
    weights = ours.transformer.state_dict()  # the projector is of training alone
    network.load_state_dict({name: each for name, each in weights.items() if not name.startswith("projector.")})
    encoder: Any = ours.conditioner
    pipeline = upstream.TransitionPipeline(
        encoder.tokenizer, encoder.model, ours.vae, network.eval(), upstream.TransitionScheduler(),
        open_guidance_interval=True,
    )  # fmt: skip
    pipeline.set_progress_bar_config(disable=True)
    found: Tensor = pipeline(
        prompt_embeds=asked.y, negative_prompt_embeds=asked.null, latents=asked.z, num_inference_steps=asked.steps,
        guidance_scale=asked.scale, guidance_interval=asked.interval, output_type="latent",
    ).images  # fmt: skip
    return found


DOORS: dict[str, Callable[..., Tensor]] = {
    "network": by_network,
    "pipeline": by_pipeline,
    "converted folder": by_folder,
    "ONNX": by_onnx,
    "ComfyUI": by_comfyui,
    "diffusers": by_diffusers,
}


@pytest.mark.parametrize(
    ("name", "door"),
    [(name, door) for name in ("t2i", "c2i") for door in DOORS if (name, door) != ("c2i", "diffusers")],
)  # the pipeline for diffusers draws captions
@pytest.mark.parametrize(("label", "steps", "scale", "interval"), TRAJECTORIES)
def test_trajectories_are_those_of_the_reference(
    door: str, name: str, label: str, steps: int, scale: float, interval: Any,
    released: dict[str, Released], numbers: Path, request: pytest.FixtureRequest,
) -> None:  # fmt: skip
    stored = load_file(numbers / "objective.safetensors")
    y, null, z, path = (stored[f"{name}.sample.{key}"] for key in ("y", "y_null", "z", label))
    needed = {"ComfyUI": ["comfy_nodes"], "diffusers": ["upstream"]}.get(door, [])
    given = [request.getfixturevalue(each) for each in needed]
    found = DOORS[door](released[name], Asked(name, y, null, z, steps, scale, interval), *given)
    torch.testing.assert_close(found, path[-1].to(found), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("name", "size"), [("t2i", "8x8"), ("t2i", "6x10"), ("c2i", "8x8"), ("c2i", "4x12")])
def test_networks_of_every_size_are_those_of_the_reference(
    name: str, size: str, released: dict[str, Released], numbers: Path, upstream: Any
) -> None:
    stored, pipeline = load_file(numbers / f"{name}.io.safetensors"), opened(released[name].folder)
    x, t, r, y = (stored[f"{size}.{key}"] for key in ("x", "t", "r", "y"))
    program = next(programs_of(pipeline, text_encoder=False))
    mask = [torch.ones(y.shape[:2], dtype=torch.bool)] if name == "t2i" else []
    onnx = torch.from_numpy(onnx_runner(program, released[name].onnx / "network.onnx")(x, t, r, y, *mask))
    network = upstream.TransitionTransformer2DModel.from_config(pipeline.transformer.config)
    network.load_state_dict(pipeline.transformer.state_dict(), strict=False)
    condition = {"encoder_hidden_states": y} if name == "t2i" else {"class_labels": y}
    with torch.no_grad():
        for found in (pipeline.transformer(x, t, r, y), onnx, network.eval()(x, t, r, **condition).sample):
            torch.testing.assert_close(found, stored[f"{size}.out"], rtol=1e-5, atol=1e-5)
