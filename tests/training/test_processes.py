"""The same run on several processes: the same losses, and checkpoints that go from one number of them to another."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

STEPS = 4


@pytest.fixture(scope="module")
def recipe(captioned_folder: Path, tiny_codec: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Captions of different lengths, dropped captions, both phases, a batch of 8."""
    content = {
        "data": {"source": str(captioned_folder), "size": 16},
        "model": {"preset": "t2i-test", "codec": str(tiny_codec)},
        "objective": {"diffusion_phase": 0.25},
        "optimizer": {"learning_rate": 1e-2, "warmup": 2},
        "run": {
            "steps": STEPS,
            "batch_size": 8,
            "checkpoint_every": 2,
            "sample_every": 4,
            "log_every": 4,
            "threads": 1,
        },
        "condition_dropout": 0.3,
        "sample_steps": [1],
    }
    path = tmp_path_factory.mktemp("recipe") / "recipe.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def train(processes: int, recipe: Path, out: Path, *options: str) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command += ["-m", "anystep.cli", "train", str(recipe), "--out", str(out), *options]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=400, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


def losses(run: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def alone(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from anystep.cli import main

    out = tmp_path_factory.mktemp("alone") / "run"
    assert main(["train", str(recipe), "--out", str(out)]) == 0
    return out


def test_two_processes_have_the_losses_of_one(recipe: Path, alone: Path, tmp_path: Path) -> None:
    train(2, recipe, tmp_path / "run", "--parallel", "ddp")
    assert losses(tmp_path / "run") == pytest.approx(losses(alone), rel=1e-5)


def test_accumulated_parts_have_the_losses_of_the_whole(recipe: Path, alone: Path, tmp_path: Path) -> None:
    from anystep.cli import main

    assert main(["train", str(recipe), "--out", str(tmp_path / "run"), "--run.accumulate", "4"]) == 0
    assert losses(tmp_path / "run") == pytest.approx(losses(alone), rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("processes", "options"),
    [
        (4, ["--parallel", "ddp"]),
        (2, ["--parallel", "fsdp"]),
        (2, ["--parallel", "fsdp", "--run.accumulate", "2", "--model.gradient_checkpointing", "true"]),
        (4, ["--parallel", "fsdp"]),
        (4, ["--parallel", "hsdp", "--run.shard_size", "2"]),
    ],
)
def test_sharded_processes_have_the_losses_of_one(
    recipe: Path, alone: Path, tmp_path: Path, processes: int, options: list[str]
) -> None:
    train(processes, recipe, tmp_path / "run", *options)
    assert losses(tmp_path / "run") == pytest.approx(losses(alone), rel=1e-5)
    assert (tmp_path / "run" / "pipeline" / "model_index.json").exists()
    assert (tmp_path / "run" / "samples" / "step-00000004.png").exists()


@pytest.mark.slow
def test_a_checkpoint_of_two_shards_goes_on_in_one_process_and_in_four(
    recipe: Path, alone: Path, tmp_path: Path
) -> None:
    train(2, recipe, tmp_path / "run", "--parallel", "fsdp", "--run.steps", "2")
    for processes in (1, 4):
        copy = tmp_path / f"on-{processes}"
        subprocess.run(["cp", "-r", str(tmp_path / "run"), str(copy)], check=True)
        train(processes, recipe, copy, "--parallel", "fsdp")
        assert losses(copy)[2:] == pytest.approx(losses(alone)[2:], rel=1e-5)


def test_what_processes_cannot_do_is_one_line(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from anystep.errors import InputError
    from anystep.ranks import Ranks
    from anystep.training.parallel import check_parallel
    from anystep.training.train import my_rows

    ranks = Ranks()
    ranks.count = 3
    with pytest.raises(InputError, match=r"batch_size 64 does not divide into 3 processes x 2 parts; 60 or 66 would"):
        my_rows(64, 2, ranks)
    with pytest.raises(InputError, match="3 processes would each train alone"):
        check_parallel("none", ranks)
    with pytest.raises(InputError, match="3 processes are no multiple of the 2 that share one copy"):
        check_parallel("hsdp", ranks, 2)


def test_every_row_of_a_batch_is_seen_by_one_process() -> None:
    from anystep.ranks import Ranks
    from anystep.training.train import my_rows

    seen = []
    for rank in range(3):
        ranks = Ranks()
        ranks.count, ranks.rank = 3, rank
        parts = my_rows(24, 2, ranks)
        assert [len(part) for part in parts] == [4, 4]
        seen += [row for part in parts for row in part]
    assert sorted(seen) == list(range(24))
