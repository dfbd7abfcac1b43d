"""What is to be seen of training: run folders with their curves and sample grids, and reports of comparisons."""

import json
import re
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from anystep.bounds import shown
from anystep.errors import InputError
from anystep.files import read_json
from anystep.plain_yaml import read_yaml
from anystep.training.run import CONFIG, METRICS

REPORT = "report.json"
DEPTH = 3  # folders below those that are named in which runs are looked for
MOST = 200  # runs and reports that are listed
POINTS = 120  # of a curve
PACE = 50  # steps that the pace is the median of
GRID = re.compile(r"step-(\d{8})\.png")
# residuals by interval, as a run logs them; a codec's run has its loss
CURVES = ("residual_diffusion", "residual_short", "residual_long")


@dataclass(frozen=True)
class Found:
    """A folder to look at: its name, `run` or `comparison`, and when it was last written to."""

    name: str
    kind: str
    folder: Path
    written: float


class Runs:
    """What is in some folders, and nothing beside them."""

    def __init__(self, roots: Sequence[Path]) -> None:
        """Raises `InputError` for two folders of one name, by which they are told apart."""
        self.roots = [root.resolve() for root in roots]
        names = [root.name for root in self.roots]
        for name in names:
            if names.count(name) > 1:
                raise InputError(f"two folders of runs are called {shown(name)}: watch the folder above them")

    def found(self) -> list[Found]:
        """Runs and comparisons, the latest first."""
        each = (found for root in self.roots for found in _below(root, root, DEPTH))
        return sorted(each, key=lambda found: found.written, reverse=True)[:MOST]

    def named(self, name: str, kind: str) -> Found:
        """One of them. Raises `InputError` for a name of none."""
        for found in self.found():
            if (found.name, found.kind) == (name, kind):
                return found
        raise InputError(f"{shown(name)} is no {kind} that is watched")


def _below(folder: Path, root: Path, depth: int) -> Iterator[Found]:
    with suppress(OSError):  # may not be entered, or is being removed
        for name, kind in ((METRICS, "run"), (REPORT, "comparison")):
            path = folder / name
            if path.is_file() and not path.is_symlink() and (kind == "run" or _is_comparison(path)):
                told = folder.relative_to(root.parent).as_posix()
                yield Found(told, kind, folder, path.stat().st_mtime)
        for path in sorted(folder.iterdir()) if depth else ():
            if path.is_dir() and not path.is_symlink():
                yield from _below(path, root, depth - 1)


def _is_comparison(path: Path) -> bool:
    with_objectives = path.with_name("planned.yaml"), path.with_name("runs")
    return any(each.exists() for each in with_objectives)


@dataclass
class RunLog:
    """The log of a run, read on where it was left."""

    folder: Path
    records: list[dict[str, Any]] = field(default_factory=list)
    _read: int = 0

    def update(self) -> bool:
        """Read what is new; whether there was anything. A log that was cut, by resuming, is read again."""
        path = self.folder / METRICS
        size = path.stat().st_size
        if size < self._read:
            self._read, self.records = 0, []
        with path.open("rb") as file:
            file.seek(self._read)
            content = file.read()
        whole = content[: content.rfind(b"\n") + 1]
        self._read += len(whole)
        for line in whole.splitlines():
            try:
                record = json.loads(line)
            except ValueError:
                continue
            if isinstance(record, dict) and isinstance(record.get("step"), int):
                self.records.append(record)
        return bool(whole)

    def told(self) -> dict[str, Any]:
        """Curves, pace and grids as plain values."""
        names = [name for name in CURVES if any(name in record for record in self.records[-POINTS:])] or ["loss"]
        last = self.records[-1] if self.records else {}
        steps, step = self._steps(), last.get("step", 0)
        seconds = [record["seconds"] for record in self.records[-PACE:] if _is_number(record.get("seconds"))]
        pace = statistics.median(seconds) if seconds else None
        return {
            "curves": {name: thinned(self.records, name) for name in names},
            "step": step,
            "steps": steps,
            "images_per_second": last.get("images_per_second"),
            "seconds_left": None if pace is None or steps is None else max(0, steps - step) * pace,
            "seconds_since": time.time() - (self.folder / METRICS).stat().st_mtime,
            "skipped_steps": last.get("skipped_steps"),
            "bins": next((each["residual_bins"] for each in reversed(self.records) if "residual_bins" in each), None),
            "grids": grids(self.folder),
        }

    def _steps(self) -> int | None:
        try:
            steps = read_yaml(self.folder / CONFIG, "the run's").get("run", {}).get("steps")
        except (InputError, AttributeError):
            return None
        return steps if isinstance(steps, int) else None


def grids(folder: Path) -> list[str]:
    """The names of a run's sample grids, the first first."""
    inside = (folder / "samples").iterdir() if (folder / "samples").is_dir() else ()
    return sorted(path.name for path in inside if GRID.fullmatch(path.name))


def thinned(records: Sequence[Mapping[str, Any]], name: str) -> list[tuple[int, float]]:
    """Steps and means of a figure over so many stretches of equal length that a curve has at most `POINTS`."""
    known = [(record["step"], record[name]) for record in records if _is_number(record.get(name))]
    length = max(1, -(-len(known) // POINTS))
    stretches = [known[place : place + length] for place in range(0, len(known), length)]
    return [(each[-1][0], statistics.fmean(value for _, value in each)) for each in stretches]


def comparison(folder: Path) -> dict[str, Any]:
    """The curves of a comparison's report: of each metric and variant, the steps with the figure and its interval.

    Raises:
        InputError: a report that is none.
    """
    report = read_json(folder / REPORT)
    try:
        return {
            "better": report["better"],
            "command": report.get("command"),
            "samples": report["samples"],
            "models": [
                {
                    "name": model["name"],
                    "seeds": len(model["seeds"]),
                    "points": {
                        metric: [
                            [point["steps"], *(point["metrics"][metric][key] for key in ("value", "low", "high"))]
                            for point in model["points"]
                        ]
                        for metric in report["better"]
                    },
                }
                for model in report["models"]
            ],
        }
    except (KeyError, TypeError, AttributeError):
        raise InputError(f"{shown(str(folder / REPORT))} is no report of a comparison") from None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value == value
