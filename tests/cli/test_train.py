"""`anystep train`: a recipe and its values, a run that resumes, and a plan of it."""

import json
import shutil
from pathlib import Path

import pytest
import yaml
from helpers import refused

from anystep.cli import main


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory, tiny_codec: Path, captioned_folder: Path) -> Path:
    """A recipe of seconds on twelve images."""
    path = tmp_path_factory.mktemp("recipe") / "tiny.yaml"
    content = {
        "data": {"source": str(captioned_folder), "size": 16},
        "model": {"preset": "t2i-test", "codec": str(tiny_codec)},
        "run": {"steps": 4, "batch_size": 4, "checkpoint_every": 2, "sample_every": 4, "log_every": 2},
        "sample_steps": [1, 2],
        "debug": {"run": {"steps": 2}},
    }
    path.write_text(yaml.safe_dump(content))
    return path


def test_train_trains_resumes_and_its_run_folder_is_a_model(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert main(["train", str(recipe), "--out", str(run), "--debug"]) == 0
    assert "finished at step 2 of 2" in capsys.readouterr().out
    assert main(["train", str(recipe), "--out", str(run)]) == 0
    assert "finished at step 4 of 4" in capsys.readouterr().out
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4]
    config = (run / "config.yaml").read_bytes()
    fewer = refused(capsys, "train", recipe, "--out", run, "--run.steps", "3")
    assert f"run.steps 3: the run in {str(run)!r} is at step 4 already: expected 4 or more" in fewer
    assert (run / "config.yaml").read_bytes() == config
    assert {"config.yaml", "metrics.jsonl", "checkpoints", "samples", "pipeline"} <= {p.name for p in run.iterdir()}
    sheet = tmp_path / "sheet.png"
    assert main(["generate", "colour number 3", "--model", str(run), "--out", str(sheet), "--steps", "1"]) == 0
    assert sheet.exists()


def test_overrides_are_checked_like_the_recipe(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def line(*words: str) -> str:
        return refused(capsys, "train", recipe, "--out", tmp_path / "run", *words)

    assert "unknown key run.step, did you mean steps?" in line("--run.step", "3")
    assert "run.steps" in line("--run.steps", "many")
    assert "run.steps" in line("--run.steps", "0")
    assert "transport.name" in line("--transport.name", "teleport")
    assert "no such folder" in line("--data.source", "nowhere")
    assert "size" in line("--data.size", "18")
    assert "t2i-test" in line("--model.preset", "t2i-huge")
    assert "pairs" in line("--run.steps")
    assert not (tmp_path / "run" / "checkpoints").exists() or not list((tmp_path / "run" / "checkpoints").iterdir())


def test_a_bad_recipe_is_one_line(recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for content, message in (
        ("run: {stepz: 3}", "unknown key"),
        ("run: {steps: soon}", "run.steps"),
        ("- 1", "must be a mapping"),
        ("a: [", "is not YAML"),
    ):
        (tmp_path / "bad.yaml").write_text(content)
        for command in ("train", "train-codec"):
            assert message in refused(capsys, command, tmp_path / "bad.yaml", "--out", tmp_path / "run")
    assert "cannot read recipe" in refused(capsys, "train", tmp_path / "none.yaml", "--out", tmp_path / "run")
    assert "has no debug section" in refused(
        capsys, "train", _without_debug(recipe, tmp_path), "--out", tmp_path, "--debug"
    )


def _without_debug(recipe: Path, tmp_path: Path) -> Path:
    content = yaml.safe_load(recipe.read_text())
    del content["debug"]
    (tmp_path / "plain.yaml").write_text(yaml.safe_dump(content))
    return tmp_path / "plain.yaml"


def test_broken_images_are_named_and_counted_and_missing_captions_are_refused(
    recipe: Path, captioned_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(captioned_folder, tmp_path / "images")
    (folder / "03.png").write_bytes((folder / "03.png").read_bytes()[:20])
    run = tmp_path / "run"
    assert main(["train", str(recipe), "--out", str(run), "--data.source", str(folder), "--run.steps", "2"]) == 0
    printed = capsys.readouterr().out
    assert "skipped 1 unreadable examples" in printed
    assert "03.png" in printed
    assert json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])["skipped_examples"] == 1

    (folder / "05.txt").unlink()
    line = refused(capsys, "train", recipe, "--out", tmp_path / "other", "--data.source", folder)
    assert "05.png" in line
    assert ".txt" in line


def test_a_run_of_another_recipe_is_refused(recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    assert main(["train", str(recipe), "--out", str(run), "--debug"]) == 0
    capsys.readouterr()
    assert "differs in run.seed" in refused(capsys, "train", recipe, "--out", run, "--debug", "--run.seed", "1")


def test_the_device_is_an_option_of_its_own(recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--device", "cpu", str(recipe), "--debug", "--out", str(tmp_path / "run")]) == 0
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["run"]["device"] == "cpu"
    assert "ends in the warm-up of 100" in capsys.readouterr().err
    assert "device 'abacus'" in refused(capsys, "train", recipe, "--out", tmp_path / "other", "--device", "abacus")


def test_a_quiet_run_says_nothing(recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number, words in enumerate((["--quiet", "train"], ["train", "--quiet"])):
        assert main([*words, str(recipe), "--debug", "--out", str(tmp_path / str(number))]) == 0
        assert capsys.readouterr().out == ""


def test_a_dry_run_in_json_is_numbers(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", str(recipe), "--dry-run", "--on", "H100", "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["steps"] == 4
    assert figures["memory_bytes"] == 80e9
    assert figures["seconds"] > 0
    assert "--json: goes with --dry-run only" in refused(capsys, "train", recipe, "--out", "x", "--json")
