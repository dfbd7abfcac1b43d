"""The folder of a pipeline: what is written, and what is read as earlier versions wrote it."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline
from helpers import draw_latents as draw
from helpers import opened, save_guided

import anystep
from anystep import TransitionPipeline
from anystep.errors import InputError
from anystep.models import build_transformer
from anystep.pipelines.describe import model_digest
from anystep.pipelines.load import Model


def test_saved_and_loaded_it_draws_the_same(pipeline: TransitionPipeline, tmp_path: Path) -> None:
    pipeline.save_pretrained(tmp_path)
    again = TransitionPipeline.from_pretrained(tmp_path)
    again.set_progress_bar_config(disable=True)
    assert torch.equal(draw(again), draw(pipeline))
    assert dict(again.config)["concepts"] == ["red apple", "whale", "tractor"]


@pytest.mark.parametrize("name", ["TransitionPipeline", "TransitionClassPipeline"])
def test_a_subclass_is_saved_as_what_it_is_made_of(
    name: str, tiny_model: Path, tiny_classes: Path, tmp_path: Path
) -> None:
    ours: Any = getattr(anystep, name)
    own: Any = type("Own", (type("Between", (ours,), {}),), {})
    folder, prompts = (tiny_model, ["a whale"]) if name == "TransitionPipeline" else (tiny_classes, ["bee"])
    pipeline = own.from_pretrained(folder)
    pipeline.save_pretrained(tmp_path / "saved")
    for kind in (own, ours):
        again = kind.from_pretrained(tmp_path / "saved")
        assert type(again) is kind
        assert torch.equal(draw(again, prompts), draw(pipeline, prompts))


@pytest.mark.parametrize("told", [False, True])
def test_a_pipeline_without_its_transformer_encodes_and_decodes(tiny_model: Path, tmp_path: Path, told: bool) -> None:
    if told:
        save_guided(tiny_model, tmp_path)
    folder = tmp_path if told else tiny_model
    whole, encoding = TransitionPipeline.from_pretrained(folder), opened(folder, transformer=None, vae=None)
    for options in ({}, {"negative_prompt": "red"}):
        encoded = [each.encode_prompt("a whale", **options) for each in (encoding, whole)]
        for found, wanted in zip(*encoded, strict=True):
            assert found is wanted is None or torch.equal(found, wanted)
    latents = torch.randn(1, 4, 4, 4)
    assert torch.equal(opened(folder, transformer=None).decode_latents(latents), whole.decode_latents(latents))
    for refused in (lambda: encoding("a whale"), lambda: encoding.save_pretrained(tmp_path / "saved")):
        with pytest.raises(InputError, match="this pipeline has no transformer: load it without transformer=None"):
            refused()
    assert not (tmp_path / "saved").exists()


def test_classes_are_encoded_without_the_transformer_too(tiny_classes: Path) -> None:
    pipeline = anystep.TransitionClassPipeline.from_pretrained(tiny_classes, transformer=None)
    assert pipeline.encode_prompt("bee").prompt_embeds.tolist() == [pipeline.labels["bee"]] == [1]
    with pytest.raises(InputError, match="has no transformer"):
        pipeline("bee")


@pytest.mark.parametrize("part", ["vae", "codec"])
def test_a_pipeline_that_is_loaded_without_its_codec_draws_latents_of_the_same_size(
    pipeline: TransitionPipeline, tiny_model: Path, tmp_path: Path, part: str
) -> None:
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    (folder / "vae").rename(folder / part)
    bare, later = opened(folder, vae=None), opened(tiny_model)
    later.vae = None
    for each in (bare, later):
        assert (each.vae, each.size_multiple, each.base_size) == (None, pipeline.size_multiple, pipeline.base_size)
        for size in ({}, {"height": 32, "width": 16}):
            assert torch.equal(draw(each, **size), draw(pipeline, **size))


def test_no_pickle_is_written(pipeline: TransitionPipeline, tmp_path: Path) -> None:
    for arguments, options in (((), {"safe_serialization": False}), ((False,), {"carry_text_encoder": True})):
        with pytest.raises(InputError, match="safe_serialization=False: pickles are not loaded again"):
            pipeline.save_pretrained(tmp_path / "saved", *arguments, **options)
    assert not (tmp_path / "saved").exists()


def test_the_folder_is_of_diffusers_layout(tiny_model: Path) -> None:
    index = json.loads((tiny_model / "model_index.json").read_text())
    assert index["_class_name"] == ["pipeline", "TransitionPipeline"]
    assert index["transformer"] == ["modeling", "TransitionTransformer2DModel"]
    assert index["scheduler"] == ["scheduling", "TransitionScheduler"]
    assert index["vae"] == ["diffusers", "AutoencoderDC"]
    assert index["concepts"] == {"0": "red apple", "1": "whale", "2": "tractor"}
    assert {"transformer", "scheduler", "vae"} <= {path.name for path in tiny_model.iterdir()}
    parts = DiffusionPipeline.load_config(tiny_model)
    assert parts["text_encoder_name"] == "builtin"


def test_a_model_whose_vae_was_saved_as_codec_loads_as_before(
    pipeline: TransitionPipeline, tiny_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    earlier = shutil.copytree(tiny_model, tmp_path / "earlier")
    (earlier / "vae").rename(earlier / "codec")
    index = json.loads((earlier / "model_index.json").read_text())
    index["codec"] = index.pop("vae")
    (earlier / "model_index.json").write_text(json.dumps(index))
    model = anystep.load(earlier)
    assert model_digest(model) == model_digest(Model("today", pipeline))
    assert torch.equal(draw(model.pipeline), draw(pipeline))
    assert not model.pipeline.vae.training
    dtypes: dict[str, Any] = {"vae": torch.bfloat16, "default": torch.float32}
    for dtype in (torch.bfloat16, dtypes):
        loaded = TransitionPipeline.from_pretrained(earlier, dtype=dtype)
        assert loaded.vae.dtype == torch.bfloat16
    assert TransitionPipeline.from_pretrained(earlier, vae=pipeline.vae).vae is pipeline.vae
    model.pipeline.save_pretrained(tmp_path / "again")
    assert json.loads((tmp_path / "again" / "model_index.json").read_text())["vae"] == ["diffusers", "AutoencoderDC"]
    assert not caplog.records


def test_text_encoders_of_transformers_are_saved_inside(
    tiny_model: Path, tiny_text_models: dict[str, Path], tmp_path: Path
) -> None:
    import transformers

    parts = TransitionPipeline.from_pretrained(tiny_model)
    torch.manual_seed(0)
    pipeline = TransitionPipeline(
        transformer=build_transformer("t2i-test", sample_size=4, text_width=16),
        scheduler=parts.scheduler,
        vae=parts.vae,
        text_encoder=transformers.BertModel.from_pretrained(tiny_text_models["bert"]),
        tokenizer=transformers.AutoTokenizer.from_pretrained(tiny_text_models["bert"]),
    )
    pipeline.set_progress_bar_config(disable=True)
    pipeline.save_pretrained(tmp_path)
    again = TransitionPipeline.from_pretrained(tmp_path)
    again.set_progress_bar_config(disable=True)
    assert torch.equal(draw(again), draw(pipeline))


def test_an_adapter_keeps_a_pipeline_from_being_saved_until_it_is_merged(tiny_model: Path, tmp_path: Path) -> None:
    from peft import LoraConfig

    pipeline = anystep.load(tiny_model).pipeline
    network = pipeline.transformer
    network.add_adapter(LoraConfig(r=2, target_modules=["to_q"], init_lora_weights=False))
    expected = draw(pipeline)
    for part in (pipeline, network):
        with pytest.raises(InputError, match=r"carries the adapter 'default'.*fuse_lora\(\).*save_lora_weights"):
            part.save_pretrained(tmp_path / "out")
    assert not (tmp_path / "out").exists()
    network.save_lora_adapter(tmp_path / "adapter")
    network.fuse_lora()
    network.unload_lora()
    pipeline.save_pretrained(tmp_path / "out")
    torch.testing.assert_close(draw(anystep.load(tmp_path / "out").pipeline), expected, atol=1e-4, rtol=1e-4)


def test_a_pipeline_is_shown_in_one_line_that_errors_of_python_can_carry(pipeline: TransitionPipeline) -> None:
    assert "concepts=<3>" in repr(pipeline)
    with pytest.raises(TypeError) as told:
        pipeline("a whale", colour="red")
    assert len(str(told.value)) < 1000


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where diffusers copies the code of a folder to."""
    monkeypatch.setattr("diffusers.utils.dynamic_modules_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    return tmp_path / "modules"


@pytest.mark.parametrize("folder", ["tiny_model", "tiny_classes"])
def test_the_loader_of_diffusers_takes_a_folder(
    folder: str, modules: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    source = request.getfixturevalue(folder)
    with pytest.raises(ValueError, match=r"pipeline\.py"):
        DiffusionPipeline.from_pretrained(source)
    own, theirs = (
        anystep.load(source, "cpu").pipeline,
        DiffusionPipeline.from_pretrained(source, trust_remote_code=True),
    )
    theirs.set_progress_bar_config(disable=True)
    prompts = ["ant", "bee"] if folder == "tiny_classes" else ["a whale", "a tractor"]
    assert type(theirs) is type(own)
    assert torch.equal(draw(theirs, prompts), draw(own, prompts))
    theirs.save_pretrained(tmp_path / "again")
    assert torch.equal(draw(anystep.load(tmp_path / "again", "cpu").pipeline, prompts), draw(own, prompts))


def test_code_of_a_folder_is_never_run_by_ours(tiny_model: Path, modules: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_model, tmp_path / "evil")
    for path in folder.rglob("*.py"):
        path.write_text("raise SystemExit('it ran')\n")
    assert {path.name for path in folder.rglob("*.py")} == {"pipeline.py", "modeling.py", "scheduling.py"}
    for options in ({}, {"trust_remote_code": True}):
        assert type(TransitionPipeline.from_pretrained(folder, **options)) is TransitionPipeline
    assert not list(modules.rglob("*.py"))


def test_folders_without_code_load_as_before(tiny_model: Path, pipeline: TransitionPipeline, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_model, tmp_path / "earlier", ignore=shutil.ignore_patterns("*.py"))
    index = json.loads((folder / "model_index.json").read_text())
    index |= {
        "_class_name": "TransitionPipeline",
        "transformer": ["anystep", "TransitionTransformer2DModel"],
        "scheduler": ["anystep", "TransitionScheduler"],
        "concepts": ["red apple", "whale", "tractor"],
    }
    (folder / "model_index.json").write_text(json.dumps(index))
    assert torch.equal(draw(anystep.load(folder, "cpu").pipeline), draw(pipeline))


@pytest.mark.parametrize("kind", [DiffusionPipeline, TransitionPipeline])
def test_a_model_of_the_hub_is_fetched(
    kind: Any, tiny_model: Path, pipeline: TransitionPipeline, modules: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hub is a folder here: what is asked of it, and what is left out, are diffusers' own."""
    files = sorted(str(path.relative_to(tiny_model)) for path in tiny_model.rglob("*") if path.is_file())
    asked: list[Any] = []

    def snapshot(name: str, **options: Any) -> str:
        asked.append(name)
        return str(tiny_model)

    hub = {
        "_resolve_revision": lambda name, **options: "main",
        "model_info": lambda name, **options: SimpleNamespace(siblings=[SimpleNamespace(rfilename=f) for f in files]),
        "hf_hub_download": lambda name, file, **options: str(tiny_model / file),
        "snapshot_download": snapshot,
    }
    for name, answer in hub.items():
        monkeypatch.setattr(f"diffusers.pipelines.pipeline_utils.{name}", answer)
    monkeypatch.setattr(
        "diffusers.pipelines.pipeline_loading_utils.get_class_from_dynamic_module",
        lambda folder, **options: getattr(anystep, options["class_name"] or "TransitionPipeline"),
    )
    options = {"trust_remote_code": True} if kind is DiffusionPipeline else {}
    loaded = kind.from_pretrained("owner/name", **options)
    loaded.set_progress_bar_config(disable=True)
    assert type(loaded) is TransitionPipeline
    assert torch.equal(draw(loaded), draw(pipeline))


def test_a_text_encoder_given_by_name_is_carried_on_request(
    pipeline: TransitionPipeline, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    pipeline.save_pretrained(tmp_path, carry_text_encoder=True)
    assert (tmp_path / "text_encoder" / "model.safetensors").exists()
    assert json.loads((tmp_path / "model_index.json").read_text())["text_encoder_name"] is None
    assert pipeline.text_encoder is None
    again = TransitionPipeline.from_pretrained(tmp_path)
    assert "MISSING" not in "".join(capfd.readouterr())
    again.set_progress_bar_config(disable=True)
    assert again.config.guidance_scale == pipeline.config.guidance_scale
    assert torch.equal(draw(again), draw(pipeline))


def test_variants_shards_and_types_are_those_of_diffusers(pipeline: TransitionPipeline, tmp_path: Path) -> None:
    pipeline.save_pretrained(tmp_path, variant="fp16", max_shard_size="100KB")
    assert len(list((tmp_path / "transformer").glob("*fp16*.safetensors"))) > 1
    again = TransitionPipeline.from_pretrained(tmp_path, variant="fp16", torch_dtype={"default": torch.float32})
    again.set_progress_bar_config(disable=True)
    assert torch.equal(draw(again), draw(pipeline))
    half = TransitionPipeline.from_pretrained(tmp_path, variant="fp16", torch_dtype=torch.bfloat16)
    assert half.transformer.blocks[0].mlp.gate.weight.dtype == torch.bfloat16
    assert half.transformer.time_embed.linear_1.weight.dtype == torch.float32
    mapped = TransitionPipeline.from_pretrained(tmp_path, variant="fp16", device_map="cpu")
    mapped.set_progress_bar_config(disable=True)
    assert torch.equal(draw(mapped), draw(pipeline))
