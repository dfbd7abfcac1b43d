"""GenEval (arXiv 2310.11513): object-focused prompts, judged by a detector and a colour classifier.

Images lie as GenEval's own scripts expect them, so either side's scorer reads them:
`00000/metadata.jsonl` and `00000/samples/0000.png`, `0001.png`, ... for each line of the metadata file.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from anystep.atomic import write_text
from anystep.errors import InputError
from anystep.evaluation.benchmarks.detections import ColourClassifier, Detector, examine
from anystep.evaluation.benchmarks.draw import Order, open_image
from anystep.evaluation.benchmarks.scores import over_groups

TASKS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
THRESHOLD, COUNTING_THRESHOLD = 0.3, 0.9  # of a detection's score; counting wants surer ones


def read_metadata(path: Path) -> list[dict[str, Any]]:
    """The lines of an `evaluation_metadata.jsonl`. Raises InputError naming the line that is none."""
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"GenEval metadata {str(path)!r}: {error}") from None
    entries = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            if not {"tag", "prompt", "include"} <= set(entry):
                raise ValueError("expected tag, prompt and include")
            if any(not {"class", "count"} <= set(wanted) for wanted in entry["include"]):
                raise ValueError("every entry of include needs class and count")
        except (ValueError, TypeError) as error:
            raise InputError(f"{path}, line {number}: {error}") from None
        entries.append(entry)
    if not entries:
        raise InputError(f"{path}: no prompts in it")
    return entries


def orders(entries: Sequence[dict[str, Any]], folder: Path, samples: int, seed: int = 0) -> list[Order]:
    """`samples` images of each prompt; writes the metadata beside them."""
    asked = []
    for number, entry in enumerate(entries):
        place = folder / f"{number:05d}"
        (place / "samples").mkdir(parents=True, exist_ok=True)
        write_text(place / "metadata.jsonl", json.dumps(entry) + "\n")
        asked += [
            Order(place / "samples" / f"{sample:04d}.png", entry["prompt"], seed + number * samples + sample)
            for sample in range(samples)
        ]
    return asked


def score(folder: Path, detector: Detector, colour_of: ColourClassifier | None) -> dict[str, dict[str, float]]:
    """By task and overall: the share of right images, averaged over prompts; every judgement goes to `results.jsonl`.

    Raises:
        InputError: no prompt folders, or one without images.
    """
    places = sorted(path.parent for path in folder.glob("*/metadata.jsonl"))
    if not places:
        raise InputError(f"{folder}: no NNNNN/metadata.jsonl in it; expected GenEval's layout")
    groups: dict[str, list[float]] = {task: [] for task in TASKS}
    lines = []
    for place in places:
        (entry,) = read_metadata(place / "metadata.jsonl")
        paths = sorted((place / "samples").glob("*.png"))
        if not paths:
            raise InputError(f"{place / 'samples'}: no images in it")
        least = COUNTING_THRESHOLD if entry["tag"] == "counting" else THRESHOLD
        right = []
        for path in paths:
            judgement = examine(open_image(path), entry, detector, colour_of, least)
            right.append(float(judgement.correct))
            lines.append(
                json.dumps(
                    {
                        "filename": str(path.relative_to(folder)),
                        "tag": entry["tag"],
                        "prompt": entry["prompt"],
                        "correct": judgement.correct,
                        "reason": judgement.reason,
                    }
                )
            )
        groups.setdefault(entry["tag"], []).append(sum(right) / len(right))
    write_text(folder / "results.jsonl", "\n".join(lines) + "\n")
    return over_groups(groups)
