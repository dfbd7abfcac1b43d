"""A model of any average of a run, and the choice among lengths; every bad input in one line."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

import anystep
from anystep.cli import main
from anystep.evaluation.extractors.classifier import SmallClassifier, save_classifier
from anystep.training.snapshots import Snapshots

STEPS = 48


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for number in range(240):
        (folder / f"class-{number % 3}").mkdir(exist_ok=True)
        image = Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8))
        image.save(folder / f"class-{number % 3}" / f"{number}.png")
    return folder


def trained(folder: Path, images: Path, lengths: list[float]) -> Path:
    content: dict[str, Any] = {
        "data": {"source": f"classes:{images}", "size": 8},
        "model": {"preset": "c2i-test", "codec": "identity", "options": {"hidden_size": 16, "depth": 1}},
        "optimizer": {"learning_rate": 1e-2},
        "run": {"steps": STEPS, "batch_size": 4, "checkpoint_every": 20, "sample_every": 0, "threads": 1},
        "ema_lengths": lengths,
        "ema_snapshots": 16,
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(content))
    assert main(["train", str(folder / "recipe.yaml"), "--out", str(folder / "run")]) == 0
    return folder / "run"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, images: Path) -> Path:
    return trained(tmp_path_factory.mktemp("two"), images, [0.05, 0.1])


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory, images: Path) -> Path:
    """The same run, whose average of another length was kept."""
    return trained(tmp_path_factory.mktemp("one"), images, [0.07])


def averaged(run: Path, out: Path, *options: str) -> dict[str, torch.Tensor]:
    assert main(["average", str(run), "--out", str(out), *options]) == 0
    return load_file(out / "transformer" / "diffusion_pytorch_model.safetensors")


def distance(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> float:
    assert one.keys() == two.keys()
    return sum(float((value - two[name]).square().sum()) for name, value in one.items()) ** 0.5


def test_an_average_of_another_length_is_the_one_that_training_would_have_kept(
    run: Path, other: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rebuilt = averaged(run, tmp_path / "rebuilt", "--length", "0.07")
    assert "length 0.07 at step 48, of 16 snapshots; its profile is 0." in capsys.readouterr().out
    kept = averaged(other, tmp_path / "kept", "--length", "0.07")
    longer = averaged(run, tmp_path / "longer", "--length", "0.1")
    assert 0 < distance(rebuilt, kept) < 0.03 * distance(longer, kept)
    early = ("--length", "0.07", "--step", "24")
    rebuilt, kept = averaged(run, tmp_path / "early", *early), averaged(other, tmp_path / "early-kept", *early)
    assert 0 < distance(rebuilt, kept) < 0.03 * distance(longer, kept)


def test_a_kept_length_is_what_was_kept_to_half_precision(run: Path, tmp_path: Path) -> None:
    snapshot = Snapshots(run)
    assert snapshot.lengths == (0.05, 0.1)
    assert snapshot.steps == tuple(range(3, STEPS + 1, 3))  # none was removed with the checkpoints
    made = averaged(run, tmp_path / "model", "--length", "0.1")
    assert all(torch.allclose(value, value.half().float(), rtol=1e-6, atol=1e-9) for value in made.values())


def test_what_was_made_draws_as_any_model_and_says_what_it_is(run: Path, tmp_path: Path) -> None:
    averaged(run, tmp_path / "model", "--length", "0.2")
    facts = json.loads((tmp_path / "model" / "average.json").read_text())
    assert (facts["length"], facts["step"], facts["snapshots"]) == (0.2, STEPS, 16)
    pictures = [np.array(anystep.load(path)("class-1", steps=2)[0]) for path in (run, tmp_path / "model")]
    assert (pictures[0] != pictures[1]).any()
    averaged(run, tmp_path / "model", "--length", "0.1")  # in place of the one before
    assert json.loads((tmp_path / "model" / "average.json").read_text())["length"] == 0.1
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.fixture(scope="module")
def extractor(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    save_classifier(SmallClassifier(3).eval(), path := tmp_path_factory.mktemp("extractor") / "small.safetensors")
    return path


def test_the_best_length_is_chosen_by_its_distances_and_written(
    run: Path, images: Path, extractor: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["average", str(run), "--out", str(tmp_path / "best"), "--choose", "0.05", "0.2", "0.1"]
    command += ["--data", f"classes:{images}", "--steps", "1", "2", "--samples", "50", "--extractor", str(extractor)]
    assert main([*command, "--device", "cpu"]) == 0
    lines = capsys.readouterr().out.splitlines()
    (at,) = [place for place, line in enumerate(lines) if line.startswith("length")]
    assert lines[at].split() == ["length", "1", "step", "2", "steps", "mean", "log"]
    rows = [line.split() for line in lines[at + 1 : at + 4]]
    assert [row[0] for row in rows] == ["0.05", "0.1", "0.2"]
    for row in rows:
        assert float(row[3]) == pytest.approx(np.log([float(each) for each in row[1:3]]).mean(), abs=0.01)
    (best,) = [row for row in rows if row[-1] == "best"]
    assert float(best[3]) == min(float(row[3]) for row in rows)
    facts = json.loads((tmp_path / "best" / "average.json").read_text())
    assert f"{facts['length']:g}" == best[0]
    assert facts["distance"] == "frechet_distance_small"
    assert facts["chosen from"].keys() == {"0.05", "0.1", "0.2"}
    alone = averaged(run, tmp_path / "alone", "--length", best[0])
    assert distance(alone, load_file(tmp_path / "best" / "transformer" / "diffusion_pytorch_model.safetensors")) == 0
    report = json.loads((run / "lengths" / "report.json").read_text())
    assert report["seed"] == 2**40  # not those of evaluations
    assert [model["name"] for model in report["models"]] == ["length 0.05", "length 0.2", "length 0.1"]


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    capsys.readouterr()
    assert main(["average", *words]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    return said


def test_what_cannot_be_is_one_line_and_writes_nothing(
    run: Path, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ("--out", str(tmp_path / "model"))
    for folder in (tiny_model, tmp_path):
        said = refused(capsys, str(folder), *out, "--length", "0.1")
        assert "holds no snapshots of averages: train with ema_lengths" in said
    said = refused(capsys, str(run), *out, "--length", "0.01")
    assert "length 0.01 is out of reach of 0.05, 0.1 in 16 snapshots up to step 48: its profile would be 3" in said
    assert "expected about 0.028 to 0.2" in said
    assert "up to step 3: its profile" in refused(capsys, str(run), *out, "--length", "0.2", "--step", "3")
    said = refused(capsys, str(run), *out, "--length", "0.1", "--step", "4")
    assert "step 4: there is no snapshot of it; expected one of 3, 6, 9, ..., 42, 45, 48" in said
    assert "--length: '0.3': expected a number from 0.005 to 0.25" in refused(capsys, str(run), *out, "--length", "0.3")
    assert "one of the arguments --length --choose is required" in refused(capsys, str(run), *out)
    assert "--data is missing" in refused(capsys, str(run), *out, "--choose", "0.1")
    said = refused(capsys, str(run), *out, "--length", "0.1", "--steps", "4")
    assert "--steps [4]: goes with --choose only" in said
    assert not any(tmp_path.iterdir())
    (tmp_path / "notes.txt").write_text("mine")
    assert "holds notes.txt" in refused(capsys, str(run), "--out", str(tmp_path), "--length", "0.1")
    assert "holds a training run" in refused(capsys, str(run), "--out", str(run), "--length", "0.1")
    said = refused(capsys, str(run), "--out", str(run / "pipeline"), "--length", "0.1")
    assert "holds a trained model, not a model of an average" in said


@pytest.mark.parametrize("damage", ["flipped", "lost", "no manifest", "other lengths", "no pipeline", "other network"])
def test_damage_is_one_line_that_names_it(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    snapshot = copy / "averages" / "step-00000006"
    data, manifest = next(snapshot.glob("*.distcp")), snapshot / "manifest.json"
    expected = ["snapshot", "step-00000006", "is damaged"]
    if damage == "flipped":
        content = data.read_bytes()
        data.write_bytes(content[:-10] + bytes([content[-10] ^ 1]) + content[-9:])
    elif damage == "lost":
        data.unlink()
    elif damage == "no manifest":
        manifest.unlink()
    elif damage == "other lengths":
        manifest.write_text(manifest.read_text().replace("0.05,", "0.06,"))
        expected = ["snapshots of steps 6 and 48 are of different lengths"]
    elif damage == "no pipeline":
        shutil.rmtree(copy / "pipeline")
        expected = ["has no pipeline yet"]
    else:
        config = copy / "pipeline" / "transformer"
        shutil.rmtree(config)
        network = anystep.load(run, "cpu").pipeline.transformer
        type(network).from_config({**network.config, "depth": 2}).save_pretrained(config)
        expected = ["is damaged, or of another network"]
    said = refused(capsys, str(copy), "--out", str(tmp_path / "model"), "--length", "0.1")
    for each in expected:
        assert each in said
    assert not (tmp_path / "model").exists()


def test_a_full_disk_is_foreseen_and_met(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = (str(run), "--out", str(tmp_path / "model"), "--length", "0.1")
    with monkeypatch.context() as patched:
        patched.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=10))
        assert "GB left: make room, or choose another --out" in refused(capsys, *words)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("anystep.pipelines.transition.TransitionPipeline.save_pretrained", full)
    assert "No space left on device" in refused(capsys, *words)
    assert not any(tmp_path.iterdir())
