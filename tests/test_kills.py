"""Killed in their work, or short of room or descriptors, long commands go on to the result of an undisturbed run."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent / "kills.py"
COUNT, SEED = os.environ.get("ANYSTEP_KILLS", "100"), os.environ.get("ANYSTEP_KILLS_SEED", "0")


@pytest.mark.parametrize(
    "words",
    [
        ["--count", "2", "--only", "data prepare"],
        pytest.param(["--count", COUNT, "--seed", SEED], marks=pytest.mark.slow),
        pytest.param(["--disk"], marks=pytest.mark.slow),
        pytest.param(["--descriptors"], marks=pytest.mark.slow),
    ],
    ids=["few kills", "kills", "full disk", "few descriptors"],
)
def test_stopped_commands_go_on_to_the_result_of_an_undisturbed_run(words: list[str]) -> None:
    done = subprocess.run([sys.executable, str(SCRIPT), *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-3000:]
