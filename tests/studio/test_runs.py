"""What is watched of training: found where it was pointed to and nowhere else, read on as it grows, thinned truly."""

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from anystep.errors import InputError
from anystep.studio import runs as watching
from anystep.studio.event_stream import event_text
from anystep.studio.runs import POINTS, RunLog, Runs, comparison, thinned


def write_run(folder: Path, steps: int, of: int = 100) -> Path:
    """A run folder with a log of so many steps."""
    (folder / "samples").mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(f"run:\n  steps: {of}\n")
    (folder / "metrics.jsonl").write_text("".join(map(line, range(1, steps + 1))))
    return folder


def line(step: int) -> str:
    figures: dict[str, Any] = {
        "step": step,
        "loss": 1.0,
        "residual_diffusion": 1 / step,
        "images_per_second": 4.0 * step,
    }
    if step % 2 == 0:
        figures |= {"residual_long": float(step), "residual_bins": [[float(step), None]]}
    return json.dumps({**figures, "seconds": 0.5}) + "\n"


def write_comparison(folder: Path) -> Path:
    def model(name: str, figure: float) -> dict[str, Any]:
        points = [
            {"steps": steps, "metrics": {"distance": {"value": figure / steps, "low": 0.1, "high": 9.0}}}
            for steps in (1, 2, 4)
        ]
        return {"name": name, "seeds": [0, 1], "points": points}

    report = {"better": {"distance": "lower"}, "samples": 50, "command": "anystep compare x.yaml"}
    (folder / "runs").mkdir(parents=True)
    (folder / "report.json").write_text(json.dumps({**report, "models": [model("ours", 8.0), model("theirs", 9.0)]}))
    return folder


def refuse(path: Path) -> bool:
    raise PermissionError(path)


def test_runs_and_comparisons_are_found_below_the_folders_and_nowhere_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outside = write_run(tmp_path / "outside", 3)
    root = tmp_path / "runs"
    old, new = write_run(root / "old", 3), write_run(root / "compared" / "runs" / "new", 3)
    write_comparison(root / "other")
    (root / "link").symlink_to(outside)
    os.utime(old / "metrics.jsonl", (1000, 1000))
    runs = Runs([root])
    found = {(each.name, each.kind) for each in runs.found()}
    assert found == {("runs/old", "run"), ("runs/compared/runs/new", "run"), ("runs/other", "comparison")}
    assert runs.found()[-1].name == "runs/old"
    assert runs.named("runs/compared/runs/new", "run").folder == new
    for name in ("outside", "../outside", "runs/link", "/", ""):
        with pytest.raises(InputError, match="is no run that is watched"):
            runs.named(name, "run")
    assert Runs([tmp_path / "nothing"]).found() == []
    with monkeypatch.context() as few:
        latest = runs.found()[0]
        few.setattr(watching, "MOST", 1)
        assert runs.found() == [latest]
    with monkeypatch.context() as closed:
        closed.setattr(Path, "is_file", refuse)
        assert runs.found() == []
    with suppress(OSError):  # a file system of text alone
        write_run(root / os.fsdecode(b"\xff") / "in", 3)
    assert {(each.name, each.kind) for each in runs.found()} == found
    with pytest.raises(InputError, match="two folders of runs are called 'runs'"):
        Runs([root, tmp_path / "other" / "runs"])
    assert [each.name for each in Runs([outside]).found()] == ["outside"]


def test_a_log_is_read_on_where_it_was_left_and_again_where_it_was_cut(tmp_path: Path) -> None:
    log = RunLog(write_run(tmp_path, 3))
    assert log.update()
    assert not log.update()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write(line(4) + line(5)[:20])  # the writer is in the middle of a line
        file.flush()
        assert log.update()
        assert [each["step"] for each in log.records] == [1, 2, 3, 4]
        file.write(line(5)[20:] + "no json\n" + '{"step": "x"}\n')
    log.update()
    assert [each["step"] for each in log.records] == [1, 2, 3, 4, 5]
    write_run(tmp_path, 2)
    log.update()
    assert [each["step"] for each in log.records] == [1, 2]


