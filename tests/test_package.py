"""The package as it is installed: what it declares, and that this is enough."""

import ast
import os
import re
import subprocess
import sys
import tomllib
import venv
import zipfile
from importlib import import_module
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

import anystep

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
ASKED_FOR_BY_NAME = {"wandb", "trackio", "pillow_heif"}  # what uses them says what to install


def names(requirements: list[str]) -> set[str]:
    return {re.split(r"[^\w.-]", each)[0].lower().replace("_", "-") for each in requirements}


def test_the_reference_has_every_name_of_the_package() -> None:
    pages = re.findall(r"^::: (\S+)$", (ROOT / "docs" / "reference.md").read_text("utf-8"), re.MULTILINE)
    assert {vars(anystep)["_WHERE"][name] for name in anystep.__all__ if name != "__version__"} <= set(pages)
    for page in pages:
        assert import_module(page).__doc__, page


def test_everything_imported_is_declared() -> None:
    optional = set().union(*(names(extra) for extra in PROJECT["optional-dependencies"].values()))
    declared = names(PROJECT["dependencies"]) | optional
    where = packages_distributions()
    imported = set()
    for path in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                imported.add(node.module.split(".")[0])
    ours = imported - set(sys.stdlib_module_names) - {"anystep"} - ASKED_FOR_BY_NAME
    missing = {
        name for name in ours if not {each.lower().replace("_", "-") for each in where.get(name, [name])} & declared
    }
    assert not missing


@pytest.mark.slow
def test_the_wheel_and_what_it_declares_draw_train_and_evaluate_anywhere(tmp_path: Path) -> None:
    """Built, installed without any extra in a new environment, and used from a folder that is not the checkout."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "ANYSTEP"))}
    environment |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "HOME": str(tmp_path), "COLUMNS": "200"}

    def run(*command: str | Path) -> str:
        done = subprocess.run(
            [str(word) for word in command], capture_output=True, text=True, cwd=tmp_path, env=environment
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    pip = ["-m", "pip", "--quiet", "--disable-pip-version-check"]
    run(sys.executable, *pip, "wheel", "--no-deps", "--wheel-dir", tmp_path / "dist", ROOT)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        assert {"anystep/py.typed", "anystep/recipes/compare/emoji.yaml"} <= set(archive.namelist())
        (metadata,) = (name for name in archive.namelist() if name.endswith("/METADATA"))
        page = archive.read(metadata).decode()
    assert "Project-URL: Repository, https://" in page
    links = re.findall(r"\]\(([^)]+)\)", page)
    assert len(links) > 5
    assert all(link.startswith(("https://", "#")) for link in links)

    venv.create(tmp_path / "env", with_pip=True)
    python, anystep = tmp_path / "env" / "bin" / "python", tmp_path / "env" / "bin" / "anystep"
    run(python, *pip, "install", "--constraint", ROOT / "constraints.txt", wheel)
    run(python, "-m", "pip", "check")
    assert str(tmp_path) in run(python, "-c", "import anystep; print(anystep.__file__)")
    run(anystep, "generate", "a red apple", "--steps", "1", "2", "--out", "apple.png")
    run(python, "-m", "anystep", "train", "emoji", "--debug", "--run.steps", "4", "--out", "run")
    run(anystep, "generate", "a whale", "--model", "run", "--steps", "1", "--size", "64x64")
    assert {"apple.png", "anystep.png"} <= {path.name for path in tmp_path.iterdir()}
    run(anystep, "evaluate", "--model", "run", "--steps", "1", "2", "--samples", "50", "--out", "report")
    assert {"report.md", "curve.png"} <= {path.name for path in (tmp_path / "report").iterdir()}
    assert "knows" in run(anystep, "info")
    assert "anystep train emoji" in run(anystep, "recipes")
