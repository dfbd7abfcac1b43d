"""Scores of a benchmark by group and number of steps: what all of them report."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from anystep.atomic import write_text
from anystep.environment import environment


def share(values: Sequence[float]) -> dict[str, float]:
    """Mean of values in 0..1 with 1.96 standard errors on each side, from independent prompts."""
    half = 1.96 * stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.inf
    return {"value": mean(values), "low": max(0.0, mean(values) - half), "high": min(1.0, mean(values) + half)}


def over_groups(groups: Mapping[str, Sequence[float]]) -> dict[str, dict[str, float]]:
    """Each group's share, and `overall`, the mean over groups, as GenEval averages its tasks."""
    scores = {name: share(values) for name, values in groups.items() if values}
    halves = [(score["high"] - score["low"]) / 2 for score in scores.values()]
    value = mean(score["value"] for score in scores.values())
    half = math.sqrt(sum(each**2 for each in halves)) / len(halves)
    return {**scores, "overall": {"value": value, "low": max(0.0, value - half), "high": min(1.0, value + half)}}


def write_scores(
    folder: Path, benchmark: str, model: str, points: Sequence[Mapping[str, Any]], notes: Sequence[str], **facts: Any
) -> dict[str, Any]:
    """`report.json` and `report.md`.

    Args:
        points: `steps`, `nfe` (None where unknown) and `scores`: group -> value, low and high.
        facts: further entries of the report.
    """
    report = {
        "benchmark": benchmark,
        "model": model,
        "points": list(points),
        **facts,
        "notes": list(notes),
        "versions": environment(),
    }
    write_text(folder / "report.json", json.dumps(report, indent=1) + "\n")
    write_text(folder / "report.md", table(report))
    return report


def table(report: Mapping[str, Any]) -> str:
    """Groups down, numbers of steps across."""
    points = report["points"]
    heads = [f"{point['steps']} steps" if point["steps"] else "images" for point in points]
    lines = [f"# {report['benchmark']}: {report['model']}", "", f"| | {' | '.join(heads)} |"]
    lines.append(f"| --- | {' | '.join('--:' for _ in points)} |")
    if any(point["nfe"] for point in points):
        lines.append(f"| NFE | {' | '.join(str(point['nfe'] or '') for point in points)} |")
    for name in points[0]["scores"] if points else ():
        cells = []
        for point in points:
            score = point["scores"].get(name)
            cells.append("" if score is None else f"{score['value']:.3f} ± {(score['high'] - score['low']) / 2:.3f}")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", *(f"- {note}" for note in report["notes"]), ""])
