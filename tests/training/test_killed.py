"""Killed at any moment, the same command goes on as if nothing had happened."""

import contextlib
import json
import multiprocessing.process
import os
import random
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from processes import SERVERS

STEPS, LOGGED = 30, 6
PUBLISHED = {"train": "pipeline/transformer", "train-codec": "codec"}
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
# what depends on the clock and the machine
MEASURED = {"seconds", "images_per_second", "tokens_per_second", "data_wait", "memory_megabytes"}


@pytest.fixture(scope="module")
def recipes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """By command: classes in pixels, averages, guidance, sample grids; a codec. A checkpoint every five steps."""
    folder, rng = tmp_path_factory.mktemp("classes"), np.random.default_rng(0)
    for number in range(24):
        (folder / f"class-{number % 3}").mkdir(exist_ok=True)
        image = Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8))
        image.save(folder / f"class-{number % 3}" / f"{number}.png")
    run = {"steps": STEPS, "batch_size": 4, "checkpoint_every": 5, "log_every": LOGGED, "threads": 1}
    contents: dict[str, dict[str, Any]] = {
        "train": {
            "data": {"source": f"classes:{folder}", "size": 8, "balanced": True, "mirror": True},
            "model": {"preset": "c2i-test", "codec": "identity", "options": {"hidden_size": 16, "depth": 1}},
            "objective": {"diffusion_phase": 0.2, "guidance": {"w_gt": 1.0, "w_cond": 0.5, "start": 0.2, "end": 0.8}},
            "run": {**run, "sample_every": 20},
            "ema_decay": [0.9, 0.99],
            "ema_lengths": [0.05, 0.1],
            "ema_snapshots": 4,
            "sample_steps": [1],
        },
        "train-codec": {
            "data": {"source": f"classes:{folder}", "size": 8},
            "codec": {"latent_channels": 4, "widths": [8, 8], "encoder_depths": [0, 1], "decoder_depths": [0, 1]},
            "run": run,
        },
    }
    paths = {}
    for command, content in contents.items():
        paths[command] = tmp_path_factory.mktemp("recipe") / "recipe.yaml"
        paths[command].write_text(yaml.safe_dump(content))
    return paths


def curve(run: Path, every: int) -> list[dict[str, Any]]:
    """What was logged; of a command that logs some steps only, and the last of each half too, those."""
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    kept = [record for record in records if record["step"] % every == 0]
    return [{name: value for name, value in record.items() if name not in MEASURED} for record in kept]


def published(run: Path, command: str) -> dict[str, bytes]:
    """Weights as users load them, and the snapshots of averages."""
    paths = [*(run / PUBLISHED[command]).glob("*.safetensors"), *(run / "averages").glob("*/*.distcp")]
    return {str(path.relative_to(run)): path.read_bytes() for path in paths}


def begun(arguments: list[str]) -> None:
    from anystep.cli import main

    sys.exit(main(arguments))


SLOW = pytest.mark.slow


@pytest.mark.parametrize("command", ["train", pytest.param("train-codec", marks=SLOW)])
@pytest.mark.parametrize("kills", [2, pytest.param(60, marks=SLOW)])
def test_a_run_that_is_ended_again_and_again_is_the_undisturbed_one(
    recipes: dict[str, Path], tmp_path: Path, command: str, kills: int
) -> None:
    # all in processes of one kind: what other tests left in this one may change the last bit
    every = 1 if command == "train" else LOGGED

    def begin(run: Path) -> multiprocessing.process.BaseProcess:
        child = SERVERS.Process(target=begun, args=([command, str(recipes[command]), "--out", str(run)],))
        child.start()
        return child

    straight = tmp_path / "straight"
    child = begin(straight)
    child.join()
    assert child.exitcode == 0
    expected, wanted = curve(straight, every), published(straight, command)
    assert [record["step"] for record in expected][-1] == STEPS
    assert wanted

    rng, done, runs, reached = random.Random(0), 0, 0, set()
    while done < kills:
        runs += 1
        run = tmp_path / f"run-{runs}"
        while True:
            child = begin(run)
            child.join(rng.uniform(0.3, 2.5))
            ended = child.exitcode is None
            if ended:
                with contextlib.suppress(ProcessLookupError):  # it has ended between the question and the signal
                    os.kill(child.pid or 0, rng.choice(SIGNALS))
                child.join()
            if not ended:
                assert child.exitcode == 0
                break
            assert child.exitcode != 2  # bad input, or a folder that could not be read
            log = run / "metrics.jsonl"
            reached.add(log.read_text().count("\n") if log.exists() else 0)
            done += 1
        assert curve(run, every) == expected
        assert published(run, command) == wanted
        assert not list(run.rglob("*.part"))
    assert len(reached) > kills / (10 if command == "train" else 20)  # at many different steps; a codec logs one in six
