"""Milestones: which checkpoints are kept for them, and what a distance costs."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anystep.cli import main
from anystep.compare.milestones import keeping, kept_steps, reached, steps_there
from anystep.training.checkpoints import is_kept
from anystep.training.config import RunConfig


def read(folder: Path) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((folder / "report.json").read_text())
    return report


@given(
    steps=st.integers(1, 5000),
    shares=st.lists(st.integers(1, 100).map(lambda each: each / 100), min_size=1, unique=True),
)
def test_milestones_are_at_their_shares_and_kept(steps: int, shares: list[float]) -> None:
    milestones = kept_steps(steps, shares)
    assert len(milestones) <= len(shares)
    for share in shares:
        assert any(abs(step - max(1, share * steps)) <= 0.5 for step in milestones)
    run = keeping(RunConfig(steps=steps), shares)
    assert RunConfig.model_validate(run.model_dump(mode="json")) == run
    assert [step for step in range(1, steps + 1) if is_kept(step, run.keep_every)] == milestones
    assert steps_there(milestones, steps, shares) == milestones


def test_checkpoints_of_earlier_versions_are_measured_where_they_are_near() -> None:
    assert steps_there([19, 190, 1989, 1990], 1990, [0.01, 0.1, 0.5, 1.0]) == [19, 190, 1990]
    assert steps_there([33, 50, 199], 199, [0.33, 0.5, 1.0]) == [199]
    assert steps_there([], 199, [0.33]) == []


def test_the_cost_of_a_distance_is_interpolated() -> None:
    costs, distances = [100.0, 200.0, 400.0], [30.0, 20.0, 10.0]
    assert reached(costs, distances, 20.0) == pytest.approx(200)
    assert reached(costs, distances, 15.0) == pytest.approx(200 * 2**0.5)
    assert reached(costs, distances, 31.0) == 100
    assert reached(costs, distances, 9.0) is None
    assert reached([1.0, 2.0, 4.0], [5.0, 7.0, 3.0], 4.0) == pytest.approx(2 * 2**0.75)
    assert reached([], [], 9.0) is None


def test_milestones_tell_what_a_distance_costs_and_are_kept(
    small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["compare", "--allow-code", str(small), "--out", str(tmp_path), "--seeds", "[0]", "--steps", "[1]"]
    command += ["--milestones", "[0.5, 1]", "--milestone_steps", "[1, 2]", "--milestone_samples", "50"]
    assert main(command) == 0, capsys.readouterr().err
    told = read(tmp_path)["milestones"]
    assert (told["samples"], told["steps"]) == (50, [1, 2])
    for variant in told["variants"]:
        half, end = variant["points"]
        assert half["step"] == round(0.5 * end["step"])
        assert end["step"] == read(tmp_path)["models"][told["variants"].index(variant)]["training"]["steps"]
        assert end["evaluations"] == pytest.approx(240, rel=0.15)
        assert half["evaluations"] == pytest.approx(end["evaluations"] * half["step"] / end["step"], rel=0.25)
        assert 0 < half["seconds"] < end["seconds"]
        assert half["distances"] != end["distances"]
        assert set(end["distances"]) == {"kernel_distance_pooled", "frechet_distance_pooled"}
    assert [(goal["other"], goal["steps"]) for goal in told["goals"]] == [
        ("flow matching", 1),
        ("flow matching", 2),
    ] * 2
    page = (tmp_path / "report.md").read_text()
    assert "## Time to quality" in page
    assert "What transition needs until it has what each other one has at its end" in page
    chunks = {path: path.stat().st_mtime_ns for path in (tmp_path / "evaluation").rglob("*.safetensors")}
    assert main(command) == 0
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "evaluation").rglob("*.safetensors")} == chunks
    assert read(tmp_path)["milestones"] == told
