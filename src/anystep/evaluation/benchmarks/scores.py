"""Scores of a benchmark by group and number of steps: what all of them report."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from anystep.environment import environment
from anystep.errors import InputError
from anystep.files import write_json, write_text
from anystep.markdown import markdown_table
from anystep.sampling import steps_label

Z = 1.96


def share(values: Sequence[float]) -> dict[str, float]:
    """Mean of values in 0..1 of independent prompts with its 95 % interval (Wilson's, which holds at 0 and 1 too)."""
    count, value = len(values), mean(values)
    middle, widen = value + Z**2 / (2 * count), 1 + Z**2 / count
    half = Z * math.sqrt(value * (1 - value) / count + Z**2 / (4 * count**2))
    low, high = (middle - half) / widen, (middle + half) / widen
    return {"value": value, "low": max(0.0, min(value, low)), "high": min(1.0, max(value, high))}  # whatever is rounded


def over_groups(groups: Mapping[str, Sequence[float]]) -> dict[str, dict[str, float]]:
    """Each group's share, and `overall`, the mean over groups, as GenEval averages its tasks.

    Its interval adds the squares of the groups' distances to their ends, below and above.
    """
    scores = {name: share(values) for name, values in groups.items() if values}
    if not scores:
        raise InputError("nothing to score: no prompts")
    value = mean(score["value"] for score in scores.values())

    def reach(end: str) -> float:
        return math.sqrt(sum((score[end] - score["value"]) ** 2 for score in scores.values())) / len(scores)

    low, high = max(0.0, value - reach("low")), min(1.0, value + reach("high"))
    return {**scores, "overall": {"value": value, "low": low, "high": high}}


def write_scores(
    folder: Path, benchmark: str, model: str, points: Sequence[Mapping[str, Any]], notes: Sequence[str], **facts: Any
) -> dict[str, Any]:
    """`report.json` and `report.md`.

    Args:
        points: `steps`, `nfe` (None where unknown) and `scores`: group -> value, low and high.
        facts: further entries of the report, where they are known.
    """
    report = {
        "benchmark": benchmark,
        "model": model,
        "points": list(points),
        **{name: value for name, value in facts.items() if value is not None},
        "notes": list(notes),
        "versions": environment(),
    }
    write_json(folder / "report.json", report)
    write_text(folder / "report.md", table(report))
    return report


def table(report: Mapping[str, Any]) -> str:
    """Groups down, numbers of steps across."""
    points = report["points"]
    scores, nfe = [point["scores"] for point in points], [point["nfe"] or "" for point in points]
    heads = [steps_label(point["steps"]) if point["steps"] else "images" for point in points]
    if "truth" in report:  # what a judge makes of pictures that are right
        scores, nfe, heads = [*scores, report["truth"]], [*nfe, ""], [*heads, "true pictures"]
    rows = [[name, *(_figure(each.get(name)) for each in scores)] for name in (scores[0] if points else ())]
    if any(nfe):
        rows.insert(0, ["NFE", *nfe])
    title, notes = f"# {report['benchmark']}: {report['model']}", [f"- {note}" for note in report["notes"]]
    return "\n".join([title, "", *markdown_table([None, *heads], rows), "", *notes, ""])


def _figure(score: Mapping[str, float] | None) -> str:
    return "" if score is None else f"{score['value']:.3f} ({score['low']:.3f} to {score['high']:.3f})"
