"""What all runs of a comparison are measured by, and what the report says of it."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from anystep.cli import main
from anystep.compare import measure
from anystep.evaluation.step_plans import plan_model
from anystep.pipelines.load import load


def read(folder: Path) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((folder / "report.json").read_text())
    return report


def test_a_comparison_has_a_curve_a_variant_over_all_seeds(finished: Path) -> None:
    report = read(finished)
    assert [model["name"] for model in report["models"]] == ["transition", "flow matching"]
    assert [(point["steps"], point["nfe"]) for point in report["models"][0]["points"]] == [(1, 1), (2, 2)]
    for model in report["models"]:
        for point in model["points"]:
            figure = point["metrics"]["frechet_distance_pooled"]
            seeds = point["seeds"]["frechet_distance_pooled"]
            assert len(seeds) == 2
            assert figure["value"] == pytest.approx(sum(seeds) / 2)
            assert figure["low"] <= min(seeds)
            assert figure["high"] >= max(seeds)
    assert len(report["runs"]) == 4
    assert len(report["against"]) == 6
    assert {each["verdict"] for each in report["against"]} <= {"better", "level", "worse"}
    assert "transition against each" in (finished / "report.md").read_text()
    assert {"curve.png", "sheet.png"} <= {path.name for path in finished.iterdir()}


def test_a_report_says_who_is_best_or_level_with_a_score_and_how_pictures_move(finished: Path) -> None:
    report = read(finished)
    name = "frechet_distance_pooled"
    best = report["best_or_level"][name]
    assert list(best["steps"]) == ["1", "2"]
    for place, leaders in enumerate(best["steps"].values()):
        values = {model["name"]: model["points"][place]["metrics"][name]["value"] for model in report["models"]}
        assert min(values, key=lambda each: values[each]) in leaders
    for model in report["models"]:
        seeds = [point["seeds"][name] for point in model["points"]]
        scores = [(math.log(one) + math.log(two)) / 2 for one, two in zip(*seeds, strict=True)]
        assert model["scores"][name]["value"] == pytest.approx(sum(scores) / 2)
        (doubled,) = model["doublings"][name]
        gains = [one - two for one, two in zip(*seeds, strict=True)]
        assert (doubled["from"], doubled["to"]) == (1, 2)
        assert doubled["gain"]["value"] == pytest.approx(sum(gains) / 2)
        (moved,) = model["movement"]
        assert 0 < moved["features"]["value"] < 2
        assert 0 < moved["pixels"]["value"] < 1
    page = (finished / "report.md").read_text()
    for words in ("| score |", "- 2 steps: ", "From each number of steps to the next:", "picture of one seed moves"):
        assert words in page
    row = next(line for line in page.splitlines() if line.startswith(f"| {best['steps']['1'][0]} |") and "±" in line)
    assert row.count("**") >= 2


@pytest.mark.slow
def test_a_comparison_measures_every_run_with_plans_of_its_own(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["compare", "--allow-code", str(small), "--out", str(tmp_path), "--seeds", "[0]"]
    words += ["--metrics", "[kernel_distance]", "--steps", "[1, 2, 4]"]
    assert main([*words, "--plans", "true"]) == 0
    planned = read(tmp_path)
    assert list(planned["plans"]) == ["transition, seed 0", "flow matching, seed 0"]
    for model in planned["models"]:
        rows = planned["plans"][f"{model['name']}, seed 0"]
        figures = [row["planned"] for row in rows]
        assert figures == sorted(figures, reverse=True)
        folder = tmp_path / "runs" / f"{model['name'].replace(' ', '-')}-0"
        scheduler = load(folder, "cpu").pipeline.scheduler
        assert [str(scheduler.plan(row["budget"])) for row in rows] == [row["plan"] for row in rows]
        assert [point["nfe"] for point in model["points"]] == [scheduler.plan(count).steps for count in (1, 2, 4)]
    assert "## Plans" in (tmp_path / "report.md").read_text()
    assert main(words) == 0  # the runs have plans now, but they are not asked for
    uniform = read(tmp_path)
    assert uniform["plans"] == {}
    assert [point["nfe"] for point in uniform["models"][0]["points"]] == [1, 2, 4]

    searched = []
    monkeypatch.setattr(measure, "plan_model", lambda *arguments: (searched.append(1), plan_model(*arguments))[1])
    first, _ = sorted(tmp_path.rglob("plans.json"))
    first.write_bytes(first.read_bytes()[:-9])
    assert main([*words, "--plans", "true"]) == 0
    assert len(searched) == 1  # what was found before is read again
    assert read(tmp_path)["plans"] == planned["plans"]
    for old, new in zip(planned["models"], read(tmp_path)["models"], strict=True):
        assert [point["metrics"] for point in old["points"]] == [point["metrics"] for point in new["points"]]


def test_validation_that_is_too_small_is_told_before_anything_is_trained(
    small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["compare", "--allow-code", str(small), "--out", str(tmp_path / "out"), "--plans", "true"]
    assert main([*words, "--recipe.data.limit", "160"]) == 2
    assert "kernel_distance needs at least 50 images" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