def test_a_run_tells_its_curves_by_interval_its_pace_and_its_grids(tmp_path: Path) -> None:
    log = RunLog(write_run(tmp_path, 6, of=20))
    for name in ("step-00000002.png", "step-00000004.png", "other.png"):
        Image.new("RGB", (2, 2)).save(tmp_path / "samples" / name)
    log.update()
    told = log.told()
    assert told["curves"] == {
        "residual_diffusion": [(step, 1 / step) for step in range(1, 7)],
        "residual_long": [(2, 2.0), (4, 4.0), (6, 6.0)],
    }
    assert (told["step"], told["steps"], told["seconds_left"], told["images_per_second"]) == (6, 20, 7.0, 24.0)
    assert told["bins"] == [[6.0, None]]
    assert told["grids"] == ["step-00000002.png", "step-00000004.png"]
    json.dumps(told)


def test_figures_that_are_no_numbers_in_bounds_are_left_out(tmp_path: Path) -> None:
    log = RunLog(write_run(tmp_path, 1))
    odd = {
        "residual_diffusion": float("inf"),
        "residual_long": 10**400,
        "images_per_second": "fast",
        "seconds": float("nan"),
        "skipped_steps": [],
        "residual_bins": [[1.0, float("-inf")], ["x", True]],
    }
    lines = [{"step": 2, **odd}, {"step": 3, "residual_bins": [0.5]}, {"step": 10**400}, {"step": True}]
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.writelines(f"{json.dumps(each)}\n" for each in lines)
        file.write(f"{'[' * 100_000}\n[]\n")
    log.update()
    told = log.told()
    assert told["curves"] == {"residual_diffusion": [(1, 1.0)], "residual_long": []}
    assert told["bins"] == [[1.0, None], [None, None]]
    assert (told["step"], told["images_per_second"], told["skipped_steps"]) == (3, None, None)
    assert told["seconds_left"] == 97 * 0.5
    event_text("run", told)


def test_a_run_without_a_config_or_a_step_is_shown_as_far_as_it_is(tmp_path: Path) -> None:
    folder = write_run(tmp_path, 0)
    (folder / "config.yaml").write_text("- no\n- recipe\n")
    log = RunLog(folder)
    assert not log.update()
    told = log.told()
    assert (told["step"], told["steps"], told["seconds_left"], told["curves"]) == (0, None, None, {"loss": []})


def test_a_long_curve_is_thinned_to_means_of_equal_stretches() -> None:
    records = [{"step": step, "loss": float(step)} for step in range(1, 4 * POINTS + 1)]
    curve = thinned([*records, {"step": 9999, "loss": float("nan")}, {"step": 9999, "loss": None}], "loss")
    assert len(curve) == POINTS
    assert curve[0] == (4, 2.5)
    assert curve[-1] == (4 * POINTS, 4 * POINTS - 1.5)


def test_a_comparison_s_curves_are_those_of_its_report(tmp_path: Path) -> None:
    told = comparison(write_comparison(tmp_path / "c"))
    assert told["models"][1] == {
        "name": "theirs",
        "seeds": 2,
        "points": {"distance": [[1, 9.0, 0.1, 9.0], [2, 4.5, 0.1, 9.0], [4, 2.25, 0.1, 9.0]]},
    }


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"samples": 50, ', "", "samples: Field required"),
        ("8.0", "NaN", "models.0.points.0.metrics.distance.value: .* finite number"),
        ("8.0", "-1e999", "models.0.points.0.metrics.distance.value: .* finite number"),
        ("theirs", r"\ud800", "models.1.name: .* unicode"),
        ('"distance": "lower"', '"other": "lower"', "no figures of 'other'"),
    ],
)
def test_a_report_that_is_none_is_told(tmp_path: Path, old: str, new: str, message: str) -> None:
    report = write_comparison(tmp_path / "c") / "report.json"
    report.write_text(report.read_text().replace(old, new))
    with pytest.raises(InputError, match=f"is no report of a comparison: {message}"):
        comparison(tmp_path / "c")
