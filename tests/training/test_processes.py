"""The same run on several processes: the same losses, and checkpoints that go from one number of them to another."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from helpers import losses
from processes import run_ranks

from anystep.models.lora import LORA_FILE, read_lora
from anystep.pipelines.load import load
from anystep.ranks import STORE_A_LIFE
from anystep.training.checkpoint_files import read_average
from anystep.training.snapshots import Snapshots

STEPS = 4
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
# what torchrun starts: some code before the command
WORKER = """import os, sys
{first}
from anystep.cli import main
sys.exit(main())
"""


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
        "ema_lengths": [0.05, 0.1],
        "ema_snapshots": 2,
        "sample_steps": [1],
    }
    path = tmp_path_factory.mktemp("recipe") / "recipe.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def launch(
    processes: int, recipe: Path, out: Path, *options: str, first: str = "", restarts: int | None = None
) -> subprocess.CompletedProcess[str]:
    """The command in several processes; under torchrun where it is said how often that may start them again."""
    arguments = ["train", str(recipe), "--out", str(out), *options]
    if restarts is None:
        return run_ranks(processes, arguments, out.parent, first)
    worker = out.parent / "worker.py"
    worker.write_text(WORKER.format(first=first))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command += ["--max-restarts", str(restarts), str(worker), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=400, check=False)


def train(processes: int, recipe: Path, out: Path, *options: str, **how: Any) -> str:
    """What it says, once it has ended well."""
    done = launch(processes, recipe, out, *options, **how)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout + done.stderr


def averages(run: Path) -> list[dict[str, torch.Tensor]]:
    """Those of the last snapshot; they are the averages of the last checkpoint in half precision."""
    snapshots, network = Snapshots(run), load(run, "cpu").pipeline.transformer
    assert snapshots.steps[-2:] == (2, 4)
    found = snapshots.rebuild(snapshots.plan(snapshots.lengths), network)
    for place, average in enumerate(found):
        assert read_average(run / "checkpoints", network, 1 + place) == STEPS
        whole = network.state_dict()
        assert all(torch.allclose(value, whole[name], rtol=1e-3, atol=1e-6) for name, value in average.items())
    return found


def close(run: Path, other: Path) -> bool:
    """Whether two runs have kept the same averages, however many processes wrote them."""
    pairs = [(one[name], two[name]) for one, two in zip(averages(run), averages(other), strict=True) for name in one]
    apart = sum(float((one - two).square().sum()) for one, two in pairs)
    return apart < 1e-6 * sum(float(two.square().sum()) for _, two in pairs)


@pytest.fixture(scope="module")
def alone(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from anystep.cli import main

    out = tmp_path_factory.mktemp("alone") / "run"
    assert main(["train", str(recipe), "--out", str(out)]) == 0
    return out


# a group that is still there when the interpreter ends aborts a process now and then; the line is written in one piece,
# since torchrun's processes share an output without buffers
AT_EXIT = """import atexit, sys
import torch.distributed as dist
atexit.register(lambda: sys.stdout.write(f"in a group at the end: {dist.is_initialized()}\\n"))
"""


def test_two_processes_have_the_losses_of_one_and_leave_their_group(recipe: Path, alone: Path, tmp_path: Path) -> None:
    said = train(2, recipe, tmp_path / "run", "--parallel", "ddp", first=AT_EXIT, restarts=0)
    assert said.count("in a group at the end: False") == 2
    assert losses(tmp_path / "run") == pytest.approx(losses(alone), rel=1e-5)
    assert close(tmp_path / "run", alone)


OBJECTIVES: dict[str, Any] = {
    "running_mean": {"normalise": "running_mean", "adaptive": 0},
    "uncertainty": {"normalise": "uncertainty", "adaptive": 0.5},
    "self_evaluation": {"kind": "self_evaluation"},
    "guidance": {"guidance_condition": {"interval": [0.5, 1.0]}, "diffusion_share": 0.8},
}


FAST = ("running_mean",)


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in OBJECTIVES],
)
def richer(recipe: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    """A recipe whose objective has a state of its own, or asks for some samples more often; beside it a run of one
    process.
    """
    from anystep.cli import main

    content = yaml.safe_load(recipe.read_text())
    content["objective"] = OBJECTIVES[request.param]
    content["model"]["options"] = {"guidance_embed": request.param == "guidance"}
    path = tmp_path_factory.mktemp(request.param) / "recipe.yaml"
    path.write_text(yaml.safe_dump(content))
    assert main(["train", str(path), "--out", str(path.parent / "alone")]) == 0
    return path


def test_what_an_objective_learns_and_asks_for_does_not_depend_on_the_processes(richer: Path, tmp_path: Path) -> None:
    train(2, richer, tmp_path / "run", "--parallel", "ddp", "--run.accumulate", "2")
    assert losses(tmp_path / "run") == pytest.approx(losses(richer.parent / "alone"), rel=1e-5)


@pytest.mark.slow
def test_what_an_objective_has_learned_goes_on_in_another_number_of_processes(richer: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(2, richer, run, "--parallel", "fsdp", "--run.steps", "2")
    train(4, richer, run, "--parallel", "fsdp")
    assert losses(run) == pytest.approx(losses(richer.parent / "alone"), rel=1e-5)


BRANCHES = ["--model.options", json.dumps({"depth": 3, "branch_depth": 1, "trunk_share": 0.1})]


@pytest.fixture(scope="module")
def branched(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from anystep.cli import main

    out = tmp_path_factory.mktemp("branched") / "run"
    assert main(["train", str(recipe), "--out", str(out), *BRANCHES]) == 0
    return out


@pytest.mark.parametrize(
    ("processes", "options"),
    [
        (2, ["--parallel", "ddp"]),
        pytest.param(2, ["--parallel", "ddp", "--run.accumulate", "4"], marks=pytest.mark.slow),
        pytest.param(2, ["--parallel", "fsdp"], marks=pytest.mark.slow),
        pytest.param(4, ["--parallel", "fsdp", "--run.accumulate", "2"], marks=pytest.mark.slow),
        pytest.param(4, ["--parallel", "hsdp", "--run.shard_size", "2"], marks=pytest.mark.slow),
    ],
)
def test_processes_whose_images_take_different_branches_have_the_losses_of_one(
    recipe: Path, branched: Path, tmp_path: Path, processes: int, options: list[str]
) -> None:
    train(processes, recipe, tmp_path / "run", *BRANCHES, *options)
    assert losses(tmp_path / "run") == pytest.approx(losses(branched), rel=1e-5)
    assert (tmp_path / "run" / "pipeline" / "model_index.json").exists()


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
    assert close(tmp_path / "run", alone)


@pytest.mark.slow
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_images_of_many_shapes_have_the_losses_of_one_process(
    recipe: Path, pictures: Path, tmp_path: Path, packed: bool, parallel: str
) -> None:
    from anystep.cli import main

    content = yaml.safe_load(recipe.read_text())
    content["data"] = {"source": str(pictures), "size": 16, "native": True}
    content["run"] |= {"micro_batches": 2, "packed": packed}
    native = tmp_path / "native.yaml"
    native.write_text(yaml.safe_dump(content))
    assert main(["train", str(native), "--out", str(tmp_path / "alone")]) == 0
    train(2, native, tmp_path / "two", "--parallel", parallel)
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "alone"), rel=1e-5)


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
        assert close(copy, alone)


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_an_adapter_is_trained_on_two_processes_and_goes_on_in_one(
    recipe: Path, tiny_model: Path, tmp_path: Path, parallel: str
) -> None:
    from anystep.cli import main

    content = yaml.safe_load(recipe.read_text())
    content |= {"model": {"weights": str(tiny_model)}, "lora": {"rank": 2}, "ema_lengths": []}
    adapter = tmp_path / "adapter.yaml"
    adapter.write_text(yaml.safe_dump(content))
    assert main(["train", str(adapter), "--out", str(tmp_path / "alone")]) == 0
    expected = losses(tmp_path / "alone")
    train(2, adapter, tmp_path / "two", "--parallel", parallel)
    assert losses(tmp_path / "two") == pytest.approx(expected, rel=1e-5)
    train(2, adapter, tmp_path / "half", "--parallel", parallel, "--run.steps", "2")
    assert main(["train", str(adapter), "--out", str(tmp_path / "half")]) == 0
    assert losses(tmp_path / "half")[2:] == pytest.approx(expected[2:], rel=1e-5)
    one, other = (read_lora(tmp_path / name / "lora" / LORA_FILE).tensors for name in ("alone", "half"))
    apart = sum(float((value - other[name]).square().sum()) for name, value in one.items())
    assert apart < 1e-6 * sum(float(value.square().sum()) for value in one.values())


# what one worker does to itself, and only in the first life of the group
KILLED_AFTER_TWELVE_STEPS = """
import pathlib, signal, threading, time

