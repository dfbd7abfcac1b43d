"""Adapting a pipeline of diffusers: what is learned alone moves, a run continues exactly, and its file draws alike."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from helpers import check_continues_exactly, losses, weights
from processes import run_ranks
from pydantic import ValidationError
from safetensors.torch import load_file

import anystep
from anystep.codecs import load_codec
from anystep.errors import InputError
from anystep.models.flow_map import ADDED, base_probe
from anystep.pipelines.adapted import FLOW_MAP_FILE, PROBE
from anystep.pipelines.base_pipeline import BasePipeline
from anystep.training import train as module
from anystep.training.adapt import count_weights, on_pipeline
from anystep.training.config import Recipe
from anystep.training.train import train

TARGETS = {"sd3": ["to_q", "add_q_proj", "ff.net.2"], "flux": ["to_q", "proj_mlp"], "sana": ["to_q"]}


def recipe(source: Path, base: Path, family: str = "sd3", lora: bool = True, **said: Any) -> Recipe:
    content: dict[str, Any] = {
        "data": {"source": str(source), "size": 16},
        "model": {"weights": str(base), **said.pop("model", {})},
        "adapt": {"family": family, **said.pop("adapt", {})},
        "lora": {"rank": 2, "targets": TARGETS[family]} if lora else None,
        "objective": {"kind": "any_step", "diffusion_share": 0.5, **said.pop("objective", {})},
        "optimizer": {"learning_rate": 1e-2, "warmup": 0},
        "run": {"steps": 4, "batch_size": 4, "checkpoint_every": 2, "sample_every": 0, "log_every": 3,
                **said.pop("run", {})},
        "sample_steps": [1, 2], "guidance": 1.0,
    }  # fmt: skip
    return Recipe.model_validate({**content, **said})


@pytest.fixture
def networks(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The networks and averages of runs, as they are made."""
    made: list[Any] = []
    real = module.prepare_networks
    monkeypatch.setattr(module, "prepare_networks", lambda *given: made.append(real(*given)) or made[-1])
    return made


@pytest.mark.parametrize("family", TARGETS)
def test_the_adapter_and_the_embedding_alone_move_and_are_kept(
    family: str, captioned_folder: Path, baselines: dict[str, Path], tmp_path: Path, networks: list[Any]
) -> None:
    run = tmp_path / "run"
    train(recipe(captioned_folder, baselines[family], family, adapt={"interval_share": 0.5}), run)
    network, averages = networks[0]
    base = BasePipeline.open(str(baselines[family])).transformer()
    assert torch.equal(base_probe(network.transformer), base_probe(base))
    plain = {
        name.replace(".base_layer", "").replace(".base.", "."): value
        for name, value in network.transformer.state_dict().items()
    }
    assert all(torch.equal(value, plain[name]) for name, value in base.state_dict().items())
    learning = {name for name, value in network.named_parameters() if value.requires_grad}
    assert learning == {name for name in network.state_dict() if "lora_" in name or any(each in name for each in ADDED)}
    second = {
        name: value for name, value in network.named_parameters() if "embedder.linear_2" in name and name in learning
    }
    assert second
    assert all(bool(value.any()) for value in second.values())
    shared = {id(value) for value in network.parameters() if not value.requires_grad}
    assert shared < {id(value) for value in averages[0].parameters()}
    kept = {name.partition(".")[2] for name in weights(run) if name.startswith("network.")}
    assert kept - {name for name, _ in network.named_buffers()} == learning
    written = load_file(run / "adapted" / FLOW_MAP_FILE)
    assert {name for name in written if name != PROBE and "lora_" not in name} == set(network.added)
    assert count_weights(on_pipeline(recipe(captioned_folder, baselines[family], family))) == (
        sum(value.numel() for value in base.parameters()),
        sum(value.numel() for name, value in network.named_parameters() if name in learning),
    )


