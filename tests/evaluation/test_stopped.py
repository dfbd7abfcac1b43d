"""Stopped in the middle of their work, by whatever it is, evaluations and benchmarks go on to the same bytes."""

import json
import multiprocessing
import os
import random
import resource
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from anystep.evaluation.benchmarks.imagenet import _is_whole_chunk, is_whole
from anystep.evaluation.collect import _read_chunk
from anystep.evaluation.image_files import is_whole_image
from anystep.files import HOLDER, LOCK, MARKER

CLOCK = {"seconds", "seconds_per_image", "images_per_second", "peak_megabytes"}
STOPS = ("kill", "term", "interrupt", "full disk", "no more files")
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["anystep.cli", "anystep.evaluation.run", "anystep.evaluation.benchmarks.run"])


@pytest.fixture(scope="module")
def commands(
    tiny_model: Path, tiny_classes: Path, pooled: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, list[str]]:
    """By name, without `--out`; each takes a second or two."""
    folder, rng = tmp_path_factory.mktemp("blocks"), np.random.default_rng(0)
    for number in range(130):
        blocks = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8).repeat(4, 0).repeat(4, 1)
        Image.fromarray(blocks).save(folder / f"{number:03d}.png")
        (folder / f"{number:03d}.txt").write_text(f"blocks number {number}")
    measured = ["--samples", "60", "--metrics", "kernel_distance", "--extractor", str(pooled), "--allow-code"]
    return {
        name: [*command, "--steps", "1", "2"]
        for name, command in {
            "evaluate": ["evaluate", "--model", str(tiny_model), "--data", str(folder), *measured, "--keep-images"],
            "scenes": ["benchmark", "scenes", "--model", str(tiny_model), "--each", "3"],
            "imagenet": ["benchmark", "imagenet", "--model", str(tiny_classes), "--samples", "300"],
        }.items()
    }


ACT = """
import os, signal, sys
from anystep.cli import main
signal.signal(signal.SIGINT, signal.default_int_handler)
os.dup2(os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
sys.exit(main([*arguments, "--out", out]))
"""


def begun(arguments: list[str], out: Path, errors: Path) -> Any:
    """A process that does it."""
    said = {"arguments": arguments, "out": str(out), "errors": str(errors)}
    child = CONTEXT.Process(target=exec, args=(ACT, said))
    child.start()
    return child


def files(out: Path) -> list[Path]:
    return [path for path in out.rglob("*") if path.is_file() and path.name not in (LOCK, HOLDER, MARKER)]


def without_clock(content: Any) -> Any:
    if isinstance(content, dict):
        return {name: without_clock(value) for name, value in content.items() if name not in CLOCK}
    return [without_clock(each) for each in content] if isinstance(content, list) else content


def content(out: Path) -> dict[str, Any]:
    """What a finished folder holds, but for what the clock says; nothing half-written is left in it."""
    held: dict[str, Any] = {}
    for path in files(out):
        assert not path.name.endswith(".part")
        name = str(path.relative_to(out))
        if path.suffix == ".safetensors":
            held[name] = {key: values.tobytes() for key, values in load_file(path).items()}
        elif path.suffix == ".json":
            held[name] = without_clock(json.loads(path.read_text()))
        elif path.name not in ("report.md", "curve.png"):
            held[name] = path.read_bytes()
    return held