def watch():
    log = pathlib.Path(sys.argv[sys.argv.index("--out") + 1]) / "metrics.jsonl"
    while not log.exists() or log.read_text().count("\\n") < 12:
        time.sleep(0.001)
    os.kill(os.getpid(), signal.SIGKILL)

if os.environ["RANK"] == "1" and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
    threading.Thread(target=watch, daemon=True).start()
"""


LONG = ["--run.steps", "40", "--run.checkpoint_every", "5", "--run.sample_every", "0"]


@pytest.fixture(scope="module")
def long(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from anystep.cli import main

    out = tmp_path_factory.mktemp("long") / "run"
    assert main(["train", str(recipe), "--out", str(out), *LONG]) == 0
    return out


@pytest.mark.slow
def test_the_run_goes_on_after_a_worker_is_killed(recipe: Path, long: Path, tmp_path: Path) -> None:
    said = train(2, recipe, tmp_path / "run", "--parallel", "fsdp", *LONG, first=KILLED_AFTER_TWELVE_STEPS, restarts=1)
    assert "exitcode: -9" in said
    assert losses(tmp_path / "run") == pytest.approx(losses(long), rel=1e-5)


@pytest.mark.slow
def test_the_run_goes_on_after_a_worker_of_another_machine_is_killed(recipe: Path, long: Path, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    (tmp_path / "worker.py").write_text(WORKER.format(first=KILLED_AFTER_TWELVE_STEPS))
    run = tmp_path / "run"
    meeting = ["--nnodes", "2", "--rdzv-backend", "c10d", "--rdzv-endpoint", f"localhost:{port}", "--max-restarts", "2"]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "1", *meeting]
    command += [str(tmp_path / "worker.py"), "train", str(recipe), "--out", str(run), "--parallel", "fsdp", *LONG]
    machines = [
        subprocess.Popen(command, env={**ENVIRONMENT, STORE_A_LIFE: "1"}, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    said = [machine.communicate(timeout=300)[1] for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0], "".join(said)[-3000:]
    assert "exitcode: -9" in "".join(said)
    assert "cannot come back" not in "".join(said)
    assert losses(run) == pytest.approx(losses(long), rel=1e-5)


# no file of this process may grow further: what a full disk does to one of several writers
FULL = """
import resource
if os.environ["RANK"] == "1":
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
"""


@pytest.mark.slow
def test_a_disk_that_is_full_for_one_process_stops_all_and_loses_nothing(
    recipe: Path, alone: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    train(2, recipe, run, "--parallel", "fsdp", "--run.steps", "2")
    done = launch(2, recipe, run, "--parallel", "fsdp", first=FULL)
    assert done.returncode != 0
    assert done.stderr.count("anystep: error: the snapshot of step 4 could not be written") == 1
    assert "Traceback" not in done.stderr
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step-00000002"]
    train(2, recipe, run, "--parallel", "fsdp")
    assert losses(run) == pytest.approx(losses(alone), rel=1e-5)


@pytest.mark.slow
def test_a_record_that_one_process_cannot_read_is_counted_by_all(recipe: Path, tmp_path: Path) -> None:
    from anystep.cli import main
    from anystep.data.shards import Shards

    for name in ("alone", "two"):
        run = tmp_path / name
        assert main(["train", str(recipe), "--out", str(run), "--run.steps", "2"]) == 0
        index = Shards(str(run / "latents-0")).index
        shard = run / "latents-0" / list(index.shards)[int(index.shard[3])]
        content = bytearray(shard.read_bytes())
        content[int(index.offsets[3][0]) + 5] ^= 1
        shard.write_bytes(content)
    assert main(["train", str(recipe), "--out", str(tmp_path / "alone")]) == 0
    said = train(2, recipe, tmp_path / "two")
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "alone"), rel=1e-5)
    last = json.loads((tmp_path / "two" / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["skipped_examples"] == 1
    assert "skipped 1 unreadable examples" in said


@pytest.mark.slow
def test_alignment_that_ends_in_the_run_has_the_losses_of_one_process(recipe: Path, tmp_path: Path) -> None:
    import transformers

    from anystep.cli import main

    config = transformers.Dinov2Config(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=16, patch_size=4
    )
    transformers.Dinov2Model(config).save_pretrained(tmp_path / "encoder")
    aligned = json.dumps({"encoder": str(tmp_path / "encoder"), "until": 0.5, "depth": 1, "projector_dim": 8})
    assert main(["train", str(recipe), "--out", str(tmp_path / "alone"), "--alignment", aligned]) == 0
    for kind in ("ddp", "fsdp"):
        train(2, recipe, tmp_path / kind, "--parallel", kind, "--alignment", aligned)
        assert losses(tmp_path / kind) == pytest.approx(losses(tmp_path / "alone"), rel=1e-5)


# notes how many collectives there were before each step; the second process is told to stop in the sixth
COUNTED = """
import json, pathlib, signal
import torch.distributed as dist
import torch.distributed.distributed_c10d as c10d
from anystep.training.loader import PrefetchingLoader

