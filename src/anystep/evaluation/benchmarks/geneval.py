"""GenEval (arXiv 2310.11513): object-focused prompts, judged by a detector and a colour classifier.

Images lie as GenEval's own scripts expect them, so either side's scorer reads them:
`00000/metadata.jsonl` and `00000/samples/0000.png`, `0001.png`, ... for each line of the metadata file.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from anystep.bounds import Count, check, shown
from anystep.errors import InputError
from anystep.evaluation.benchmarks.detections import COLOURS, ColourClassifier, Detector, evaluate_image
from anystep.evaluation.benchmarks.generate import GenerationRequest
from anystep.evaluation.benchmarks.scores import over_groups
from anystep.evaluation.image_files import open_image
from anystep.files import parse_json, read_text, write_text

TASKS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
THRESHOLD, COUNTING_THRESHOLD = 0.3, 0.9  # of a detection's score; counting wants surer ones


def read_metadata(path: Path) -> list[dict[str, Any]]:
    """The lines of an `evaluation_metadata.jsonl`. Raises InputError naming the line that is none."""
    entries = []
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        entry = parse_json(line, f"{path}, line {number}")
        try:
            check_entry(entry)
        except ValueError as error:
            raise InputError(f"{path}, line {number}: {error}") from None
        entries.append(entry)
    if not entries:
        raise InputError(f"{path}: no prompts in it")
    return entries


def check_entry(entry: Mapping[str, Any]) -> None:
    """Raises ValueError for an entry that cannot be drawn, or objects that cannot be judged."""
    if not {"tag", "prompt", "include"} <= entry.keys():
        raise ValueError("expected tag, prompt and include")
    if not all(isinstance(entry[key], str) and entry[key].strip() for key in ("tag", "prompt")):
        raise ValueError("tag and prompt must be text")
    objects = [entry["include"], entry.get("exclude", [])]
    if not all(isinstance(part, list) and all(isinstance(each, dict) for each in part) for part in objects):
        raise ValueError("include and exclude must be lists of objects")
    for wanted in [*objects[0], *objects[1]]:
        if not isinstance(wanted.get("class"), str) or "count" not in wanted:
            raise ValueError("every object needs class and count")
        check("count", wanted["count"], Count)
        if wanted.get("color", COLOURS[0]) not in COLOURS:
            raise ValueError(f"color {shown(wanted['color'])}: expected one of {', '.join(COLOURS)}")
    for place, wanted in enumerate(objects[0]):
        match wanted.get("position", ["left of", 0]):
            case [str(), int(other)] if "position" not in wanted or 0 <= other < place:
                continue
        raise ValueError(f"position {shown(wanted['position'])}: expected the number of an object before it")


def coloured(entries: Sequence[Mapping[str, Any]]) -> bool:
    """Whether any prompt asks for a colour."""
    return any("color" in wanted for entry in entries for wanted in entry["include"])


def classes(entries: Sequence[Mapping[str, Any]]) -> set[str]:
    """Everything that the prompts ask for, or not to show."""
    return {wanted["class"] for entry in entries for wanted in [*entry["include"], *entry.get("exclude", [])]}


def read_folder(folder: Path) -> list[tuple[Path, dict[str, Any]]]:
    """The prompt folders of images that lie in GenEval's layout.

    Raises `InputError`: none, or one whose metadata are not one line.
    """
    places = sorted(path.parent for path in folder.glob("*/metadata.jsonl"))
    if not places:
        raise InputError(f"{folder}: no NNNNN/metadata.jsonl in it; expected GenEval's layout")
    found = []
    for place in places:
        entries = read_metadata(place / "metadata.jsonl")
        if len(entries) != 1:
            raise InputError(f"{place / 'metadata.jsonl'}: {len(entries)} lines, expected one")
        found.append((place, entries[0]))
    return found


def places(entries: Sequence[dict[str, Any]], folder: Path) -> list[tuple[Path, dict[str, Any]]]:
    """A prompt folder for each prompt."""
    return [(folder / f"{number:05d}", entry) for number, entry in enumerate(entries)]


def generation_requests(
    entries: Sequence[dict[str, Any]], folder: Path, samples: int, seed: int = 0
) -> list[GenerationRequest]:
    """`samples` images of each prompt."""
    return [
        GenerationRequest(place / "samples" / f"{sample:04d}.png", entry["prompt"], seed + number * samples + sample)
        for number, (place, entry) in enumerate(places(entries, folder))
        for sample in range(samples)
    ]


def write_metadata(entries: Sequence[dict[str, Any]], folder: Path) -> None:
    """Each prompt beside its images."""
    for place, entry in places(entries, folder):
        write_text(place / "metadata.jsonl", json.dumps(entry) + "\n")


def score(
    placed: Sequence[tuple[Path, Mapping[str, Any]]],
    detector: Detector,
    colour_of: ColourClassifier | None,
    results: Path,
) -> dict[str, dict[str, float]]:
    """By task and overall: the share of right images, averaged over prompts.

    Args:
        placed: prompt folders, each with its prompt.
        results: a file for every judgement, a line an image, as GenEval's own summary reads them.

    Raises:
        InputError: a folder without images, or an object whose colour nobody can name.
    """
    groups: dict[str, list[float]] = {task: [] for task in TASKS}
    lines = []
    for place, entry in placed:
        paths = sorted((place / "samples").glob("*.png"))
        if not paths:
            raise InputError(f"{place / 'samples'}: no images in it")
        min_score = COUNTING_THRESHOLD if entry["tag"] == "counting" else THRESHOLD
        right = []
        for path in paths:
            judgement = evaluate_image(open_image(path), entry, detector, colour_of, min_score)
            right.append(float(judgement.correct))
            line = {
                "filename": str(path.relative_to(place.parent)),
                "tag": entry["tag"],
                "prompt": entry["prompt"],
                "metadata": json.dumps(entry),
                "correct": judgement.correct,
                "reason": judgement.reason,
            }
            lines.append(json.dumps(line))
        groups.setdefault(entry["tag"], []).append(sum(right) / len(right))
    write_text(results, "\n".join(lines) + "\n")
    return over_groups(groups)
