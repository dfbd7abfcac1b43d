"""Files of flow maps: on top of the original pipeline by `anystep.load`, and by `adapt` in plain diffusers."""

import shutil
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline
from diffusers_pipelines import make_flow_map
from peft import get_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

import anystep
from anystep.cli import main
from anystep.errors import InputError
from anystep.evaluation.step_plans import keep_plans
from anystep.flow_families import joined_states
from anystep.models.flow_map import embedding_of
from anystep.models.lora import add_lora
from anystep.pipelines.adapted import ABOUT, FlowMapFile, FlowMapScheduler, find_flow_map
from anystep.pipelines.base_pipeline import BasePipeline
from anystep.pipelines.load_image_model import load_image_model
from anystep.pipelines.plan import check_room
from anystep.sampling import StepPlan

FAMILIES = ("sd3", "flux", "sana")
SIDE = 32  # of images, twice that of latents


def drawn(pipeline: Any, steps: int = 3, **options: Any) -> Tensor:
    """Pixels in whole numbers; anystep rounds them before it gives them."""
    call = {"num_inference_steps": steps, "generator": torch.Generator().manual_seed(0), "output_type": "pt"}
    images = pipeline("a red apple", height=SIDE, width=SIDE, **{**call, **options}).images
    return (images * 255).round()  # type: ignore[no-any-return]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_pipeline_of_diffusers_draws_as_anystep_does(family: str, baselines: dict[str, Path], tmp_path: Path) -> None:
    share = 0.5 if family == "sd3" else 1.0
    path = make_flow_map(baselines[family], tmp_path, interval_share=share)
    with pytest.raises(InputError, match="takes its options from the command"):
        load_image_model(f"{path}?guidance_scale=2")
    own = anystep.load(path, "cpu").pipeline
    pipe: Any = DiffusionPipeline.from_pretrained(str(baselines[family]))
    before = drawn(pipe, guidance_scale=1.0)
    assert anystep.adapt(pipe, path) is pipe
    unguided: dict[str, Any] = {"guidance_scale": 1.0}
    if family == "sana":
        unguided["use_resolution_binning"] = False
    for steps in (1, 3):
        given = dict(unguided)
        if family == "flux":  # its pipeline packs the noise it is given
            z = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
            given["latents"] = pipe._pack_latents(z, 1, 4, 16, 16)
            expected = drawn(own, steps, guidance_scale=1.0, latents=z)
        else:
            expected = drawn(own, steps, guidance_scale=1.0)
        assert (drawn(pipe, steps, **given) - expected).abs().max() <= 1
    assert (before - expected).abs().max() > 2


def test_all_weights_may_be_in_the_file(baselines: dict[str, Path], tmp_path: Path) -> None:
    path = make_flow_map(baselines["sd3"], tmp_path, with_lora=False)
    pipe: Any = DiffusionPipeline.from_pretrained(str(baselines["sd3"]))
    anystep.adapt(pipe, path)
    assert torch.equal(drawn(pipe, guidance_scale=1.0), drawn(anystep.load(path, "cpu").pipeline))


def test_a_network_that_learned_to_be_given_a_scale_is_given_it(baselines: dict[str, Path], tmp_path: Path) -> None:
    path = make_flow_map(baselines["sd3"], tmp_path, guidance_embed=True)
    own = anystep.load(path, "cpu").pipeline
    pipe: Any = DiffusionPipeline.from_pretrained(str(baselines["sd3"]))
    anystep.adapt(pipe, path, guidance=4.0)
    told = drawn(own, guidance_scale=4.0)
    assert (drawn(pipe, guidance_scale=1.0) - told).abs().max() <= 1
    assert not torch.equal(drawn(own, guidance_scale=1.0), told)
    assert own.evaluations_per_step(4.0) == 1


