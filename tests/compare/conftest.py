"""A small comparison, before and after it was run."""

from pathlib import Path

import pytest
import yaml

from anystep.cli import main

CONFIGS = Path(__file__).parent.parent.parent / "configs" / "compare"


@pytest.fixture(scope="session")
def small(fashion: Path, tmp_path_factory: pytest.TempPathFactory, pooled: Path) -> Path:
    """A comparison of two objectives that takes seconds."""
    content = yaml.safe_load((CONFIGS / "fashion-mnist.yaml").read_text())
    debug = content.pop("debug")
    content["recipe"]["data"]["source"] = f"idx:{fashion}"
    content["recipe"]["model"]["options"] |= debug["recipe"]["model"]["options"]
    content["recipe"]["run"] |= {"batch_size": 8}
    content |= {"evaluations": 240, "seeds": [0, 1], "steps": [1, 2], "samples": 60, "extractor": str(pooled)}
    content["plans"] = False
    content["variants"] = {
        "transition": {},
        "flow matching": {"objective": {"kind": "flow_matching"}},
    }
    content["metrics"] = ["kernel_distance", "frechet_distance", "sharpness"]
    path = tmp_path_factory.mktemp("comparison") / "small.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


@pytest.fixture(scope="session")
def finished(small: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("compared")
    assert main(["compare", "--allow-code", str(small), "--out", str(out), "--jobs", "2"]) == 0
    return out
