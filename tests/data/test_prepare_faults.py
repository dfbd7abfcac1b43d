"""Faults of the machine in the middle of preparing: kills, a full disk, no more files. Nothing is lost."""

import builtins
import errno
import io
import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import fail_to_open, folder_bytes

from anystep.cli import main
from anystep.data.latents import LatentShards
from anystep.errors import InputError

# Prepares in a child of a process that has everything imported, with one fault, and then without; the parent prints how
# the child ended. Faults: kill:N (at the Nth time that a file gets its name, or is removed), size:BYTES, files:COUNT.
CHILD = """
import os, resource, signal, sys
from pathlib import Path
from anystep.cli import main
words = ["data", "prepare", sys.argv[1], "--size", "8", "--codec", "identity", "--shard-size", "4", "--out"]
main([*words, sys.argv[2] + "/imports"])  # which are lazy
for fault in sys.argv[3:]:
    out = f"{sys.argv[2]}/{fault.replace(':', '-')}"
    if (child := os.fork()) == 0:
        kind, _, number = fault.partition(":")
        if kind == "kill":
            left = [int(number)]
            def dying(real):
                def act(*arguments, **options):
                    left[0] -= 1
                    if left[0] == 0:
                        os.kill(os.getpid(), signal.SIGKILL)
                    return real(*arguments, **options)
                return act
            for name in ("replace", "unlink", "chmod"):
                setattr(Path, name, dying(getattr(Path, name)))
        elif kind == "size":
            resource.setrlimit(resource.RLIMIT_FSIZE, (int(number), resource.RLIM_INFINITY))
        elif kind == "files":
            used = len(os.listdir("/proc/self/fd")) - 1
            resource.setrlimit(resource.RLIMIT_NOFILE, (used + int(number), 4096))
        code = main([*words, out])
        sys.stdout.flush()
        os._exit(code)
    status = os.waitpid(child, 0)[1]
    print("ended", fault, os.waitstatus_to_exitcode(status), flush=True)
"""


def prepared(folder: Path, out: Path, *faults: str) -> tuple[dict[str, int], str]:
    """How preparing ended under each fault, and what was said on the error stream."""
    out.mkdir(exist_ok=True)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(folder), str(out), *faults],
        env=environment, capture_output=True, text=True, check=True, timeout=300,
    )  # fmt: skip
    ended = [line.split() for line in done.stdout.splitlines() if line.startswith("ended ")]
    return {fault: int(code) for _, fault, code in ended}, done.stderr


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import numpy as np
    from PIL import Image

    folder, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for number in range(10):
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"number {number}")
    (folder / "3.png").write_bytes(b"broken")
    return folder


def held_up(pictures: Path, out: Path, faults: list[str]) -> dict[str, int]:
    """Prepare with each fault, and again without; all must end in the same bytes."""
    ended, said = prepared(pictures, out, "none", *faults)
    assert ended.pop("none") == 0
    assert "Traceback" not in said
    assert {code for code in ended.values() if code not in (0, -signal.SIGKILL)} <= {2}
    for fault, code in ended.items():
        path = out / fault.replace(":", "-") / "dataset.json"
        if code != 0 and path.exists() and not json.loads(path.read_text())["complete"]:
            with pytest.raises(InputError, match="again"):
                LatentShards(str(out / fault.replace(":", "-")))
    again = [fault.replace(":", "-") for fault in ended]
    finished, said = prepared(pictures, out, *again)
    assert set(finished.values()) == {0}
    whole = folder_bytes(out / "none")
    for name in again:
        assert folder_bytes(out / name) == whole, name
    return ended


@pytest.mark.parametrize(
    ("limit", "number"), [(resource.RLIMIT_FSIZE, 3000), (resource.RLIMIT_FSIZE, 30), (resource.RLIMIT_NOFILE, 2)]
)
def test_a_full_disk_or_too_few_files_are_one_line_and_lose_nothing(
    pictures: Path, tmp_path: Path, limit: int, number: int, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["data", "prepare", str(pictures), "--size", "8", "--codec", "identity", "--shard-size", "4", "--out"]
    assert main([*words, str(tmp_path / "whole")]) == 0
    capsys.readouterr()
    before = resource.getrlimit(limit)
    os.close(free := os.dup(0))
    used = free if limit == resource.RLIMIT_NOFILE else 0
    try:
        resource.setrlimit(limit, (used + number, before[1]))
        code = main([*words, str(tmp_path / "out")])
    finally:
        resource.setrlimit(limit, before)
    said = capsys.readouterr().err
    assert (code, said.count("\n"), said.startswith("anystep: error: ")) == (2, 1, True), said
    assert not list((tmp_path / "out").glob("*.part"))
    assert main([*words, str(tmp_path / "out")]) == 0
    assert folder_bytes(tmp_path / "out") == folder_bytes(tmp_path / "whole")


@pytest.mark.parametrize("kind", [errno.ESTALE, errno.ETIMEDOUT, None])
def test_faults_of_the_machine_are_one_line_and_cost_no_example(
    pictures: Path, tmp_path: Path, kind: int | None, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    words = ["data", "prepare", str(pictures), "--size", "8", "--codec", "identity", "--shard-size", "4", "--out"]
    for module in (builtins, io):  # where Pillow opens the image, and where its content is noted
        with monkeypatch.context() as patched:
            fail_to_open(patched, "5.png", MemoryError() if kind is None else OSError(kind, os.strerror(kind)), module)
            assert main([*words, str(tmp_path / "out")]) == 2
        said = capsys.readouterr().err
        assert (said.count("\n"), "5.png: " in said or kind is None) == (1, True), said
    assert main([*words, str(tmp_path / "out")]) == 0
    assert main([*words, str(tmp_path / "whole")]) == 0
    assert folder_bytes(tmp_path / "out") == folder_bytes(tmp_path / "whole")


@pytest.mark.slow
def test_a_fault_at_any_moment_of_preparing_loses_nothing(pictures: Path, tmp_path: Path) -> None:
    kills = [f"kill:{number}" for number in range(1, 50, 3)]
    sizes = [f"size:{number}" for number in (0, 50, 600, 2000, 8000, 12_000)]
    files = [f"files:{number}" for number in range(0, 12, 2)]
    ended = held_up(pictures, tmp_path / "out", [*kills, *sizes, *files])
    assert sum(code == -signal.SIGKILL for code in ended.values()) > 8
    assert sum(code == 2 for code in ended.values()) > 4
