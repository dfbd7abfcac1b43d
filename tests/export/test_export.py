"""`anystep export`: a folder that draws the images of the model, without PyTorch."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from helpers import lively, refused
from PIL import Image

import anystep
from anystep import TransitionPipeline, TransitionScheduler
from anystep.export import Request, export, export_model, sample
from anystep.export.programs import Program, programs_of
from anystep.pipelines.load import load

# what a machine that only draws does not have
WITHOUT = """
import runpy, sys
for name in ("torch", "anystep", "diffusers", "transformers", "safetensors", "PIL", *{more}):
    sys.modules[name] = None
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture
def no_pt2(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without `torch.export`, which takes long."""

    def write(program: Program, folder: Path) -> dict[str, float]:
        path = folder / f"{program.name}.onnx"
        export.write_onnx(program, path)
        return {path.name: export._tolerated(path.name, export.difference(program, export.onnx_runner(program, path)))}

    monkeypatch.setattr(export, "_write", write)


def draw_alone(folder: Path, out: Path, *words: str, without: tuple[str, ...] = ()) -> np.ndarray:
    """The image that `sample.py` of a folder draws where there is no PyTorch, as whole numbers."""
    code = WITHOUT.format(more=without)
    command = [sys.executable, "-c", code, str(folder / "sample.py"), *words, "--out", str(out)]
    subprocess.run(command, check=True, capture_output=True)
    return np.asarray(Image.open(out)).astype(int)


@pytest.mark.usefixtures("no_pt2")
def test_the_folder_draws_the_images_of_the_model_without_pytorch(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = export_model(Request(str(tiny_model), tmp_path / "out"))
    names = {"network.onnx", "decoder.onnx", "encoder.onnx", "text_encoder.onnx", "latents of sample.py"}
    assert made.differences.keys() == names
    assert max(made.differences.values()) < 1e-5
    assert json.loads((tmp_path / "out" / "report.json").read_text())["largest differences"] == made.differences
    pipeline = load(tiny_model, "cpu").pipeline
    with monkeypatch.context() as patched:
        words_of = sample.WordPiece._words
        patched.setattr(sample.WordPiece, "_words", lambda self, caption: words_of(self, caption.replace("é", "")))
        assert export._compare_images(pipeline, tmp_path / "out", False) > export.TOLERANCE
    words = [
        "A red apple, flat",
        "--steps",
        "5",
        "--seed",
        "7",
        "--size",
        "24x16",
        "--guidance",
        "2",
        "--negative",
        "blue",
    ]
    found = draw_alone(tmp_path / "out", tmp_path / "x.png", *words, without=("tokenizers",))
    wanted = pipeline(
        "A red apple, flat", 16, 24, 5, guidance_scale=2.0, negative_prompt="blue", seeds=[7]
    ).images[0]  # fmt: skip
    assert np.abs(found - np.asarray(wanted).astype(int)).max() <= 1


@pytest.mark.usefixtures("no_pt2")
def test_classes_plans_and_released_guidance_are_drawn_alike(tmp_path: Path) -> None:
    plans = {3: {"steps": 2, "tail": 0.3}, 4: {"steps": 4, "memory": True, "velocity_below": 1.0}}
    scheduler = TransitionScheduler("trigflow", base_size=8, plans=plans)
    pipeline = TransitionPipeline(
        lively("c2i-test", in_channels=3, num_classes=3), scheduler, class_names=["ant", "bee", "cat"],
        guidance_scale=1.5, open_guidance_interval=True,
    )  # fmt: skip
    pipeline.save_pretrained(tmp_path / "model")
    export_model(Request(str(tmp_path / "model"), tmp_path / "out"))
    model = sample.Model(tmp_path / "out", 1)
    for steps in (1, 3, 4, 7):
        wanted = pipeline("bee", num_inference_steps=steps, seeds=[1, 2], num_images_per_prompt=2, output_type="latent")
        np.testing.assert_allclose(model.draw("bee", steps, [1, 2]), wanted.images, rtol=1e-5, atol=1e-5)
    assert model.decode(wanted.images.numpy()).shape == (2, 8, 8, 3)


@pytest.mark.usefixtures("no_pt2")
def test_captions_come_as_states_where_the_text_encoder_is_left_out(tiny_model: Path, tmp_path: Path) -> None:
    made = export_model(Request(str(tiny_model), tmp_path / "out", no_text_encoder=True))
    assert not (tmp_path / "out" / "tokenizer").exists()
    assert "text_encoder.onnx" not in made.differences
    pipeline = load(tiny_model, "cpu").pipeline
    np.save(tmp_path / "states.npy", pipeline.encode_prompt("a whale").prompt_embeds[0].numpy())
    found = draw_alone(tmp_path / "out", tmp_path / "x.png", "--states", str(tmp_path / "states.npy"))
    assert np.abs(found - np.asarray(pipeline("a whale", seeds=[0]).images[0]).astype(int)).max() <= 1


def test_a_part_that_differs_is_refused_and_nothing_is_written(
    tiny_classes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Fixed(torch.nn.Module):
        def forward(self, x: Any) -> Any:
            return x * float(int(x.shape[2]))

    def odd(pipeline: Any, text_encoder: bool) -> Iterator[Program]:
        free = {0: "batch", 2: "height", 3: "width"}
        yield Program("decoder", Fixed(), {"x": free}, ("y", free), lambda size: (torch.randn(size[0], 3, *size[2:]),))
        yield from programs_of(pipeline, text_encoder)

    monkeypatch.setattr(export, "programs_of", odd)
    line = refused(capsys, "export", tiny_classes, "--out", tmp_path / "out")
    assert "decoder.onnx would differ from the model by" in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("no_pt2")
def test_a_negative_prompt_that_is_not_heard_is_found_out(
    tiny_classes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    draw = sample.Model.draw
    monkeypatch.setattr(sample.Model, "draw", lambda *given: draw(*given[:-1], None))
    line = refused(capsys, "export", tiny_classes, "--out", tmp_path / "out")
    assert "latents of sample.py would differ from the model by" in line


def test_models_that_cannot_be_exported_are_refused(
    tiny_classes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert "unknown model 'nowhere'" in refused(capsys, "export", "nowhere", "--out", out)
    assert "--no-text-encoder: this model reads classes" in refused(
        capsys, "export", tiny_classes, "--out", out, "--no-text-encoder"
    )
    pipeline = TransitionPipeline(lively("c2i-test", rope_scaling="yarn"), TransitionScheduler())
    pipeline.save_pretrained(tmp_path / "yarn")
    assert "rope_scaling 'yarn'" in refused(capsys, "export", tmp_path / "yarn", "--out", out)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("x")
    assert "has not made" in refused(capsys, "export", tiny_classes, "--out", tmp_path / "mine")
    with monkeypatch.context() as patched:
        adapted = SimpleNamespace(pipeline=SimpleNamespace(transformer=torch.nn.Identity()))
        patched.setattr(export, "load", lambda *_: adapted)
        assert "its network is a Identity; exported are" in refused(capsys, "export", "mine.safetensors", "--out", out)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert "pip install 'anystep[export]'" in refused(capsys, "export", tiny_classes, "--out", out)
    assert not out.exists()


@pytest.mark.slow
def test_the_command_writes_the_built_in_model_as_onnx_and_by_torch_export(tmp_path: Path) -> None:
    out = tmp_path / "out"
    subprocess.run([sys.executable, "-m", "anystep", "export", "builtin", "--out", str(out)], check=True)
    differences = json.loads((out / "report.json").read_text())["largest differences"]
    assert differences.pop("latents of sample.py") < 5e-5  # four guided steps carry rounding on
    assert max(differences.values()) < 1e-5
    assert differences["network.pt2"] < 1e-6
    pipeline = anystep.load("builtin", "cpu").pipeline
    wanted = pipeline("a red apple", 48, 80, 8, seeds=[3], output_type="latent").images
    drawn = sample.Model(out, 1).draw("a red apple", 8, [3], (80, 48))
    # eight guided steps of a sharp network carry rounding on: the bound is the command's own, of the largest answer
    assert np.abs(drawn - wanted.numpy()).max() < 1e-4 * wanted.abs().max().item()
