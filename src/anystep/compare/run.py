"""A comparison from its file to its report: every variant trained with every seed, and all of them measured alike."""

import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from anystep.bounds import Threads, check
from anystep.compare.experiment import ComparedRun, Comparison, variant_recipe
from anystep.compare.measure import Measurement
from anystep.compare.milestones import keeping
from anystep.compare.training import train_all, train_run
from anystep.device import pick_device
from anystep.errors import InputError
from anystep.evaluation.report import check_drawing
from anystep.files import HOLDER, LOCK, check_names, check_settings, claimed, remove_parts, write_text
from anystep.plain_yaml import dump_yaml, read_yaml
from anystep.publishing import publishing
from anystep.training.assemble import TrainingInputs, prepare_data, prepare_network, reads_captions
from anystep.training.config import Recipe
from anystep.training.objective import make_objective
from anystep.training.run import FREE_TO_CHANGE, RUN, completed, flat, latents_path

KIND = "comparison"
PLANNED = "planned.yaml"  # of a run folder, and of the whole: what it was begun for


def compare(
    comparison: Comparison,
    out: Path,
    jobs: int = 1,
    on_run: Callable[[str], None] = lambda what: None,
    command: str | None = None,
    allow_code: bool = False,
) -> dict[str, Any]:
    """Train what is not trained yet, measure everything, write the report into `out` and return it.

    What is wrong with the last variant, the extractor or the data is said before the first run is trained.

    Args:
        jobs: runs that are trained at once.
        command: that asked for it, for the report.
        allow_code: run an extractor that is TorchScript.
    """
    check("jobs", jobs, Threads)
    runs = _runs(comparison, out)
    device = pick_device(comparison.recipe.run.device)
    measurement = Measurement.open(comparison, out, device, allow_code)
    check_drawing()
    with claimed(out, KIND, (PLANNED,) if _made_before(out) else ()):
        remove_parts(out, below=False)
        remove_parts(out / "evaluation")
        _prepare_runs(comparison.recipe, runs, out, measurement)
        real, controls = measurement.real_images()
        train_all(runs, jobs, on_run, partial(finish_run, comparison, out, device=device, allow_code=allow_code))
        figures, models = measurement.report(runs, real, controls, on_run)
        return measurement.write(out, figures, models, command)


def finish_run(
    comparison: Comparison, out: Path, recipe: Recipe, folder: Path, device: torch.device, allow_code: bool
) -> None:
    """Train a run in a process of its own, and generate all that it is measured by: the folder keeps it."""
    train_run(recipe, folder)
    Measurement.open(comparison, out, device, allow_code).points(recipe, folder)


def _runs(comparison: Comparison, out: Path) -> list[ComparedRun]:
    """All runs. Raises `InputError` for seeds that cannot be paired, and names that cannot be those of folders."""
    comparison.check_seeds()
    runs = [
        ComparedRun(name, seed, _recipe(comparison, name, seed), out / "runs" / f"{_plain(name)}-{seed}")
        for name in comparison.variants
        for seed in comparison.seeds_of(name)
    ]
    if len({run.folder for run in runs}) < len(runs):
        raise InputError(f"variants {', '.join(map(repr, comparison.variants))}: two names are alike but for signs")
    check_names(((run.folder.name,) for run in runs), "the variant")
    return runs


def _prepare_runs(shared: Recipe, runs: Sequence[ComparedRun], out: Path, measurement: Measurement) -> None:
    """The folders of all runs with their data, which are encoded once and linked into each.

    Raises `InputError`: a folder that was begun for something else, or a variant that could not be trained or measured.
    """
    _check_settings(shared, out / PLANNED, of_data=True)
    for run in runs:
        with claimed(run.folder, RUN, (PLANNED,)):
            _check_settings(run.recipe, run.folder / PLANNED)
    inputs = prepare_data(shared, out, measurement.device)
    for run in runs:
        _check_variant(run.variant, replace(inputs, recipe=run.recipe), shared, measurement)
        for place in range(len(shared.data.shares)):
            _link_folder(latents_path(out, place), latents_path(run.folder, place))


def _recipe(comparison: Comparison, name: str, seed: int) -> Recipe:
    """The recipe of one run, which keeps what milestones need."""
    recipe = variant_recipe(comparison, name, seed)
    if not comparison.milestones:
        return recipe
    return recipe.model_copy(update={"run": keeping(recipe.run, comparison.milestones)})


def _plain(name: str) -> str:
    return "".join(letter if letter.isalnum() or letter in ".-" else "-" for letter in name.lower()).strip("-")


def _made_before(out: Path) -> bool:
    """Whether a comparison was begun there, before folders were marked."""
    try:
        return {"data", "codec"} <= read_yaml(out / PLANNED, "plan").keys()
    except InputError:
        return False


def _check_settings(recipe: Recipe, path: Path, of_data: bool = False) -> None:
    """Note what a folder is for, or refuse one that was begun for something else.

    With `of_data` only the data and the codec matter, which all runs share.
    """
    content = recipe.model_dump(mode="json")
    if path.exists():
        try:
            before = read_yaml(path, "plan")
        except InputError as error:
            raise InputError(f"{error}: nobody knows what is beside it; choose another --out") from None
        if of_data:
            before = {"data": before.get("data", {}), "model": {"codec": before.get("codec")}}
        there, _ = completed(before, Recipe)  # values that are newer than the plan have their defaults

        def may_differ(key: str) -> object:
            if of_data and not (key.startswith("data.") or key == "model.codec"):
                return True
            return key != "run.steps" and FREE_TO_CHANGE.fullmatch(key)

        check_settings(path.parent, "runs that differ", there, dict(flat(content)), may_differ)
    write_text(path, dump_yaml({"data": content["data"], "codec": recipe.model.codec} if of_data else content))


def _check_variant(name: str, inputs: TrainingInputs, shared: Recipe, measurement: Measurement) -> None:
    """Raise `InputError` for a variant that could not be trained or measured."""
    recipe = inputs.recipe
    try:
        make_objective(recipe)
        inputs.check_batch()
        measurement.check_variant(None if reads_captions(recipe.model) else inputs.data.class_names)
        if reads_captions(recipe.model) == reads_captions(shared.model) and recipe.alignment is None:
            with torch.device("meta"):  # its options fit together, which costs no memory to see
                prepare_network(inputs)
    except InputError as error:
        raise InputError(f"variant {name!r}: {error}") from None


def _link_folder(encoded: Path, linked: Path) -> None:
    """Encoded data as a folder of its own, which appears whole; locks are not shared."""
    if not encoded.exists() or linked.exists():
        return
    with publishing(linked, None) as part:
        shutil.copytree(encoded, part, copy_function=_link, ignore=shutil.ignore_patterns(LOCK, HOLDER, "*.part"))


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        shutil.copy(source, target)
