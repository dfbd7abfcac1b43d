"""The launch files start the command that exists, with what it needs to come back."""

import ast
import re
import subprocess
from pathlib import Path

import pytest
import yaml

import anystep
from anystep.cli import build_parser
from anystep.cli.serve import KEYS
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


def test_replicas_of_the_service_are_ready_drained_and_scaled_by_their_queue() -> None:
    parts = {part["kind"]: part for part in yaml.safe_load_all((LAUNCH / "serve.kubernetes.yaml").read_text())}
    pod = parts["Deployment"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    options = build_parser().parse_args(container["command"][1:])
    assert str(options.port) == str(container["ports"][0]["containerPort"])
    assert {"readinessProbe", "livenessProbe", "startupProbe"} <= container.keys()
    assert container["readinessProbe"]["httpGet"]["path"] == "/readyz"
    pause = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
    assert pod["terminationGracePeriodSeconds"] >= pause + options.drain
    assert KEYS in {variable["name"] for variable in container["env"]}
    (metric,) = parts["HorizontalPodAutoscaler"]["spec"]["metrics"]
    source = (Path(anystep.__file__).parent / "studio" / "metrics.py").read_text()
    assert f'"{metric["pods"]["metric"]["name"]}"' in source


def test_the_deployment_of_ray_uses_what_there_is() -> None:
    tree = ast.parse((LAUNCH / "serve_ray.py").read_text())
    imported = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module]
    ours = [node for node in imported if str(node.module).startswith("anystep")]
    assert ours
    for node in ours:
        module = ast.parse((Path(anystep.__file__).parents[1] / f"{str(node.module).replace('.', '/')}.py").read_text())
        names = {each.name for each in module.body if isinstance(each, ast.ClassDef | ast.FunctionDef)}
        assert {alias.name for alias in node.names} <= names