@pytest.fixture(scope="module")
def finished(commands: dict[str, list[str]], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folders = {name: tmp_path_factory.mktemp(name) for name in commands}
    for name, folder in folders.items():
        child = begun(commands[name], folder, folder.with_suffix(".log"))
        child.join()
        assert child.exitcode == 0
    return folders


EXPECTED = {"kill": (-signal.SIGKILL, 0), "term": (-signal.SIGTERM, 0), "interrupt": (130, 1)}


def stop(pid: int, how: str) -> None:
    if how in ("kill", "term", "interrupt"):
        os.kill(pid, {"kill": signal.SIGKILL, "term": signal.SIGTERM, "interrupt": signal.SIGINT}[how])
    else:
        kind, most = (resource.RLIMIT_FSIZE, 400) if how == "full disk" else (resource.RLIMIT_NOFILE, 3)
        resource.prlimit(pid, kind, (most, most))


@pytest.mark.parametrize("name", ["evaluate", "scenes", "imagenet"])
@pytest.mark.parametrize("rounds", [1, pytest.param(6, marks=pytest.mark.slow)])
def test_what_was_stopped_goes_on_to_the_same_bytes(
    commands: dict[str, list[str]], finished: dict[str, Path], tmp_path: Path, name: str, rounds: int
) -> None:
    rng, whole = random.Random(f"{name} {rounds}"), content(finished[name])
    ways = STOPS * rounds if rounds > 1 else rng.sample(STOPS, 1)
    for number, how in enumerate(ways):
        out, errors = tmp_path / f"{number}-{how}", tmp_path / "errors"
        moment = rng.randint(2, max(6, len(whole) - 5))
        child = begun(commands[name], out, errors)
        while len(files(out)) < moment and child.is_alive():
            time.sleep(0.002)
        if child.is_alive():
            stop(child.pid, how)
        child.join()
        told = errors.read_text()
        expected = EXPECTED.get(how, (2, 1))
        # it may have finished first
        assert child.exitcode == 0 or (child.exitcode, told.count("\n")) == expected, (how, child.exitcode, told)
        again = begun(commands[name], out, errors)
        again.join()
        assert again.exitcode == 0, errors.read_text()
        assert content(out) == whole, how


@pytest.mark.slow
def test_what_a_power_cut_has_damaged_is_made_again(
    commands: dict[str, list[str]], finished: dict[str, Path], tmp_path: Path
) -> None:
    from anystep.cli import main

    for name, command in commands.items():
        out = finished[name]
        whole = content(out)
        kept = [path for path in files(out) if path.name != "settings.json" and path.suffix != ".md"]
        for path in random.Random(name).sample(kept, len(kept) // 3):
            size = path.stat().st_size
            with path.open("rb+") as file:
                file.truncate(size // 2)
                if len(path.name) % 2:  # as long as it was, with nothing in its second half
                    file.truncate(size)
        assert main([*command, "--out", str(out)]) == 0
        assert content(out) == whole, name


@pytest.mark.parametrize("how", ["kill", "interrupt", "full disk"])
def test_what_is_trained_appears_whole_or_not_at_all(tmp_path: Path, how: str) -> None:
    for number in range(20):
        folder = tmp_path / "data" / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (number, 0, 0)).save(folder / f"{number}.png")
    out, errors = tmp_path / "made" / "classifier.safetensors", tmp_path / "errors"
    out.parent.mkdir()
    command = ["train-classifier", f"classes:{tmp_path / 'data'}", "--size", "8"]
    child = begun([*command, "--epochs", "100" if how == "full disk" else "100000"], out, errors)
    while not errors.exists() and child.is_alive():
        time.sleep(0.002)
    time.sleep(0 if how == "full disk" else 1)
    stop(child.pid, how)
    child.join()
    assert (child.exitcode, errors.read_text().count("\n")) == EXPECTED.get(how, (2, 1)), errors.read_text()
    assert not list(out.parent.iterdir())


def test_what_is_kept_to_go_on_from_is_a_regular_file(tmp_path: Path) -> None:
    """A FIFO of the name of a kept file is no kept file, and nobody waits for it."""
    os.mkfifo(tmp_path / "fifo")
    assert _read_chunk(tmp_path / "fifo", 1) is None
    assert not is_whole_image(tmp_path / "fifo")
    assert not is_whole(tmp_path / "fifo", 1, 8)
    assert not _is_whole_chunk(tmp_path / "fifo", (1,))