def test_the_command_draws_with_it_and_counts_its_evaluations(
    baselines: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = make_flow_map(baselines["sd3"], tmp_path / "run" / "adapted")
    assert find_flow_map(tmp_path / "run") == path
    out = tmp_path / "sheet.png"
    assert main(["generate", "a red apple", "--model", str(tmp_path / "run"), "--steps", "1", "--out", str(out)]) == 0
    assert out.exists()
    model = load_image_model(str(tmp_path / "run"), "cpu")
    assert (model.nfe(4), model.nfe(4, 3.0), model.base_size) == (4, 8, 32)
    assert main(["info", "--model", str(path)]) == 0
    assert "ot_fm" in capsys.readouterr().out
    with pytest.raises(InputError, match="kept as its file"):
        anystep.load(path, "cpu").pipeline.save_pretrained(tmp_path / "saved")


def test_plans_of_steps_are_kept_in_the_file(baselines: dict[str, Path], tmp_path: Path) -> None:
    path, plan = make_flow_map(baselines["sd3"], tmp_path), StepPlan(2, tail=0.2)
    keep_plans(path, tmp_path / "out", {4: plan})
    planned = find_flow_map(tmp_path / "out")
    assert planned is not None
    own, pipe = anystep.load(planned, "cpu"), DiffusionPipeline.from_pretrained(str(baselines["sd3"]))
    assert (own.nfe(4), own.nfe(3), own.nfe(4, plan="uniform")) == (2, 3, 4)
    expected = drawn(anystep.load(path, "cpu").pipeline, 2, plan=plan)
    assert torch.equal(drawn(own.pipeline, 4), expected)
    assert (drawn(anystep.adapt(pipe, planned), 4, guidance_scale=1.0) - expected).abs().max() <= 1
    keep_plans(path, None, {4: plan})
    file, copy = FlowMapFile.read(path), FlowMapFile.read(planned)  # whose headers safetensors writes in any order
    assert file.about == copy.about
    assert all(torch.equal(value, copy.tensors[name]) for name, value in file.tensors.items())
    replace(file, about={**file.about, "plans": {"4": {"steps": 5}}}).write(path)
    with pytest.raises(InputError, match=r"plans.4.steps 5: expected at most 4"):
        anystep.load(path, "cpu")


def test_a_wrong_base_is_refused_and_left_as_it_was(baselines: dict[str, Path], tmp_path: Path) -> None:
    path = make_flow_map(baselines["sd3"], tmp_path)
    other: Any = DiffusionPipeline.from_pretrained(str(baselines["sd3"]))
    with torch.no_grad():
        for value in other.transformer.parameters():
            value.mul_(1.1)
    flux: Any = DiffusionPipeline.from_pretrained(str(baselines["flux"]))
    sdxl: Any = DiffusionPipeline.from_pretrained(str(baselines["sdxl"]))
    for pipe, message in (
        (other, "goes on top of .*: this network has other weights"),
        (flux, "goes on top of .*: this network has"),
        (sdxl, "cannot be made a flow map"),
    ):
        scheduler = pipe.scheduler
        with pytest.raises(InputError, match=message) as caught:
            anystep.adapt(pipe, path)
        assert "\n" not in str(caught.value)
        assert pipe.scheduler is scheduler
    with pytest.raises(InputError, match="no flow map"):
        embedding_of(other.transformer)
    half: Any = DiffusionPipeline.from_pretrained(str(baselines["sd3"]), dtype=torch.bfloat16)
    anystep.adapt(half, path)
    with pytest.raises(InputError, match="a flow map already"):
        anystep.adapt(half, path)


def test_damaged_files_and_values_are_refused_in_one_line(baselines: dict[str, Path], tmp_path: Path) -> None:
    path = make_flow_map(baselines["sd3"], tmp_path)
    pipe: Any = DiffusionPipeline.from_pretrained(str(baselines["sd3"]))
    tensors = load_file(path)
    with safe_open(path, "pt") as file:
        about = file.metadata()
    wrong = {name: value[:1].clone() if "interval" in name else value for name, value in tensors.items()}
    endless = {name: value * torch.inf if "lora_B" in name else value for name, value in tensors.items()}
    whole = {**tensors, "interval_embedder.linear_1.bias": torch.zeros(2, dtype=torch.int8)}
    bad = tmp_path / "bad.safetensors"
    cases: list[tuple[dict[str, Tensor], dict[str, str], str]] = [
        (wrong, about, "its embedding of the interval does not go with"),
        (endless, about, "not finite"),
        (whole, about, "interval_embedder.linear_1.bias' holds numbers of int8: expected floating point"),
        (tensors, {ABOUT: "{}"}, "is no flow map of anystep: it does not say base"),
        (tensors, {ABOUT: "["}, "bad.safetensors"),
        (tensors, {ABOUT: about[ABOUT].replace('"interval_share": 1.0', '"interval_share": 7')}, "interval_share"),
    ]
    with pytest.raises(InputError, match="guidance -1"):
        anystep.adapt(pipe, path, guidance=-1.0)
    anystep.adapt(pipe, path)  # it was as before
    pipe = DiffusionPipeline.from_pretrained(str(baselines["sd3"]))
    for content, metadata, message in cases:
        save_file(content, bad, metadata)
        with pytest.raises(InputError, match=message):
            anystep.adapt(pipe, bad)
    bad.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(InputError, match="no flow map at"):
        anystep.adapt(pipe, bad)
    gone = shutil.copytree(baselines["sd3"], tmp_path / "gone")
    path = make_flow_map(gone, tmp_path / "other")
    shutil.rmtree(gone)
    with pytest.raises(InputError, match=r"goes on top of .*anystep\.adapt"):
        anystep.load(path, "cpu")


@pytest.fixture(scope="module")
def style(baselines: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA of a user of that pipeline."""
    pipe: Any = DiffusionPipeline.from_pretrained(str(baselines["sd3"]))
    add_lora(pipe.transformer, 2, 2.0, ["to_q", "to_k"])
    torch.manual_seed(2)
    for name, value in pipe.transformer.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(value, std=3.0)
    folder = tmp_path_factory.mktemp("style")
    pipe.save_lora_weights(folder, get_peft_model_state_dict(pipe.transformer, adapter_name="default"))
    return folder


def test_adapters_of_a_user_are_loaded_weighed_merged_and_unloaded_beside_it(
    baselines: dict[str, Path], style: Path, tmp_path: Path
) -> None:
    path = make_flow_map(baselines["sd3"], tmp_path)
    pipe, before, plain = (DiffusionPipeline.from_pretrained(str(baselines["sd3"])) for _ in range(3))
    adapted = drawn(anystep.adapt(pipe, path))
    pipe.load_lora_weights(style, adapter_name="mine")
    styled = drawn(pipe)
    assert (pipe.get_active_adapters(), pipe.get_list_adapters()) == (["mine"], {"transformer": ["mine"]})
    assert (styled - adapted).abs().max() > 10
    before.load_lora_weights(style, adapter_name="mine")
    assert torch.equal(drawn(anystep.adapt(before, path)), styled)
    pipe.set_adapters("mine", 0.0)
    assert torch.equal(drawn(pipe), adapted)
    pipe.set_adapters("mine")
    pipe.fuse_lora()
    assert (drawn(pipe) - styled).abs().max() <= 1
    pipe.unfuse_lora()
    pipe.unload_lora_weights()
    assert (drawn(pipe) - adapted).abs().max() <= 1
    for each in (pipe, pipe.transformer):
        with pytest.raises(InputError, match="kept as its file"):
            each.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()
    plain.load_lora_weights(style)
    plain.fuse_lora()
    with pytest.raises(InputError, match=r"a LoRA is merged into the transformer.*unfuse_lora\(\)"):
        anystep.adapt(plain, path)
    plain.unfuse_lora()
    anystep.adapt(plain, path)


def test_a_flow_map_that_anystep_draws_with_takes_no_adapter(
    baselines: dict[str, Path], style: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = make_flow_map(baselines["sd3"], tmp_path)
    words = ["--model", str(path), "--lora", str(style), "--out", str(tmp_path / "a.png"), "--device", "cpu"]
    assert main(["generate", "a red apple", *words]) == 2
    assert "a flow map takes no LoRA here: anystep.adapt(pipeline, file)" in capsys.readouterr().err
    network = anystep.load(path, "cpu").pipeline.transformer
    base = BasePipeline.open(str(baselines["sd3"])).transformer()
    t, states, pooled = torch.tensor([0.5]), torch.randn(1, 7, 32), torch.randn(1, base.config.pooled_projection_dim)
    x = torch.randn(1, 4, 16, 16)
    told = network(x, t, torch.zeros(1), joined_states(states, pooled), base=True)
    expected = base(x, encoder_hidden_states=states, pooled_projections=pooled, timestep=1000 * t).sample
    torch.testing.assert_close(told, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("way", ["group", "model", "copy"])
def test_what_was_learned_goes_with_offloading_and_copies(way: str, baselines: dict[str, Path], tmp_path: Path) -> None:
    pipe: Any = DiffusionPipeline.from_pretrained(str(baselines["sd3"]))
    expected = drawn(anystep.adapt(pipe, make_flow_map(baselines["sd3"], tmp_path)))
    if way == "group":
        options = {"onload_device": torch.device("cpu"), "offload_type": "leaf_level"}
        pipe.transformer.enable_group_offload(**options)
    elif way == "model":
        pipe.enable_model_cpu_offload(device="cpu")
    else:
        copied = deepcopy(pipe.transformer)
        with torch.no_grad():
            for value in pipe.transformer.low_rank_terms.parameters():
                value.zero_()
        assert (drawn(pipe) - expected).abs().max() > 2
        embedding_of(copied).schedule = pipe.scheduler
        pipe.register_modules(transformer=copied)
    assert (drawn(pipe) - expected).abs().max() <= 1


def test_the_scheduler_knows_where_steps_end_though_times_are_rounded() -> None:
    scheduler = FlowMapScheduler(shift=3.0)
    scheduler.set_timesteps(8, mu=1.2)
    rounded = scheduler.timesteps.bfloat16().float() / 1000
    assert torch.equal(scheduler.targets_of(rounded), scheduler.sigmas[1:])
    scheduler.set_timesteps(sigmas=[1.0, 0.5])
    assert scheduler.targets_of(torch.tensor([1.0, 0.75])).tolist() == [0.75, 0.0]


def test_times_are_shifted_as_those_of_the_base(baselines: dict[str, Path]) -> None:
    assert BasePipeline.open(str(baselines["sd3"])).shift(64) == 3.0
    assert BasePipeline.open(str(baselines["sana"])).shift(64) == 3.0
    assert BasePipeline.open(str(baselines["flux"])).shift(4096) == pytest.approx(3.158, abs=1e-3)


def test_the_room_of_other_networks_is_not_that_of_ours(
    baselines: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = anystep.load(make_flow_map(baselines["sd3"], tmp_path), "cpu")
    monkeypatch.setattr("anystep.pipelines.plan.memory_of", lambda device: 1.0)
    check_room(own, 2048, 2048, None)
