"""What is to be seen of training: run folders with their curves and sample grids, and reports of comparisons."""

import re
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, get_args

from annotated_types import Ge, Le, Len
from pydantic import BaseModel, ConfigDict, ValidationError

from anystep import bounds
from anystep.bounds import shown
from anystep.errors import InputError
from anystep.files import parse_json, read_json
from anystep.plain_yaml import read_yaml
from anystep.training.run import CONFIG, METRICS

REPORT = "report.json"
DEPTH = 3  # folders below those that are named in which runs are looked for
MOST = 200  # runs and reports that are listed
POINTS = 120  # of a curve
PACE = 50  # steps that the pace is the median of
Figure = Annotated[float, Ge(-1e100), Le(1e100)]  # sums and products of them are numbers still
Text = Annotated[str, Len(0, bounds.MAX_TEXT)]  # of a length, and thereby without lone surrogates, which are no UTF-8
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
    # it may not be entered, is being removed, or has a name that is no text, by which nobody could ask for it
    with suppress(OSError, UnicodeEncodeError):
        told = folder.relative_to(root.parent).as_posix()
        told.encode()
        for name, kind in ((METRICS, "run"), (REPORT, "comparison")):
            path = folder / name
            if path.is_file() and not path.is_symlink() and (kind == "run" or _is_comparison(path)):
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
            with suppress(InputError):
                record = parse_json(line, str(path))
                if _is(bounds.OptionalCount, record.get("step")):
                    self.records.append(record)
        return bool(whole)

    def told(self) -> dict[str, Any]:
        """Curves, pace and grids as plain values."""
        names = [name for name in CURVES if any(name in record for record in self.records[-POINTS:])] or ["loss"]
        last = self.records[-1] if self.records else {}
        steps, step = self._steps(), last.get("step", 0)
        seconds = [record["seconds"] for record in self.records[-PACE:] if _is(Figure, record.get("seconds"))]
        pace = statistics.median(seconds) if seconds else None
        return {
            "curves": {name: thinned(self.records, name) for name in names},
            "step": step,
            "steps": steps,
            "images_per_second": _figure(last.get("images_per_second")),
            "seconds_left": None if pace is None or steps is None else max(0, steps - step) * pace,
            "seconds_since": time.time() - (self.folder / METRICS).stat().st_mtime,
            "skipped_steps": _figure(last.get("skipped_steps")),
            "bins": next(filter(None, (_bins(each) for each in reversed(self.records))), None),
            "grids": grids(self.folder),
        }

    def _steps(self) -> int | None:
        try:
            steps = read_yaml(self.folder / CONFIG, "the run's").get("run", {}).get("steps")
        except (InputError, AttributeError):
            return None
        return steps if _is(bounds.OptionalCount, steps) else None


def grids(folder: Path) -> list[str]:
    """The names of a run's sample grids, the first first."""
    inside = (folder / "samples").iterdir() if (folder / "samples").is_dir() else ()
    return sorted(path.name for path in inside if GRID.fullmatch(path.name))


def thinned(records: Sequence[Mapping[str, Any]], name: str) -> list[tuple[int, float]]:
    """Steps and means of a figure over so many stretches of equal length that a curve has at most `POINTS`."""
    known = [(record["step"], record[name]) for record in records if _is(Figure, record.get(name))]
    length = max(1, -(-len(known) // POINTS))
    stretches = [known[place : place + length] for place in range(0, len(known), length)]
    return [(each[-1][0], statistics.fmean(value for _, value in each)) for each in stretches]


def comparison(folder: Path) -> dict[str, Any]:
    """The curves of a comparison's report: of each metric and variant, the steps with the figure and its interval.

    Raises:
        InputError: a report that is none.
    """
    content = read_json(folder / REPORT)
    try:
        report = _Report.model_validate(content)
        return {
            "better": report.better,
            "command": report.command,
            "samples": report.samples,
            "models": [
                {
                    "name": model.name,
                    "seeds": len(model.seeds),
                    "points": {
                        metric: [[point.steps, *vars(point.metrics[metric]).values()] for point in model.points]
                        for metric in report.better
                    },
                }
                for model in report.models
            ],
        }
    except (ValidationError, KeyError) as error:
        wrong = f"no figures of {error}"
        if isinstance(error, ValidationError):
            first = error.errors()[0]
            wrong = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
        raise InputError(f"{shown(str(folder / REPORT))} is no report of a comparison: {wrong}") from None


class _Part(BaseModel):
    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)


class _Estimate(_Part):
    """Null is what JSON cannot say."""

    value: Figure | None
    low: Figure | None
    high: Figure | None


class _Point(_Part):
    steps: bounds.SamplingSteps
    metrics: dict[str, _Estimate]


class _Model(_Part):
    name: Text
    seeds: list[Any]
    points: list[_Point]


class _Report(_Part):
    better: dict[Text, Text]
    command: Text | None = None
    samples: bounds.Count
    models: list[_Model]


def _is(kind: Any, value: Any) -> bool:
    return isinstance(value, get_args(kind)[0] | int) and not isinstance(value, bool) and bounds.is_within(kind, value)


def _figure(value: Any) -> float | None:
    return value if _is(Figure, value) else None


def _bins(record: Mapping[str, Any]) -> list[list[float | None]] | None:
    """The residuals of a record by bins, if there are any."""
    rows = record.get("residual_bins")
    if not isinstance(rows, list) or not all(isinstance(row, list) for row in rows):
        return None
    return [[_figure(value) for value in row] for row in rows]
