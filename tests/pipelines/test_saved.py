"""The folder of a pipeline: what is written, and what is read as earlier versions wrote it."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline
from helpers import draw_latents as draw

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


def test_the_folder_is_of_diffusers_layout(tiny_model: Path) -> None:
    index = json.loads((tiny_model / "model_index.json").read_text())
    assert index["_class_name"] == "TransitionPipeline"
    assert index["transformer"] == ["anystep", "TransitionTransformer2DModel"]
    assert index["scheduler"] == ["anystep", "TransitionScheduler"]
    assert index["vae"] == ["diffusers", "AutoencoderDC"]
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
        with pytest.raises(InputError, match=r"carries the adapter 'default'.*fuse_lora\(\).*save_lora_adapter"):
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
