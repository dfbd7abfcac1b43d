"""The detector sees true scenes, blank pictures score nothing, and the command reports both."""

import json
import random
import re
from pathlib import Path

import pytest
import torch
from PIL import Image
from processes import run_ranks

from anystep.cli import main
from anystep.data.images import to_tensor
from anystep.data.scenes import TASKS, draw_scene
from anystep.errors import InputError
from anystep.evaluation.benchmarks import scenes
from anystep.evaluation.benchmarks.scene_detector import (
    SceneDetector,
    detection_loss,
    train_scene_detector,
)
from anystep.files import claimed


@pytest.fixture(scope="module")
def detector() -> SceneDetector:
    return SceneDetector.load()


def test_true_scenes_are_judged_right(detector: SceneDetector) -> None:
    drawn = scenes.draw_scenes(15, seed=1)
    scores = scenes.score(drawn, [scene.picture() for scene in drawn], detector)
    assert list(scores) == [*TASKS, "overall"]
    assert scores["overall"]["value"] > 0.9
    assert min(scores[task]["value"] for task in TASKS) > 0.75


def test_blank_and_other_pictures_are_judged_wrong(detector: SceneDetector) -> None:
    drawn = scenes.draw_scenes(5, seed=1)
    blank = [Image.new("RGB", (scene.width, scene.height), "white") for scene in drawn]
    assert scenes.score(drawn, blank, detector)["overall"]["value"] == 0
    others = scenes.draw_scenes(5, seed=2)
    mixed = scenes.score(drawn, [scene.picture() for scene in others], detector)
    assert mixed["overall"]["value"] < 0.2


def test_boxes_lie_on_the_drawings(detector: SceneDetector) -> None:
    scene = draw_scene("two_object", random.Random(4))
    found = {each.name: each.box for each in detector(scene.picture())}
    for thing in scene.things:
        assert found[thing.concept] == pytest.approx(thing.box, abs=4)


def test_a_detector_is_trained_by_centre_points() -> None:
    """Logits that put every drawing where it is cost less than any others."""
    torch.manual_seed(0)
    detector = SceneDetector(scenes_concepts := sorted({"owl", "whale"}), 8, 1)
    assert detector.classes == tuple(scenes_concepts)
    trained = train_scene_detector(steps=3, batch=2)
    drawn = [draw_scene("single_object", random.Random(place), 64, (1.0, 1.0)) for place in range(2)]
    images = torch.stack([to_tensor(scene.picture()) for scene in drawn])
    before = detection_loss(trained.train(), images, drawn)
    assert before.isfinite()
    optimizer = torch.optim.Adam(trained.parameters(), 3e-3)
    for _ in range(20):
        optimizer.zero_grad()
        detection_loss(trained, images, drawn).backward()
        optimizer.step()
    assert detection_loss(trained, images, drawn) < before / 2


def test_weights_round_trip_and_missing_ones_are_one_line(detector: SceneDetector, tmp_path: Path) -> None:
    detector.save(tmp_path / "d.safetensors")
    again = SceneDetector.load(tmp_path / "d.safetensors")
    picture = draw_scene("counting", random.Random(0)).picture()
    assert again(picture) == detector(picture)
    with pytest.raises(InputError, match=r"no scene detector at .*train-scene-detector"):
        SceneDetector.load(tmp_path / "none.safetensors")
    (tmp_path / "bad.safetensors").write_bytes(b"bad")
    with pytest.raises(InputError, match="no scene detector"):
        SceneDetector.load(tmp_path / "bad.safetensors")
    with pytest.raises(InputError, match="multiples of 4"):
        detector(Image.new("RGB", (30, 30)))


