"""Values of options on the command line."""

import random
from pathlib import Path

from areas.area import Area


def act_on_values(folder: Path, out: Path, rng: random.Random) -> int:
    """Odd values for options of commands that then do little."""
    from anystep.cli import main

    number = ["0", "-1", "1", "nan", "inf", "1e30", "9" * 3000, "", "é", "1.5", "１"]
    device, size = (
        ["cpu", "meta", "cuda", "hpu", "\0", "", "auto", "cpu:3"],
        ["64x64", "0x0", "8x8", "x", "1048576x1048576", "9" * 500, "64x100000"],
    )
    name = [
        "builtin",
        "",
        "~",
        "/",
        ".",
        "nowhere",
        "../..",
        "\0",
        "x" * 5000,
        "a/b",
        "t2i-xl",
        "c2i-test",
        "https://x/y",
        "shards:",
        "idx:/",
        "classes:.",
        "parquet:/dev",
        "shards:/dev/zero",
    ]
    command = rng.choice(["plan", "info", "show", "recipes", "data", "train"])
    pick = rng.choice
    words = {
        "plan": [
            "plan",
            f"--model={pick(name)}",
            f"--size={pick(size)}",
            f"--steps={pick(number)}",
            *pick([[], ["--on", "H100"], ["--train", f"--batch={pick(number)}"]]),
        ],
        "info": ["info", f"--model={pick(name)}", f"--device={pick(device)}"],
        "show": ["recipes", "show", pick(name)],
        "recipes": ["recipes", pick(name)],
        "data": [
            "data",
            "show",
            pick(name),
            f"--count={pick(number)}",
            f"--size={pick(['16', *number])}",
            f"--out={out / 'x.png'}",
        ],
        "train": [
            "train",
            pick([*name, "emoji"]),
            "--dry-run",
            f"--run.steps={pick(number)}",
            f"--model.options.depth={pick(number)}",
            f"--run.device={pick(device)}",
        ],
    }[command]
    return main(words)


AREAS = {"option values": Area(lambda folder: None, act_on_values, 1, seconds=15, valid=False)}
