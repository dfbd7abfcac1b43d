"""The script that trains the built-in model on a GPU, a few steps of it on the CPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import anystep

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_what_it_trains_is_a_model_that_draws(tmp_path: Path) -> None:
    words = ["--device", "cpu", "--limit", "20", "--scenes", "60", "--tokens", "1024", "--depth", "8", "--every", "1"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}

    words += ["--out", str(tmp_path), "--seconds", "3"]
    subprocess.run([sys.executable, ROOT / "scripts" / "train_builtin.py", *words], check=True, env=environment)
    records = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert records[-1]["images"] > 0
    assert len(records[0]["art"]) == len(records[-1]["scenes"]) == 5
    model = anystep.load(tmp_path, "cpu")
    assert len(model.pipeline.transformer.blocks) == 8
    assert model("a red apple", steps=1, seed=0)[0].size == (64, 64)
