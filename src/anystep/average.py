"""`anystep average`: a model of any average of a run's weights, after training; and which length serves best."""

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from anystep.bounds import AverageLength, check
from anystep.errors import InputError
from anystep.evaluation.metrics.frechet_distance import FrechetDistance
from anystep.evaluation.run import Request, evaluate_models
from anystep.files import check_room, write_json
from anystep.pipelines.load import Model, load
from anystep.pipelines.transition import TransitionPipeline
from anystep.publishing import check_free, publishing
from anystep.ranks import Ranks
from anystep.training.snapshots import Rebuilt, Snapshots

REPORT = "lengths"  # folder of the comparison, in the run's
KIND = "model of an average"  # of folders that it writes
ABOUT = "average.json"  # in a model's folder: what it is the average of
MIN_DISTANCE = 1e-12  # a distance that rounding may take below zero has a logarithm


@dataclass(frozen=True)
class Distances:
    """Of one length, the distance at each number of steps; their mean logarithm is its score, and lower is better."""

    length: float
    at: dict[int, float]

    @property
    def score(self) -> float:
        return sum(math.log(max(each, MIN_DISTANCE)) for each in self.at.values()) / len(self.at)


def write_average(run: Path, length: float, out: Path, step: int | None = None) -> Rebuilt:
    """Write the model whose weights are the average of this length to the folder `out`, in diffusers' layout.

    Everything but the weights is that of the run's own pipeline.

    Args:
        run: the run's folder, with snapshots.
        step: of the snapshot that it ends at, the last when None.

    Raises:
        InputError: no snapshots or pipeline, no such step, a length out of reach, a damaged snapshot, or a folder that
            cannot be written or was not made by this command.
    """
    out = _free(out, run)
    (plan,), base = _planned(run, [length], step)
    (made,) = _models(run, [plan], base)
    _write(made.pipeline, out, plan)
    return plan


def choose_length(
    run: Path, lengths: Sequence[float], out: Path, request: Request, step: int | None = None
) -> list[Distances]:
    """Measure the averages of these lengths, write the best to `out`, and return all, the best first.

    Best is the smallest mean logarithm of the Fréchet distance over the numbers of steps, on the half of the data and
    with seeds that `anystep evaluate` does not use by default. The report is in the folder `lengths` of the run, where
    the same command goes on.

    Args:
        request: steps, data and how to measure; its models, metrics and folder are set here.

    Raises:
        InputError: as `write_average` and `evaluate_models` do.
    """
    out = _free(out, run)
    plans, base = _planned(run, list(dict.fromkeys(lengths)), step)
    models = _models(run, plans, base)
    asked = replace(request, out=run / REPORT, model=models, images=[], metrics=[FrechetDistance.name], validation=True)
    figures = evaluate_models(asked)
    if not figures:  # another process measures and writes
        return []
    measured = [_distances(*each) for each in zip(plans, figures["models"], strict=True)]
    found = sorted(measured, key=lambda each: each.score)
    best = next(place for place, plan in enumerate(plans) if plan.length == found[0].length)
    chosen = {str(each.length): {str(steps): distance for steps, distance in each.at.items()} for each in found}
    about = {"distance": _named(figures["better"])[0], "data": asked.data, "chosen from": chosen}
    _write(models[best].pipeline.to("cpu"), out, plans[best], about)
    return found


def table(found: Sequence[Distances]) -> str:
    """Distances over length and steps, by length; the best is marked."""
    steps = list(found[0].at)
    rows = [["length", *(f"{count} step{'s' * (count > 1)}" for count in steps), "mean log"]]
    for each in sorted(found, key=lambda one: one.length):
        best = "  best" * (each is found[0])
        rows.append([str(each.length), *(f"{each.at[count]:.4g}" for count in steps), f"{each.score:.3f}{best}"])
    return "\n".join("".join(cell.ljust(12) for cell in row).rstrip() for row in rows)


def _free(out: Path, run: Path) -> Path:
    """The folder, if a model can be written there."""
    out = out.resolve()
    check_free(out, KIND, _is_average)
    check_room(out, sum(path.stat().st_size for path in (run / "pipeline").rglob("*") if path.is_file()))
    return out


def _is_average(folder: Path) -> bool:
    return (folder / ABOUT).exists()


def _planned(run: Path, lengths: Sequence[float], step: int | None) -> tuple[list[Rebuilt], Snapshots]:
    snapshots = Snapshots(run)
    plans = snapshots.plan([check("length", each, AverageLength) for each in lengths], step)
    if not (run / "pipeline" / "model_index.json").exists():
        raise InputError(
            f"{str(run)!r} has no pipeline yet, of which an average takes all but the weights: a run writes it when it "
            "ends, or is interrupted"
        )
    return plans, snapshots


def _models(run: Path, plans: Sequence[Rebuilt], snapshots: Snapshots) -> list[Model]:
    """One for each plan, on the CPU, which share all but their transformers."""
    base = load(run / "pipeline", "cpu").pipeline
    states = snapshots.rebuild(plans, base.transformer)
    made = []
    for plan, state in zip(plans, states, strict=True):
        transformer = base.transformer if len(plans) == 1 else copy.deepcopy(base.transformer)
        transformer.load_state_dict(state)
        state.clear()
        pipeline = base if len(plans) == 1 else type(base).from_pipe(base, transformer=transformer)
        pipeline.set_progress_bar_config(disable=True)
        made.append(Model(f"length {plan.length}", pipeline))
    return made


def _distances(plan: Rebuilt, measured: Mapping[str, Any]) -> Distances:
    """Raises InputError for a distance that is not finite: no length can be chosen by it."""
    at = {int(point["steps"]): float(_named(point["metrics"])[1]["value"]) for point in measured["points"]}
    for steps, distance in at.items():
        if not math.isfinite(distance):
            raise InputError(f"the distance of length {plan.length} at {steps} steps is not finite: leave it out")
    return Distances(plan.length, at)


def _named(metrics: Mapping[str, Any]) -> tuple[str, Any]:
    """The Fréchet distance among metrics, whose names end in that of the extractor."""
    return next((name, value) for name, value in metrics.items() if name.startswith(FrechetDistance.name))


def _write(pipeline: TransitionPipeline, out: Path, plan: Rebuilt, about: Mapping[str, Any] | None = None) -> None:
    if not Ranks().is_main:
        return
    made_of = {"length": plan.length, "step": plan.step, "snapshots": len(plan.weights), "misfit": plan.misfit}
    with publishing(out, KIND, _is_average) as part:
        pipeline.save_pretrained(part)
        write_json(part / ABOUT, {**made_of, **(about or {})})
