"""Milestones: which checkpoints are kept for them, and what a distance costs."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anystep.cli import main
from anystep.compare.milestones import keeping, kept_steps, reached
from anystep.training.config import RunConfig


def read(folder: Path) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((folder / "report.json").read_text())
    return report


@given(
    steps=st.integers(1, 5000),
    every=st.integers(1, 600),
    shares=st.lists(st.sampled_from([0.1, 0.25, 0.3, 0.5, 0.75, 0.99, 1.0]), min_size=1, unique=True),
)
def test_a_checkpoint_is_kept_at_each_milestone(steps: int, every: int, shares: list[float]) -> None:
    run = keeping(RunConfig(steps=steps, checkpoint_every=every), shares)
    again = keeping(RunConfig(steps=steps, checkpoint_every=every), shares)
    assert run == again
    assert run.checkpoint_every <= every
    milestones = kept_steps(RunConfig(steps=steps, checkpoint_every=every), shares)
    assert milestones == kept_steps(run, shares)  # what is kept is what is looked for
    for step in milestones:
        assert step == steps or (step % run.keep_every == 0 and step % run.checkpoint_every == 0)
    if steps > 100 * every:
        for share, step in zip(sorted(shares), milestones, strict=True):
            assert step == pytest.approx(share * steps, rel=0.35)


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