def test_the_command_reports_scores_and_the_detectors_own(
    tmp_path: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # 32 pixels are few, but enough to go through every part
    folder = tmp_path / "made"
    drawn = scenes.draw_scenes(2)
    for number, (request, scene) in enumerate(zip(scenes.generation_requests(drawn, folder), drawn, strict=True)):
        request.path.parent.mkdir(parents=True, exist_ok=True)
        picture = scene.picture()  # of any size: every other one is three times as large
        larger = (picture.width * (1 + 2 * (number % 2)), picture.height * (1 + 2 * (number % 2)))
        picture.resize(larger, Image.Resampling.BICUBIC).save(request.path)
    command = ["benchmark", "scenes", "--each", "2", "--images", str(folder), "--out", str(tmp_path / "out")]
    assert main(command) == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["points"][0]["scores"] == report["truth"]
    assert set(report["truth"]) == {*TASKS, "overall"}
    assert report["seed"] == 0
    assert "| true pictures |" in (tmp_path / "out" / "report.md").read_text()
    scenes.write_metadata([scene.metadata for scene in drawn], folder)
    assert main(command) == 0
    for other in (["--seed", "3"], ["--each", "1"]):
        assert main([*command, *other]) == 2
        assert "metadata.jsonl: other scenes than these: give the --each and --seed" in capsys.readouterr().err
    Image.new("RGB", (100, 64)).save(request.path)
    with pytest.raises(InputError, match="100x64, but its scene is"):
        scenes.read_images(drawn, scenes.generation_requests(drawn, folder))


def test_images_of_something_else_are_not_taken_for_these(
    tmp_path: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["benchmark", "scenes", "--model", str(tiny_model), "--each", "1", "--steps", "1", "--out", str(tmp_path)]
    assert main(command) == 0
    assert main([*command, "--steps", "1", "2"]) == 0  # more step counts may join
    for change, key in (
        (["--each", "2"], "prompts"),
        (["--seed", "7"], "prompts, seed"),
        (["--guidance", "3"], "guidance"),
        (["--precision", "bfloat16"], "dtype, model"),
    ):
        assert main([*command, *change]) == 2
        error = capsys.readouterr().err
        assert re.search(rf"images that differ in {key}( \(.*, not .*\))?: choose another --out", error)
    assert main([*command, "--model", "builtin"]) == 2
    assert "differ in model" in capsys.readouterr().err.replace("guidance, ", "")
    settings = json.loads((tmp_path / "settings.json").read_text())
    assert settings.pop("dtype") == "float32"
    (tmp_path / "settings.json").write_text(json.dumps(settings))  # as an earlier version wrote it
    assert main(command) == 0
    assert json.loads((tmp_path / "settings.json").read_text())["dtype"] == "float32"


def test_nothing_is_assumed_of_images_that_nothing_is_known_of(
    tmp_path: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["benchmark", "scenes", "--model", str(tiny_model), "--each", "1", "--steps", "1", "--out", str(tmp_path)]
    (tmp_path / "steps-001").mkdir()
    assert main(command) == 2
    assert "holds steps-001, which this command has not made" in capsys.readouterr().err
    with claimed(tmp_path, "benchmark", ("steps-001",)):
        pass
    assert main(command) == 2
    assert "differ in benchmark, guidance, model" in capsys.readouterr().err
    (tmp_path / "settings.json").write_text("{")
    assert main(command) == 2
    assert "settings.json: damaged" in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.png"))


def test_a_missing_detector_stops_before_anything_is_drawn(tmp_path: Path) -> None:
    assert main(["benchmark", "scenes", "--detector", "none.safetensors", "--out", str(tmp_path / "out")]) == 2
    assert not (tmp_path / "out").exists()


def test_a_detector_that_cannot_be_written_is_not_trained(capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main(["train-scene-detector", "--steps", "1", "--out", "/proc/detector.safetensors"]) == 2
    )  # where not even root may
    assert "cannot write '/proc/detector.safetensors'" in capsys.readouterr().err


@pytest.mark.slow
def test_two_processes_make_the_same_images_and_report(tmp_path: Path, tiny_model: Path) -> None:
    command = ["benchmark", "scenes", "--model", str(tiny_model), "--each", "2", "--steps", "1", "--out"]
    assert main([*command, str(tmp_path / "one")]) == 0
    done = run_ranks(2, [*command, str(tmp_path / "two")], tmp_path)
    assert done.returncode == 0, done.stderr
    for path in (tmp_path / "one").rglob("*.*"):
        assert path.read_bytes() == (tmp_path / "two" / path.relative_to(tmp_path / "one")).read_bytes(), path


def test_images_have_the_canvas_of_their_scene(tmp_path: Path) -> None:
    assert main(["benchmark", "scenes", "--each", "5", "--steps", "1", "--out", str(tmp_path)]) == 0
    sizes = set()
    assert len((tmp_path / "steps-001" / "metadata.jsonl").read_text().splitlines()) == 30
    for path in (tmp_path / "steps-001").glob("*.png"):
        with Image.open(path) as image:
            sizes.add(image.size)
    assert sizes == {(64, 64), (96, 64), (64, 96), (128, 64), (64, 128)}
    (point,) = json.loads((tmp_path / "report.json").read_text())["points"]
    assert point["nfe"] == 1
