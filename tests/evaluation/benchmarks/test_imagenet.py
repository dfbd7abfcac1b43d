"""ImageNet samples: the array that ADM's evaluator reads, the same from one go and two."""

import json
import shutil
from collections import Counter
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from anystep.cli import main
from anystep.evaluation.benchmarks import imagenet
from anystep.evaluation.settings import GenerationSettings
from anystep.pipelines.load import Model, load
from anystep.ranks import Ranks


def test_labels() -> None:
    assert imagenet.draw_labels(7, 3, "balanced") == [0, 1, 2, 0, 1, 2, 0]
    drawn = imagenet.draw_labels(3000, 3, "random", 1)
    assert drawn == imagenet.draw_labels(3000, 3, "random", 1)
    counts = Counter(drawn)
    assert set(counts) == {0, 1, 2}
    assert len(set(counts.values())) > 1


def test_the_file_holds_images_and_labels(tiny_classes: Path, tmp_path: Path) -> None:
    command = ["benchmark", "imagenet", "--model", str(tiny_classes), "--samples", "100", "--steps", "1", "2"]
    assert main([*command, "--out", str(tmp_path)]) == 0
    path = tmp_path / "steps-002" / "samples_100x8x8x3.npz"
    with np.load(path) as content:
        images, labels = content["arr_0"], content["arr_1"]
    assert images.shape == (100, 8, 8, 3)
    assert images.dtype == np.uint8
    assert labels.tolist() == [number % 3 for number in range(100)]
    assert not (tmp_path / "steps-002" / "chunks").exists()
    report = json.loads((tmp_path / "report.json").read_text())
    assert [(point["steps"], point["nfe"]) for point in report["points"]] == [(1, 1), (2, 2)]
    assert (report["seed"], report["points"][1]["file"]) == (0, "steps-002/samples_100x8x8x3.npz")
    assert main([*command, "--seed", "5", "--out", str(tmp_path)]) == 2  # others than those that are there
    assert main([*command, "--out", str(tmp_path)]) == 0
    assert json.loads((tmp_path / "report.json").read_text())["points"] == report["points"]  # seconds are when drawn
    model = load(tiny_classes)
    alone = model.generate([int(labels[97])], 2, [97]).images[0]
    np.testing.assert_array_equal(images[97], np.asarray(alone))


def test_images_are_drawn_as_planned_and_others_do_not_mix(tiny_classes: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_classes, mine := tmp_path / "mine")
    config = mine / "scheduler" / "scheduler_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "plans": {"2": {"steps": 1}}}))
    command = ["benchmark", "imagenet", "--model", str(mine), "--samples", "3", "--steps", "2"]
    assert main([*command, "--out", str(tmp_path / "out")]) == 0
    assert json.loads((tmp_path / "out" / "report.json").read_text())["points"][0]["nfe"] == 1
    with np.load(tmp_path / "out" / "steps-002" / "samples_3x8x8x3.npz") as content:
        alone = load(tiny_classes).generate([0], 1, [0]).images[0]
        np.testing.assert_array_equal(content["arr_0"][0], np.asarray(alone))
    assert main([*command, "--plan", "uniform", "--out", str(tmp_path / "out")]) == 2


def test_an_interrupted_run_goes_on(tiny_classes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, labels = load(tiny_classes), imagenet.draw_labels(100, 3, "balanced")
    whole = imagenet.sample_imagenet(model, tmp_path / "whole", labels, 1, GenerationSettings(), Ranks())

    def stop(images: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        imagenet.sample_imagenet(model, tmp_path / "parts", labels, 1, GenerationSettings(), Ranks(), stop)
    first = tmp_path / "parts" / "chunks" / "000000.npy"
    made = first.stat().st_mtime_ns
    seen: list[int] = []
    parts = imagenet.sample_imagenet(
        model, tmp_path / "parts", labels, 1, GenerationSettings(), Ranks(),
        lambda images: seen.append(first.stat().st_mtime_ns),
    )  # fmt: skip
    assert seen == [made, made]
    with np.load(whole) as one, np.load(parts) as two:
        np.testing.assert_array_equal(one["arr_0"], two["arr_0"])


def test_as_many_are_drawn_at_once_as_asked_and_the_seconds_of_all_are_kept(
    tiny_classes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["benchmark", "imagenet", "--model", str(tiny_classes), "--samples", "100", "--steps", "1"]
    command += ["--batch", "30", "--out", str(tmp_path)]
    drawn, sizes, clock = Model.draw, list[int](), count(0, 10)

    def draw(model: Model, prompts: list[int], *arguments: Any, **options: Any) -> Any:
        sizes.append(len(prompts))
        if len(sizes) == 4:
            raise KeyboardInterrupt
        return drawn(model, prompts, *arguments, **options)

    monkeypatch.setattr(Model, "draw", draw)
    monkeypatch.setattr(imagenet, "time", SimpleNamespace(perf_counter=lambda: float(next(clock))))
    assert main(command) == 130
    assert main(command) == 0
    assert sizes == [30, 30, 4, 30, 30, 6]
    assert json.loads((tmp_path / "report.json").read_text())["points"][0]["seconds"] == 20  # ten a chunk
    (tmp_path / "steps-001" / "seconds.json").unlink()  # as an earlier version left it
    assert main(command) == 0
    assert json.loads((tmp_path / "report.json").read_text())["points"][0]["seconds"] == 20


def test_bad_input_is_one_line(tmp_path: Path, tiny_classes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = ["benchmark", "imagenet", "--out", str(tmp_path), "--steps", "1"]
    for extra, message in [
        (["--model", "builtin"], "is not class-conditional"),
        (["--model", str(tiny_classes), "--classes", "some"], "expected one of balanced, random"),
    ]:
        assert main([*base, *extra]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