calls, steps = [], []

def counted(name, real):
    return lambda *arguments, **options: (calls.append(name), real(*arguments, **options))[1]

kinds = ("all_", "barrier", "broadcast", "_broadcast", "gather", "reduce", "scatter", "send", "recv")
for module in (dist, c10d):
    for name in dir(module):
        if name.startswith(kinds) and callable(getattr(module, name)):
            setattr(module, name, counted(name, getattr(module, name)))

def take(self, position, real=PrefetchingLoader.take):
    steps.append(list(calls))
    calls.clear()
    if position == 5 and os.environ["RANK"] == "1" and not found.exists():
        os.kill(os.getpid(), signal.SIGTERM)
    found.with_suffix("." + os.environ["RANK"]).write_text(json.dumps(steps))
    return real(self, position)

found = pathlib.Path(sys.argv[sys.argv.index("--out") + 1]).with_suffix(".stopped")
PrefetchingLoader.take = take
"""


@pytest.mark.parametrize("parallel", ["ddp", pytest.param("fsdp", marks=pytest.mark.slow)])
def test_a_step_that_is_not_logged_has_no_collective_and_a_signal_to_one_process_stops_all_after_the_same_step(
    recipe: Path, tmp_path: Path, parallel: str
) -> None:
    from anystep.cli import main

    longer = ["--run.steps", "8", "--run.log_every", "7", "--run.checkpoint_every", "8", "--run.sample_every", "0"]
    longer += ["--ema_snapshots", "1"]
    assert main(["train", str(recipe), "--out", str(tmp_path / "alone"), *longer]) == 0
    run = tmp_path / "run"
    train(2, recipe, run, *longer, "--parallel", parallel, first=COUNTED)
    for rank in range(2):
        before = json.loads((tmp_path / f"run.{rank}").read_text())
        assert before[0]  # of setting up: the calls are counted
        sharded = ("_single", "_tensor") if parallel == "fsdp" else ()  # of the weights and their gradients
        assert [[name for name in calls if not name.endswith(sharded)] for calls in before[1:]] == [[]] * 5
    assert losses(run) == pytest.approx(losses(tmp_path / "alone")[:5], rel=1e-5)
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step-00000005"]
    (tmp_path / "run.stopped").touch()
    train(2, recipe, run, *longer, "--parallel", parallel, first=COUNTED)
    before = json.loads((tmp_path / "run.0").read_text())
    assert ["all_gather" in calls for calls in before] == [
        True,
        False,
        True,
    ]  # the seventh step is logged, before the eighth
    assert losses(run) == pytest.approx(losses(tmp_path / "alone"), rel=1e-5)
