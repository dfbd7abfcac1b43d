"""Killed at any moment, the same command goes on as if nothing had happened."""

import json
import multiprocessing
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

STEPS = 60
# what depends on the clock and the machine
MEASURED = {"seconds", "images_per_second", "tokens_per_second", "data_wait", "memory_megabytes"}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Classes in pixels, two averages, guidance, sample grids, and a checkpoint at every fifth step."""
    folder, dice = tmp_path_factory.mktemp("classes"), np.random.default_rng(0)
    for number in range(24):
        (folder / f"class-{number % 3}").mkdir(exist_ok=True)
        image = Image.fromarray(dice.integers(0, 256, (8, 8, 3), np.uint8))
        image.save(folder / f"class-{number % 3}" / f"{number}.png")
    content = {
        "data": {"source": f"classes:{folder}", "size": 8, "balanced": True, "mirror": True},
        "model": {"preset": "c2i-test", "codec": "identity", "options": {"hidden_size": 16, "depth": 1}},
        "objective": {"diffusion_phase": 0.2, "guidance": {"w_gt": 1.0, "w_cond": 0.5, "start": 0.2, "end": 0.8}},
        "run": {
            "steps": STEPS,
            "batch_size": 4,
            "checkpoint_every": 5,
            "sample_every": 20,
            "log_every": 7,
            "threads": 1,
        },
        "ema_decay": [0.9, 0.99],
        "sample_steps": [1],
    }
    path = tmp_path_factory.mktemp("recipe") / "recipe.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def curve(run: Path) -> list[dict[str, Any]]:
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in record.items() if name not in MEASURED} for record in records]


@pytest.mark.parametrize("kills", [5, pytest.param(100, marks=pytest.mark.slow)])
def test_a_run_that_is_killed_again_and_again_is_the_undisturbed_one(recipe: Path, tmp_path: Path, kills: int) -> None:
    from anystep.cli import main

    # all in processes of one kind: what other tests left in this one may change the last bit
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["anystep.cli", "anystep.training.train"])
    straight = tmp_path / "straight"
    child = context.Process(target=main, args=(["train", str(recipe), "--out", str(straight)],))
    child.start()
    child.join()
    assert child.exitcode == 0
    expected, weights = curve(straight), (straight / "pipeline" / "transformer").glob("*.safetensors")
    wanted = {path.name: path.read_bytes() for path in weights}
    assert wanted

    dice, done, runs, reached = random.Random(0), 0, 0, set()
    while done < kills:
        runs += 1
        run = tmp_path / f"run-{runs}"
        while True:
            child = context.Process(target=main, args=(["train", str(recipe), "--out", str(run)],))
            child.start()
            child.join(dice.uniform(0.3, 2.5))
            if child.exitcode is None:
                child.kill()
                child.join()
            if child.exitcode == 0:
                break
            assert child.exitcode == -9
            done += 1
            log = run / "metrics.jsonl"
            reached.add(log.read_text().count("\n") if log.exists() else 0)
        assert curve(run) == expected
        assert {path.name: path.read_bytes() for path in (run / "pipeline" / "transformer").glob("*.safetensors")} == (
            wanted
        )
        assert not list(run.rglob("*.part"))
    assert len(reached) > kills / 10  # at many different steps
