"""What training takes on 8, 64 and 512 devices under DDP, FSDP and HSDP, on paper, and a check against a real run.

    python benchmarks/scale.py                 # writes docs/scale.md and benchmarks/results/scale.json

The tables come from `anystep.training.plan`: memory from the network run on tensors without data, traffic from rings
over the links of the device's data sheet. A batch hides its communication when computing takes at least as long.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

import torch
from record import write_record
from resident import GIVEN_BACK

from anystep.data_sheets import DEVICES
from anystep.device import flops_of
from anystep.files import write_text
from anystep.training.config import Recipe
from anystep.training.plan import HOP_BETWEEN, HOP_INSIDE, LINK_EFFICIENCY, Budget, budget, communication
from anystep.training.recipe_files import load_recipe

ROOT = Path(__file__).parent.parent
EMOJI = ROOT / "configs" / "emoji.yaml"
KIND = "H100"
UTILISATION = 0.4  # of the device's rate, while it computes
SHAPES = {"865M": ("t2i-xl", False), "8B": ("t2i-8b", True)}  # preset, and whether blocks are computed again
DEVICE_COUNTS = (8, 64, 512)
BATCHES = (48, 144)  # whose steps are measured
WORDS = 12  # tokens of the emoji recipe's captions, at most
PARALLEL = ("ddp", "fsdp", "hsdp")


def plan(preset: str, again: bool, parallel: str, devices: int, each: int) -> Recipe:
    over = ["--model.preset", preset, "--model.gradient_checkpointing", str(again).lower(), "--parallel", parallel]
    over += ["--run.batch_size", str(each * devices)]
    return load_recipe(ROOT / "configs" / "t2i-865m.yaml", Recipe, over)


def row(name: str, parallel: str, devices: int, activations: tuple[float, float], flops: float) -> dict[str, Any]:
    """Of one way to share one shape among so many devices.

    Args:
        activations: bytes of a step of no images and of each image.
        flops: operations of an image in a training step.
    """
    kind, recipe = DEVICES[KIND], plan(*SHAPES[name], parallel, devices, 1)
    state: Budget = budget(recipe, devices, torch.bfloat16)
    fixed, each = activations
    fitting = int((kind.memory - state.state_bytes - fixed) // each)
    moved = communication(recipe, devices)
    computing = flops / (UTILISATION * kind.flops)
    seconds = moved.seconds(kind)
    hiding = max(1, -int(-seconds // computing))
    return {
        "shape": name,
        "parallel": parallel,
        "devices": devices,
        "state_gb": state.state_bytes / 1e9,
        "fitting": max(0, fitting),
        **{f"{key}_gb": value / 1e9 for key, value in asdict(moved).items() if key in ("inside", "between")},
        "traffic_ms": 1e3 * seconds,
        "image_ms": 1e3 * computing,
        "hiding": hiding,
        "global_batch": hiding * devices,
    }


def tables() -> list[dict[str, Any]]:
    rows = []
    for name, (preset, again) in SHAPES.items():
        # memory grows with the batch in a straight line
        four, eight = (budget(plan(preset, again, "ddp", 1, count), 1, torch.bfloat16) for count in (4, 8))
        each = (eight.activation_bytes - four.activation_bytes) / 4
        activations = (four.activation_bytes - 4 * each, each)
        for parallel in PARALLEL:
            for devices in DEVICE_COUNTS:
                rows.append(row(name, parallel, devices, activations, four.flops_per_step / 4))
    return rows


def alone(batch: int) -> float:
    """Gigabytes that a step of the emoji recipe adds to a process that holds nothing but its imports."""
    command = [
        sys.executable,
        str(ROOT / "benchmarks" / "step_cost.py"),
        str(EMOJI),
        "--memory-of",
        "transition_central",
    ]
    command += ["--run.batch_size", str(batch)]
    environment = {**os.environ, **GIVEN_BACK}
    said = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment).stdout
    figures = json.loads(said.splitlines()[-1])
    return float(figures["peak_megabytes"] - figures["megabytes_before"]) * 2**20 / 1e9


def measured() -> dict[str, Any]:
    """The emoji recipe on this machine: what was planned against a run of the engine."""
    over = ["--data.limit", "256", "--run.steps", "16", "--run.threads", "1", "--run.log_every", "100"]
    over += ["--run.sample_every", "0", "--objective.diffusion_phase", "0", "--run.checkpoint_every", "100"]
    recipe = load_recipe(EMOJI, Recipe, over)
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        command = [
            sys.executable,
            "-m",
            "anystep",
            "train",
            str(ROOT / "configs" / "emoji.yaml"),
            "--out",
            str(run),
        ]
        subprocess.run([*command, *over], capture_output=True, check=True)
        records = [json.loads(line) for line in (run / "metrics.jsonl").read_text("utf-8").splitlines()]
    few, many = (alone(count) for count in BATCHES)
    planned_few, planned_many = (
        budget(load_recipe(EMOJI, Recipe, ["--run.batch_size", str(count)]), caption_tokens=WORDS) for count in BATCHES
    )
    torch.set_num_threads(1)
    planned, rate = budget(recipe, caption_tokens=WORDS), flops_of(torch.device("cpu"))
    seconds = median(record["seconds"] for record in records[2:])
    return {
        "recipe": "configs/emoji.yaml, no opening phase",
        "few": BATCHES[0],
        "many": BATCHES[1],
        "planned_few": planned_few.device_bytes / 1e9,
        "planned_many": planned_many.device_bytes / 1e9,
        "measured_few": few,
        "measured_many": many,
        "rate_gflops": rate / 1e9,
        "planned_seconds": planned.flops_per_step / rate,
        "measured_seconds": seconds,
        "reached_rate": planned.flops_per_step / rate / seconds,
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Of one shape, in Markdown."""
    names = ["", "devices", "weights, moments, ...", "images that fit", "sent inside", "between", "takes"]
    names += ["an image computes", "hidden from", "global batch"]
    lines = ["| " + " | ".join(names) + " |", "|---" * len(names) + "|"]
    for row in rows:
        cells = [
            row["parallel"],
            row["devices"],
            f"{row['state_gb']:.1f} GB",
            row["fitting"] or "none",
            f"{row['inside_gb']:.1f} GB",
            f"{row['between_gb']:.2f} GB",
            f"{row['traffic_ms']:.0f} ms",
            f"{row['image_ms']:.1f} ms",
            f"{row['hiding']}" + " (does not fit)" * (row["fitting"] < row["hiding"]),
            f"{row['global_batch']:,}",
        ]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def page(rows: list[dict[str, Any]], check: dict[str, Any]) -> str:
    kind, found = DEVICES[KIND], {(row["shape"], row["parallel"], row["devices"]): row for row in rows}
    assert kind.network is not None

    def batches(name: str, parallel: str) -> str:
        return ", ".join(f"{found[name, parallel, count]['global_batch']:,} on {count}" for count in DEVICE_COUNTS)

    return (
        (Path(__file__).parent / "scale.template.md")
        .read_text("utf-8")
        .format(
            kind=KIND,
            tflops=kind.flops / 1e12,
            memory=kind.memory / 1e9,
            link=kind.link / 1e9,
            network=kind.network / 1e9,
            reached=LINK_EFFICIENCY,
            inside=1e6 * HOP_INSIDE,
            between=1e6 * HOP_BETWEEN,
            utilisation=UTILISATION,
            tables="".join(
                f"## {name}\n\n{table([row for row in rows if row['shape'] == name])}\n\n" for name in SHAPES
            ),
            small_state=found["865M", "ddp", 8]["state_gb"],
            large_state=found["8B", "ddp", 8]["state_gb"],
            ddp_small=batches("865M", "ddp"),
            fsdp_small=batches("865M", "fsdp"),
            fsdp_large=batches("8B", "fsdp"),
            hsdp_large=batches("8B", "hsdp"),
            hsdp_state=found["8B", "hsdp", 512]["state_gb"],
            fsdp_state=found["8B", "fsdp", 512]["state_gb"],
            **{name: value for name, value in check.items() if name != "recipe"},
        )
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "scale.md")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "scale.json")
    options = parser.parse_args()
    check, rows = measured(), tables()
    # first: it names the commit, of a tree that the page changes
    write_record(options.out, {"device": KIND, "utilisation": UTILISATION, "rows": rows, "check": check})
    write_text(options.page, page(rows, check))


if __name__ == "__main__":
    main()
