"""The launch files start the command that exists, with what it needs to come back."""

import re
import subprocess
from pathlib import Path

import pytest
import yaml

from anystep.cli import build_parser
from anystep.ranks import STORE_A_LIFE
from anystep.training.recipes import find_recipe

LAUNCH = Path(__file__).parent.parent / "examples" / "launch"


@pytest.mark.parametrize("name", ["workstation.sh", "slurm.sbatch"])
def test_a_shell_file_parses_and_can_be_run(name: str) -> None:
    path = LAUNCH / name
    subprocess.run(["bash", "-n", str(path)], check=True)
    assert path.stat().st_mode & 0o111
    text = path.read_text()
    assert "-m anystep train" in text
    assert "--max-restarts" in text


def test_the_workstation_starts_torchrun_with_what_it_is_given(tmp_path: Path) -> None:
    fake = tmp_path / "torchrun"
    fake.write_text('#!/bin/sh\necho "$@"\n')
    fake.chmod(0o755)
    told = subprocess.run(
        [str(LAUNCH / "workstation.sh"), "emoji", "--out", "runs/a b"],
        env={"PATH": f"{tmp_path}:/usr/bin:/bin", "GPUS": "2"}, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    expected = "--standalone --nproc-per-node 2 --max-restarts 3 -m anystep train emoji --out runs/a b"
    assert told.strip() == expected


def test_on_several_machines_every_life_has_a_store_of_its_own() -> None:
    assert f"export {STORE_A_LIFE}=1" in (LAUNCH / "slurm.sbatch").read_text()
    _, job = yaml.safe_load_all((LAUNCH / "kubernetes.yaml").read_text())
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert {"name": STORE_A_LIFE, "value": "1"} in container["env"]
    command = container["command"]
    options = build_parser().parse_args(command[command.index("anystep") + 1 :])
    assert find_recipe(options.recipe, "train").exists()
    # pods find the first one by the name that the service gives it
    (endpoint,) = [word for word in command if word.startswith("--rdzv-endpoint=")]
    assert re.fullmatch(rf"--rdzv-endpoint={job['metadata']['name']}-0\.{pod['subdomain']}:\d+", endpoint)
