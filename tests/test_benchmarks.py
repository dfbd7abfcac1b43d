"""The benchmarks run, in small: what they say of a GPU comes from the same code."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent


def run(script: str, out: Path, *options: str) -> dict[str, Any]:
    command = [sys.executable, str(ROOT / "benchmarks" / script), "--out", str(out / "record.json"), *options]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=400, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    record: dict[str, Any] = json.loads((out / "record.json").read_text())
    assert {"command", "commit", "environment"} <= record.keys()
    return record


@pytest.mark.slow
def test_the_cost_of_a_step_is_measured_on_the_published_shape_in_small(tmp_path: Path) -> None:
    options = ["configs/t2i-865m.yaml", "--debug", "--length", "16", "--rounds", "1", "--run.peak_tflops", "1"]
    options += ["--variants", "transition_central", "--run.precision", "bfloat16"]
    record = run("step_cost.py", tmp_path, *options)
    plain, central = record["steps"]["flow_matching"], record["steps"]["transition_central"]
    assert (plain["time_ratio"], plain["share_with_interval"], central["share_with_interval"]) == (1.0, 0.0, 0.5)
    # a forward and a backward of twice its operations; the derivative adds two forwards of half of the batch
    assert central["mfu"] * central["seconds"] == pytest.approx(4 / 3 * plain["mfu"] * plain["seconds"])
    assert central["peak_megabytes"] > central["megabytes_before"] > 0


@pytest.mark.slow
def test_the_engine_is_measured_against_a_bare_loop_of_the_same_work(tmp_path: Path) -> None:
    record = run("engine.py", tmp_path, "--debug", "--turns", "1", "--steps", "3")
    assert record["ratio"] == pytest.approx(record["engine_seconds"] / record["bare_seconds"], rel=0.5)
    assert 0 < record["data_wait"] < 1


@pytest.mark.slow
def test_the_network_is_measured_against_its_products_alone(tmp_path: Path) -> None:
    found = run("network_speed.py", tmp_path, "--debug", "--no-compile", "--rounds", "1")["cases"]
    # of each block: q, k, v, interval, attention, out; q, attention and out to the encoded caption; SwiGLU; modulation.
    # Beside them two time embeddings, patches, and the last layer with its modulation
    assert found["sampling"]["calls"] == 2 * (6 + 3 + 3 + 3) + 2 * 2 + 1 + 4
    assert found["training"]["calls"] > 2 * found["sampling"]["calls"]
    for row in found.values():
        assert row["eager_share"] == pytest.approx(row["products_ms"] / row["eager_ms"])


@pytest.mark.slow
def test_growth_is_measured_and_drawn(tmp_path: Path) -> None:
    record = run("growth.py", tmp_path, "--sides", "8", "40", "--picture", str(tmp_path / "growth.png"))
    rows = [(row["tokens"], row["key_grid"]) for row in record["rows"]]
    assert rows == [(64, None), (1600, None), (1600, 32)]
    assert (tmp_path / "growth.png").stat().st_size > 10_000


@pytest.mark.slow
def test_a_call_of_the_pipeline_is_measured_against_what_it_is_made_of(tmp_path: Path, tiny_model: Path) -> None:
    record = run("pipeline.py", tmp_path, "--rounds", "1", "--model", str(tiny_model))
    assert [(row["steps"], row["guidance"]) for row in record["overhead"]] == [(8, 1.0), (8, 1.5)]
    assert [row["tokens"] for row in record["one_batch"]] == [64, 256, 1024, 2304]
    for row in record["overhead"] + record["one_batch"]:
        assert row["range"][0] <= row["ratio"] <= row["range"][1]
        assert min(row["ms"]) > 0


@pytest.mark.slow
def test_preparing_is_measured_against_the_codec_alone(tmp_path: Path) -> None:
    record = run("prepare.py", tmp_path, "--images", "4", "--turns", "1", "--threads", "1")
    assert 0.1 < record["ratio"] < 2  # it reads, scales and writes too
    assert 0 < record["turns"][0]["busy"] <= 1.1


@pytest.mark.slow
def test_a_large_image_takes_the_memory_of_its_plan(tmp_path: Path) -> None:
    record = run("large.py", tmp_path, "--model", "builtin", "--size", "1984x896", "--threads", "1")
    assert record["planned"]["sampling"] > 1.2 * record["planned"]["decoding"]
    for phase in ("sampling", "decoding"):
        assert 0.75 < record["measured"][phase]["bytes"] / record["planned"][phase] < 1.25


@pytest.mark.slow
def test_the_page_of_scale_is_made(tmp_path: Path) -> None:
    record = run("scale.py", tmp_path, "--page", str(tmp_path / "scale.md"))
    assert len(record["rows"]) == 18
    page = (tmp_path / "scale.md").read_text()
    assert page.count("| ddp |") == page.count("| hsdp |") == 6
    assert "{" not in page


@pytest.mark.slow
def test_released_weights_of_the_true_size_are_converted_and_loaded_in_little_more_memory_than_they_take(
    tmp_path: Path,
) -> None:
    phases = run("released.py", tmp_path, "--folder", str(tmp_path))["phases"]
    assert phases["converting"]["weights"] > 1.7e9
    assert phases["converting"]["peak_over_weights"] < 1.3
    assert phases["loading"]["added_over_weights"] < 1.2
