"""Mutated inputs of every area are read, or refused in one line; nothing hangs, grows, runs or is written outside."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

COUNT, SEED = os.environ.get("ANYSTEP_FUZZ_COUNT", "2000"), os.environ.get("ANYSTEP_FUZZ_SEED", "1")
SCRIPT = Path(__file__).parent / "run.py"


@pytest.mark.parametrize(
    ("count", "seed"), [("25", "0"), pytest.param(COUNT, SEED, marks=pytest.mark.slow)], ids=["few", "many"]
)
def test_mutated_inputs_are_read_or_refused_in_one_line(count: str, seed: str) -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--seed", seed, "--count", count], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-3000:]
    assert f"{int(count):,} inputs of seed {seed}, 0 failures" in done.stdout
