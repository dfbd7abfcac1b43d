"""Comparisons resume, and say in one line what is wrong."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from anystep.cli import main


def read(folder: Path) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((folder / "report.json").read_text())
    return report


def test_a_variant_may_have_seeds_of_its_own(small: Path, tmp_path: Path) -> None:
    variants = "{transition: {seeds: [3, 0]}, flow matching: {objective: {kind: flow_matching}}}"
    command = ["compare", "--allow-code", str(small), "--out", str(tmp_path), "--variants", variants]
    assert main([*command, "--seeds", "[0]", "--steps", "[1]"]) == 0
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {"transition-0", "transition-3", "flow-matching-0"}
    report = read(tmp_path)
    assert [model["seeds"] for model in report["models"]] == [[3, 0], [0]]
    assert "its own seeds each" in (tmp_path / "report.md").read_text()


def test_finished_runs_are_kept(finished: Path, small: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("manifest.json")}
    assert before
    figures = read(finished)["models"]
    assert main(["compare", "--allow-code", str(small), "--out", str(finished)]) == 0
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("manifest.json")} == before
    for old, new in zip(figures, read(finished)["models"], strict=True):
        assert [point["metrics"] for point in old["points"]] == [point["metrics"] for point in new["points"]]


def test_finished_runs_of_other_values_are_refused(
    finished: Path, small: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for extra, key in (
        (["--evaluations", "2400"], "run.steps"),
        (["--recipe.optimizer.learning_rate", "0.5"], "optim"),
    ):
        assert main(["compare", "--allow-code", str(small), "--out", str(finished), *extra]) == 2
        assert key in (error := capsys.readouterr().err)
        assert "choose another --out" in error


@pytest.mark.parametrize(
    ("extra", "line"),
    [
        (["--only", "diffusion"], "--only 'diffusion': expected some of transition, flow matching"),
        (["--metrics", "[fid]"], "unknown metric fid"),
        (["--samples", "many"], "samples: "),
        (["--recipe.data.source", "idx:nowhere"], "no such folder"),
        (["--samples", "20"], "samples 20: kernel_distance needs at least 50 images"),
        (["--metrics", "[inception_score]"], "inception_score needs a classifier"),
        (["--seeds", "[]"], "seeds: "),
        (["--variants", "{a: {seeds: [0, 0]}}"], "variant 'a': seeds [0, 0] name one twice"),
        (["--variants", "{a: {seeds: 3}}"], "variant 'a': seeds 3: expected a list"),
        (["--variants", "{a: {seeds: [-1]}}"], "variant 'a': seeds -1: expected"),
        (
            ["--variants", "{flow matching: {seeds: [7]}}"],
            "variants 'transition' and 'flow matching': seeds that have none in common",
        ),
        (["--seeds", "[3, 3]"], "name one twice"),
        (["--steps", "[]"], "steps: "),
        (["--milestones", "[0.5, 0.5]"], "name one twice"),
        (["--milestones", "[0.333]"], "milestones 0.333: expected hundredths"),
        (["--milestones", "[0]"], "milestones"),
        (["--milestones", "[1]", "--milestone_samples", "20"], "milestone_samples 20: kernel_distance needs at least"),
        (["--milestones", "[1]", "--metrics", "[precision]"], "milestones need a metric that is lower"),
        (["--vary", "data.size=14"], "variant 'size 14' changes data or model.codec"),
        (["--vary", "transport.options.sigma=1"], "variant 'sigma 1'"),
        (["--variants", "{a b: {}, A-B: {}}"], "two names are alike but for signs"),
        (["--extractor", "gone.pt"], "feature extractor 'gone.pt': no such file"),
    ],
)
def test_bad_input_is_one_line(
    small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], extra: list[str], line: str
) -> None:
    assert main(["compare", "--allow-code", str(small), "--out", str(tmp_path / "out"), *extra]) == 2
    error = capsys.readouterr().err
    assert line in error
    assert error.count("\n") == 1


def test_a_plan_of_an_older_version_and_what_changes_nothing_learned_resume(
    finished: Path, small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    older = shutil.copytree(finished, tmp_path / "older")
    for path in older.rglob("planned.yaml"):
        plan = yaml.safe_load(path.read_text())
        plan["data"].pop("aspect")
        plan.pop("guard", None)
        path.write_text(yaml.safe_dump(plan))
    for name in (".anystep.json", ".lock"):  # folders were not marked then either
        (older / name).unlink()
    command = ["compare", "--allow-code", str(small), "--out", str(older), "--recipe.run.log_every", "7"]
    assert main([*command, "--recipe.sample_steps", "[1]"]) == 0, capsys.readouterr().err
    (older / "planned.yaml").write_text("{")
    assert main(command) == 2
    error = capsys.readouterr().err
    assert "planned.yaml" in error
    assert "choose another --out" in error


@pytest.mark.parametrize(
    ("extra", "line"),
    [
        (["--variants", "{a: {}, b: {model: {options: {hidden_size: 7}}}}"], "variant 'b': "),
        (["--variants", "{a: {}, b: {model: {preset: t2i-test}}}"], "variant 'b': it draws captions, but the data has"),
        (["--variants", "{a: {}, b: {run: {batch_size: 1000}}}"], "variant 'b': 240 samples are fewer than one batch"),
        (["--steps", "[1, 1]"], "name one twice"),
        (["--samples", "90"], "kernel_distance needs at least 50"),
        (["--recipe.data.limit", "60"], "samples 30: "),
        (["--variants", "{" + "x" * 300 + ": {}}"], "cannot name a file"),
    ],
)
def test_what_is_wrong_with_the_last_variant_is_said_before_the_first_is_trained(
    small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], extra: list[str], line: str
) -> None:
    command = ["compare", "--allow-code", str(small), "--out", str(tmp_path / "out"), *extra]
    if line == "kernel_distance needs at least 50":
        command += ["--recipe.data.limit", "60"]
    assert main(command) == 2
    error = capsys.readouterr().err
    assert line in error
    assert error.count("\n") == 1
    assert not list(tmp_path.rglob("metrics.jsonl"))
