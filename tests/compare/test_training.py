"""Runs spend equal evaluations, and end with the process that began them."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from anystep.errors import InputError
from anystep.files import claimed


def test_every_run_spends_the_same_evaluations(finished: Path) -> None:
    for folder in (finished / "runs").iterdir():
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        # a forward a sample is counted in the log; the backward pass costs two more
        spent = sum(line["evaluations"] + 2 * 8 for line in lines)
        assert spent == pytest.approx(240, rel=0.15)


@pytest.mark.slow
def test_runs_end_with_the_process_that_began_them_and_go_on(small: Path, tmp_path: Path) -> None:
    """Killed, nobody holds the folders; terminated, the runs save what they have, and no other begins."""
    command = [sys.executable, "-m", "anystep", "compare", "--allow-code", str(small), "--out", str(tmp_path / "out")]
    command += ["--jobs", "2", "--seeds", "[0, 1, 2]", "--evaluations", "40000", "--recipe.run.log_every", "1"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    logs = tmp_path / "out" / "runs"

    def written() -> set[tuple[Path, int]]:
        """Logs with a step in them, and when it was written."""
        found = ((path, path.stat()) for path in logs.rglob("metrics.jsonl"))
        return {(path, stat.st_mtime_ns) for path, stat in found if stat.st_size}

    for how, code in ((signal.SIGKILL, -signal.SIGKILL), (signal.SIGTERM, 130)):
        before = written()
        child = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        while child.poll() is None and written() <= before:
            time.sleep(0.05)
        child.send_signal(how)
        told = child.communicate()[1]  # of a killed one Python's tracker of resources tells
        assert how == signal.SIGKILL or ("interrupted\n" in told and "Traceback" not in told)
        assert child.returncode == code
        for folder in logs.iterdir():
            for _ in range(600):  # the processes of a killed one need a moment
                with suppress(InputError), claimed(folder, "training run"):
                    break
                time.sleep(0.05)
            else:
                raise AssertionError(f"{folder} is still held")
    assert len({path.parent for path in logs.rglob("checkpoints/step-*")}) in (1, 2)  # one may not have begun to train