def test_an_interrupted_run_continues_exactly(
    captioned_folder: Path, baselines: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = recipe(captioned_folder, baselines["sd3"], adapt={"teacher": True}, ema_decay=(0.9, 0.5))
    check_continues_exactly(made, tmp_path, monkeypatch, f"adapted/{FLOW_MAP_FILE}")


@pytest.mark.parametrize("lora", [True, False])
def test_the_file_draws_as_what_was_trained(
    lora: bool, captioned_folder: Path, baselines: dict[str, Path], tmp_path: Path, networks: list[Any]
) -> None:
    from anystep.training.adapt import flow_map_pipeline

    made = on_pipeline(recipe(captioned_folder, baselines["sd3"], lora=lora, ema_decay=0.5))
    train(made, tmp_path / "run")
    call: dict[str, Any] = {"num_inference_steps": 2, "seeds": [3], "output_type": "pt"}
    codec = load_codec(str(baselines["sd3"] / "vae"))
    pipeline: Any = flow_map_pipeline(made, networks[0][1][0], codec)
    assert pipeline.vae is codec.autoencoder  # which is on the device already
    expected = pipeline("a red apple", **call)
    for place in (tmp_path / "run", tmp_path / "run" / "adapted", tmp_path / "run" / "adapted" / FLOW_MAP_FILE):
        found: Any = anystep.load(place, "cpu").pipeline("a red apple", **call)
        assert torch.equal(found.images, expected.images)
    assert found.images.shape == (1, 3, 16, 16)
    page = (tmp_path / "run" / "adapted" / "README.md").read_text()
    assert "```python\nimport anystep\nfrom diffusers import StableDiffusion3Pipeline\n\npipe = Stable" in page
    assert "anystep.adapt(pipe" in page
    assert ("rank 2" in page) == lora


def test_all_objectives_of_ordinary_forwards_train_it(
    captioned_folder: Path, baselines: dict[str, Path], tmp_path: Path
) -> None:
    cases: dict[str, dict[str, Any]] = {
        "transition": {"diffusion_share": 0.2}, "shortcut": {"diffusion_share": 0.2}, "flow_matching": {},
        "terminal": {"diffusion_share": 0.2, "ema_teacher": True}, "self_evaluation": {"diffusion_share": 0.2},
        "alpha_flow": {},
    }  # fmt: skip
    for kind, said in cases.items():
        made = recipe(captioned_folder, baselines["sd3"], objective={"kind": kind, **said}, run={"steps": 2})
        assert 0 < train(made, tmp_path / kind)["loss"] < 100
    told = {"adapt": {"guidance_embed": True}, "objective": {"guidance_condition": {"w_max": 4.0}}}
    assert train(recipe(captioned_folder, baselines["sd3"], run={"steps": 2}, **told), tmp_path / "told")["loss"] > 0
    assert anystep.load(tmp_path / "told", "cpu").pipeline.guidance_embedded


def test_the_frozen_pipeline_is_followed_and_guides(
    captioned_folder: Path, baselines: dict[str, Path], tmp_path: Path
) -> None:
    """Where all samples have t = r and nothing has been learned, the network answers as its teacher does."""
    follows: dict[str, Any] = {"adapt": {"teacher": True}, "run": {"steps": 1}, "condition_dropout": 0.0}
    plain = {"kind": "flow_matching", "diffusion_share": 1.0}
    first = train(recipe(captioned_folder, baselines["sd3"], objective=plain, **follows), tmp_path / "plain")
    assert first["residual"] < 1e-6
    guided = {**plain, "guidance": {"w_gt": 0.0, "w_cond": 4.0, "start": 0.0, "end": 1.0}}
    assert (
        train(recipe(captioned_folder, baselines["sd3"], objective=guided, **follows), tmp_path / "g")["residual"]
        > 1e-4
    )
    alone = recipe(captioned_folder, baselines["sd3"], objective=plain, run={"steps": 1})
    assert train(alone, tmp_path / "alone")["residual"] > 0.1


def test_what_does_not_go_together_is_refused_in_one_line(captioned_folder: Path, baselines: dict[str, Path]) -> None:
    base = baselines["sd3"]
    for said, message in (
        ({"objective": {"kind": "mean_flow"}}, "forward_mode: adapt needs ordinary forwards"),
        ({"transport": {"name": "edm"}}, "flow-matching pipelines are of ot_fm"),
        ({"model": {"preset": "t2i-xl"}}, "model.preset: adapt takes the network of model.weights"),
        ({"model": {"weights": None}}, "adapt needs model.weights"),
        ({"lora": False, "adapt": {"teacher": True}}, "adapt.teacher is of weights that stay frozen"),
        ({"parallel": "fsdp", "adapt": {"storage": "bfloat16"}}, "weights of one precision"),
        ({"adapt": {"guidance_embed": True}}, "guidance_embed is learned by objective.guidance_condition"),
    ):
        with pytest.raises(ValidationError, match=message):
            recipe(captioned_folder, base, **said)  # type: ignore[arg-type]
    for made, message in (
        (recipe(captioned_folder, baselines["flux"]), "is a FluxPipeline, and adapt.family is sd3: .*adapt-flux"),
        (recipe(captioned_folder, baselines["sdxl"]), "StableDiffusionXLPipeline' cannot be made a flow map"),
        (recipe(captioned_folder, base / "nothing"), "no pipeline of diffusers at"),
        (recipe(captioned_folder, base, model={"codec": "identity"}), "model.codec 'identity': an adapter takes that"),
    ):
        with pytest.raises(InputError, match=message) as caught:
            on_pipeline(made)
        assert "\n" not in str(caught.value)


def test_a_run_goes_on_with_the_same_base_alone(
    captioned_folder: Path, baselines: dict[str, Path], tmp_path: Path
) -> None:
    import shutil

    base = shutil.copytree(baselines["sd3"], tmp_path / "base")
    train(recipe(captioned_folder, base, run={"steps": 1, "checkpoint_every": 1}), tmp_path / "run")
    transformer = BasePipeline.open(str(base)).transformer()
    with torch.no_grad():
        next(transformer.parameters()).add_(1.0)
    transformer.save_pretrained(base / "transformer")
    with pytest.raises(InputError, match="holds other weights than the run was begun with"):
        train(recipe(captioned_folder, base, run={"steps": 2}), tmp_path / "run")


def test_frozen_weights_may_be_kept_in_half_precision(
    captioned_folder: Path, baselines: dict[str, Path], tmp_path: Path, networks: list[Any]
) -> None:
    kept = {"storage": "bfloat16", "teacher": True}
    train(recipe(captioned_folder, baselines["sd3"], adapt=kept, run={"steps": 2}), tmp_path / "run")
    for value in networks[0][0].parameters():
        assert value.dtype == (torch.float32 if value.requires_grad else torch.bfloat16)
    anystep.load(tmp_path / "run", "cpu")  # rounded, its base is the same


def test_sizes_that_the_network_cannot_draw_are_refused(
    captioned_folder: Path, baselines: dict[str, Path], tmp_path: Path
) -> None:
    made = recipe(captioned_folder, baselines["flux"], "flux", data={"source": str(captioned_folder), "size": 18})
    with pytest.raises(InputError, match=r"data.size 18: must be a multiple of 4"):
        train(made, tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize("family", TARGETS)
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_two_processes_have_the_losses_and_the_file_of_one(
    family: str, parallel: str, captioned_folder: Path, baselines: dict[str, Path], tmp_path: Path
) -> None:
    kept = {"storage": "float32", "teacher": True, "interval_share": 0.5}
    chosen = {"log_every": 1, "threads": 1}
    learned = {"kind": "shortcut"}
    made = recipe(captioned_folder, baselines[family], family, adapt=kept, objective=learned, run=chosen)
    train(made, tmp_path / "alone")
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(made.model_dump(mode="json", exclude_unset=True)))
    done = run_ranks(2, ["train", str(path), "--out", str(tmp_path / "two"), "--parallel", parallel], tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "alone"), rel=1e-4)
    written, expected = (load_file(tmp_path / run / "adapted" / FLOW_MAP_FILE) for run in ("two", "alone"))
    assert written.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(written[name], value, rtol=1e-2, atol=1e-3)


@pytest.mark.slow
def test_compiled_blocks_learn_the_same(captioned_folder: Path, baselines: dict[str, Path], tmp_path: Path) -> None:
    kept = {"teacher": True, "interval_share": 0.5}
    for name in ("eager", "compiled"):
        chosen = {"log_every": 1, "threads": 1, "compile": name == "compiled"}
        train(
            recipe(captioned_folder, baselines["sd3"], adapt=kept, objective={"kind": "shortcut"}, run=chosen),
            tmp_path / name,
        )
    assert losses(tmp_path / "compiled") == pytest.approx(losses(tmp_path / "eager"), rel=1e-4)
