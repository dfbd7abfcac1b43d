"""A dry run tells what a recipe takes, and trains nothing."""

from pathlib import Path

import pytest

from anystep.cli import build_parser, main
from anystep.data_sheets import DEVICES

CONFIGS = Path(__file__).parent.parent.parent / "configs"


def test_a_dry_run_tells_and_trains_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", str(CONFIGS / "t2i-865m.yaml"), "--dry-run", "--on", "A100", "--devices", "16"]) == 0
    shown = capsys.readouterr().out
    parts = ("864,978,080", "1,024 an image, 262,144 a step", "4.00 a sample", "GB on each of 16 devices", "days")
    for part in (*parts, "between machines"):
        assert part in shown
    assert main(["train", str(CONFIGS / "t2i-865m.yaml"), "--dry-run", "--on", "4090"]) == 2
    assert main(["train", str(CONFIGS / "emoji.yaml")]) == 2
    assert "--out is missing" in capsys.readouterr().err


def test_the_command_knows_the_devices_of_the_plan() -> None:
    for name in DEVICES:
        build_parser().parse_args(["train", "x.yaml", "--dry-run", "--on", name])


@pytest.mark.slow
def test_finite_differences_that_bfloat16_cannot_hold_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "vp.yaml"
    recipe.write_text("{transport: {name: vp}, model: {preset: t2i-test}}")
    command = ["train", str(recipe), "--dry-run", "--on", "H100"]
    assert main(command) == 2
    assert "transport 'vp' needs steps that are lost in its rounding: " in capsys.readouterr().err
    assert main([*command, "--objective.eps", "0.001"]) == 0
    assert "warm-up" not in capsys.readouterr().out
    assert main([*command, "--objective.eps", "0.001", "--run.steps", "50"]) == 0
    assert "the run of 50 steps ends in the warm-up of 100" in capsys.readouterr().out.replace("\n", " ")
