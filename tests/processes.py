"""Runs of several processes as `torchrun` starts them, but forked from one that has imported everything."""

import multiprocessing
import os
import subprocess
import sys
import time
from pathlib import Path

import torch.distributed as dist

PRELOADED = ["anystep.cli", "anystep.training.train", "anystep.training.train_codec", "anystep.evaluation.run"]
SERVERS = multiprocessing.get_context("forkserver")
SERVERS.set_forkserver_preload(PRELOADED)


def run_ranks(count: int, arguments: list[str], folder: Path, first: str = "") -> subprocess.CompletedProcess[str]:
    """The command in so many processes of one group; each runs the code `first` before it.

    Args:
        folder: where what they say is kept.
    """
    store = dist.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    shared = {"WORLD_SIZE": str(count), "MASTER_ADDR": "localhost", "MASTER_PORT": str(store.port)}
    shared["TORCHELASTIC_USE_AGENT_STORE"] = "True"
    said = {name: folder / f"ranks.{name}" for name in ("stdout", "stderr")}
    for path in said.values():
        path.write_text("")
    children = [
        SERVERS.Process(
            target=_run, args=({**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}, arguments, said, first)
        )
        for rank in range(count)
    ]
    for child in children:
        child.start()
    end = time.monotonic() + 400
    while any(child.exitcode is None for child in children):
        if time.monotonic() > end or any(child.exitcode for child in children):
            for child in children:
                child.kill()  # the others would wait for it for ever
        children[0].join(0.05)
    worst = max((child.exitcode or 0 for child in children), key=abs)
    return subprocess.CompletedProcess(arguments, worst, said["stdout"].read_text(), said["stderr"].read_text())


def _run(environment: dict[str, str], arguments: list[str], said: dict[str, Path], first: str) -> None:
    os.environ.update(environment)
    for number, path in enumerate(said.values(), 1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_APPEND), number)
    sys.argv[1:] = arguments
    exec(first, {"os": os, "sys": sys})
    from anystep.cli import main

    sys.exit(main(arguments))
