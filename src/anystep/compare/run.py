"""Training every variant with every seed, and measuring all of them alike."""

import os
import shutil
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import active_children, get_context, parent_process
from pathlib import Path
from threading import Thread
from types import FrameType
from typing import Any

import torch
from PIL import Image

from anystep.bounds import Threads, check
from anystep.codecs import Codec
from anystep.compare.experiment import Comparison, variant_recipe
from anystep.compare.figures import Replicates, over_seeds, side_by_side
from anystep.compare.milestones import (
    DrawnMilestone,
    Milestone,
    check_milestones,
    draw_milestones,
    keeping,
    measured_milestones,
    time_to_quality,
)
from anystep.compare.report import markdown
from anystep.conditioning import Conditioner
from anystep.contact_sheet import contact_sheet, save_image
from anystep.data.latents import LatentSet
from anystep.data.sources import ConcatSource
from anystep.device import pick_device
from anystep.environment import environment
from anystep.errors import InputError
from anystep.evaluation.evaluate import (
    VALIDATION_SEED,
    Evaluation,
    Point,
    describe_model,
    generate_points,
    observe_real,
    observe_reference,
    report,
)
from anystep.evaluation.extractors.registry import load_extractor, try_extractor
from anystep.evaluation.metrics.base import Observed
from anystep.evaluation.metrics.registry import check_measurable, choose_metrics
from anystep.evaluation.reference import Reference
from anystep.evaluation.report import check_drawing, curve
from anystep.evaluation.step_plans import BESIDE, VALIDATION_SAMPLES, Search, plan_model
from anystep.files import (
    HOLDER,
    LOCK,
    check_names,
    check_settings,
    claimed,
    publishing,
    remove_parts,
    write_json,
    write_text,
)
from anystep.pipelines.load import Model, find, load
from anystep.pipelines.scheduler import write_plans
from anystep.plain_yaml import dump_yaml, read_yaml
from anystep.training.assemble import prepare_data, prepare_network, reads_captions
from anystep.training.config import Recipe
from anystep.training.objective import make_objective
from anystep.training.run import FREE_TO_CHANGE, RUN, completed, flat, latents_path
from anystep.training.train import train

KIND = "comparison"
PLANNED = "planned.yaml"  # of a run folder, and of the whole: what it was begun for


def train_run(recipe: Recipe, folder: Path) -> None:
    """One run, in a process of its own or in this one; an interrupted one is resumed, a finished one is kept."""

    if (folder / "done").exists():
        return
    torch.set_num_threads(recipe.run.threads or 1)
    if train(recipe, folder)["step"] < recipe.run.steps:
        raise KeyboardInterrupt
    (folder / "done").touch()


def _leave_with_parent() -> None:
    """Let this process end when the one that started it is gone: it would hold its run folder for nobody."""
    parent = parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    Thread(target=watch, daemon=True).start()


@contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """SIGTERM as a Ctrl-C, so that the runs in other processes are told, and save where they are."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def finish_run(
    comparison: Comparison, out: Path, recipe: Recipe, folder: Path, device: torch.device, allow_code: bool
) -> None:
    """`train_run` in a process of its own, which also draws all that the run is measured by: the folder keeps it."""
    train_run(recipe, folder)
    Measuring.open(comparison, out, device, allow_code).points(recipe, folder)


def _train_all(
    runs: Mapping[tuple[str, int], tuple[Recipe, Path]],
    jobs: int,
    on_run: Callable[[str], None],
    finish: Callable[[Recipe, Path], None],
) -> None:
    """All runs, so many at once. Raises `InputError` that names the run that cannot be trained.

    Args:
        finish: what becomes of a run where there are several processes; one that is alone trains only.
    """
    if jobs == 1:
        for (name, seed), run in runs.items():
            try:
                train_run(*run)
            except InputError as error:
                raise InputError(f"{name}, seed {seed}: {error}") from None
            on_run(f"trained {name}, seed {seed}")
        return
    with _terminated_as_interrupted(), ProcessPoolExecutor(jobs, get_context("spawn"), _leave_with_parent) as pool:
        waiting = {pool.submit(finish, *run): what for what, run in runs.items()}
        try:
            for future in as_completed(waiting):
                name, seed = waiting[future]
                try:
                    future.result()
                except InputError as error:
                    raise InputError(f"{name}, seed {seed}: {error}") from None
                except BrokenProcessPool:
                    raise InputError(
                        "the process of a run was killed, perhaps for its memory: the same command goes on; fewer "
                        "--jobs take less"
                    ) from None
                on_run(f"trained {name}, seed {seed}")
        except BaseException:  # what has not begun shall not begin, and what runs shall save and end
            pool.shutdown(wait=False, cancel_futures=True)
            for process in active_children():
                process.terminate()
            raise


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
    comparison.check_seeds()
    runs = {
        (name, seed): (_recipe(comparison, name, seed), out / "runs" / f"{_plain(name)}-{seed}")
        for name in comparison.variants
        for seed in comparison.seeds_of(name)
    }
    if len({folder for _, folder in runs.values()}) < len(runs):
        raise InputError(f"variants {', '.join(map(repr, comparison.variants))}: two names are alike but for signs")
    check_names(((folder.name,) for _, folder in runs.values()), "the variant")
    device = pick_device(comparison.recipe.run.device)
    measuring = Measuring.open(comparison, out, device, allow_code)
    check_drawing()
    shared = comparison.recipe
    with claimed(out, KIND, (PLANNED,) if _made_before(out) else ()):
        remove_parts(out, below=False)
        remove_parts(out / "evaluation")
        _plan(shared, out / PLANNED, of_data=True)
        for recipe, folder in runs.values():
            with claimed(folder, RUN, (PLANNED,)):
                _plan(recipe, folder / PLANNED)
        codec, data, conditioner = prepare_data(shared, out, device)  # encoded once, linked into every run
        for (name, _), (recipe, folder) in runs.items():
            _check_variant(name, recipe, shared, codec, data, conditioner)
            for place in range(len(shared.data.shares)):
                _link_folder(latents_path(out, place), latents_path(folder, place))
        real, controls = observe_reference(measuring.evaluation, measuring.reference)
        if measuring.validation is not None:
            observe_real(measuring.validating, measuring.validation)
        finish = partial(finish_run, comparison, out, device=device, allow_code=allow_code)
        _train_all(runs, jobs, on_run, finish)
        return _report(measuring, out, runs, real, controls, on_run, command)


@dataclass(frozen=True)
class Measuring:
    """What all runs of a comparison are measured with, and how."""

    comparison: Comparison
    evaluation: Evaluation
    reference: Reference
    validation: Reference | None
    prompts: list[str | int]
    device: torch.device

    @classmethod
    def open(cls, comparison: Comparison, out: Path, device: torch.device, allow_code: bool) -> "Measuring":
        """Raises `InputError` for metrics, an extractor or data that do not serve."""
        metrics = choose_metrics(comparison.metrics)
        extractor = load_extractor(comparison.extractor, device if device.type == "cuda" else "cpu", allow_code)
        check_measurable(metrics, extractor, comparison.samples)
        if comparison.milestones:
            check_milestones(comparison, metrics, extractor)
        size = comparison.recipe.data.size
        try_extractor(extractor, size, size)
        source = ConcatSource(comparison.recipe.data.open())
        reference = Reference.draw(source, size, comparison.samples, 0, "test" if comparison.plans else "whole")
        check_measurable(metrics, extractor, len(reference.real))
        validation = None
        if comparison.plans:
            validation = Reference.draw(source, size, min(comparison.samples, VALIDATION_SAMPLES), 0, "validation")
            check_measurable(metrics[:1], extractor, len(validation.real))
        evaluation = Evaluation(extractor, metrics, out / "evaluation", comparison.samples)
        prompts = reference.prompts(comparison.samples, 0)
        return cls(comparison, evaluation, reference, validation, prompts, device)

    @property
    def validating(self) -> Evaluation:
        """The evaluation by which plans are chosen."""
        assert self.validation is not None
        first, *rest = self.evaluation.metrics
        metrics, samples = [first, *(each for each in rest if each.name == BESIDE)], len(self.validation.real)
        return replace(self.evaluation, metrics=metrics, samples=samples, seed=VALIDATION_SEED)

    def planned(self, folder: Path) -> tuple[Model, Search | None]:
        """The model of a trained run, with its plans where the comparison has them."""
        model = load(folder, self.device)
        if self.validation is None:
            return model, None
        guidance = self.comparison.guidance
        search = plan_model(self.validating, model, self.validation, self.comparison.steps, None, guidance)
        write_plans(Path(find(folder)), search.plans)
        return load(folder, self.device), search

    def points(self, recipe: Recipe, folder: Path) -> tuple[Model, Search | None, list[Point], list[DrawnMilestone]]:
        """Of a trained run; what was drawn before is read again."""
        comparison = self.comparison
        model, search = self.planned(folder)
        asked = None, comparison.guidance, comparison.planning
        points = generate_points(self.evaluation, model, sorted(comparison.steps), self.prompts, *asked)
        drawn: list[DrawnMilestone] = []
        if comparison.milestones:
            some = self.reference.prompts(comparison.milestone_samples, 0)
            drawn = draw_milestones(comparison, self.evaluation, recipe, folder, some, self.device)
        return model, search, points, drawn


def _report(
    measuring: Measuring,
    out: Path,
    runs: Mapping[tuple[str, int], tuple[Recipe, Path]],
    real: Observed,
    controls: dict[str, Observed],
    on_run: Callable[[str], None],
    command: str | None,
) -> dict[str, Any]:
    """Every trained run alike, and the report."""
    comparison, evaluation = measuring.comparison, measuring.evaluation
    found: dict[str, dict[int, list[Replicates]]] = {}
    models: dict[str, Model] = {}
    described: dict[tuple[str, int], dict[str, Any]] = {}
    milestones: dict[str, list[list[Milestone]]] = {}
    searches: dict[str, Search] = {}
    for (name, seed), (recipe, folder) in runs.items():
        models[name], search, points, drawn = measuring.points(recipe, folder)
        if search is not None:
            searches[f"{name}, seed {seed}"] = search
            on_run(f"planned {name}, seed {seed}")
        described[name, seed] = describe_model(evaluation, f"{name}, seed {seed}", points, real)
        found.setdefault(name, {})[seed] = [point.replicates for point in points]  # no images of all runs at once
        if comparison.milestones:
            milestones.setdefault(name, []).append(measured_milestones(evaluation, real, drawn))
        on_run(f"measured {name}, seed {seed}")
    single = report(evaluation, list(described.values()), real, controls)
    figures = {
        **side_by_side(comparison, found, single["better"]),
        "models": [
            over_seeds(comparison, name, runs, found, described, single["better"]) for name in comparison.variants
        ],
        **{key: single[key] for key in ("controls", "better", "samples", "real_images", "seed")},
        "runs": single["models"],
        "milestones": time_to_quality(comparison, milestones) if milestones else None,
        "plans": {run: search.told() for run, search in searches.items()},
        "seeds": list(comparison.seeds),
        "evaluations": comparison.evaluations,
        "comparison": comparison.model_dump(mode="json", exclude_unset=True),
        "command": command,
        "versions": environment(),
    }
    write_json(out / "report.json", figures)
    write_text(out / "report.md", markdown(figures))
    curve(figures, out / "curve.png")
    save_image(_sheet(comparison, models, measuring.prompts), out / "sheet.png")
    return figures


def _recipe(comparison: Comparison, name: str, seed: int) -> Recipe:
    """Of one run, which keeps what milestones need."""
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


def _plan(recipe: Recipe, path: Path, of_data: bool = False) -> None:
    """Note what a folder is for, or refuse one that was begun for something else.

    Args:
        of_data: only the data and the codec matter, which all runs share.
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


def _check_variant(
    name: str, recipe: Recipe, shared: Recipe, codec: Codec, data: LatentSet, conditioner: Conditioner
) -> None:
    """Raise `InputError` for a variant that could not be trained."""
    try:
        make_objective(recipe)
        if len(data) < recipe.run.batch_size and not recipe.data.native:
            raise InputError(f"{len(data)} samples are fewer than one batch of {recipe.run.batch_size}")
        if reads_captions(recipe) == reads_captions(shared) and recipe.alignment is None:
            bare = recipe.model_copy(update={"model": recipe.model.model_copy(update={"weights": None})})
            with torch.device("meta"):  # its options fit together, which costs no memory to see
                prepare_network(bare, codec, data, conditioner)
    except InputError as error:
        raise InputError(f"variant {name!r}: {error}") from None


def _link_folder(encoded: Path, linked: Path) -> None:
    """Encoded data as a folder of its own, which appears whole; locks are not shared."""
    if not encoded.exists() or linked.exists():
        return
    with publishing(linked, Path.replace) as part:
        shutil.copytree(encoded, part, copy_function=_link, ignore=shutil.ignore_patterns(LOCK, HOLDER, "*.part"))


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        shutil.copy(source, target)


def _sheet(comparison: Comparison, models: Mapping[str, Model], prompts: Sequence[str | int]) -> Image.Image:
    """Variants down, numbers of steps across, three prompts each, one seed along each row."""
    shown = list(dict.fromkeys(prompts))[:3]
    rows, labels = [], []
    for name, model in models.items():
        columns = [
            model.generate(shown, steps, 0, None, comparison.guidance, plan=comparison.planning).images
            for steps in comparison.steps
        ]
        rows += [[column[row] for column in columns] for row in range(len(shown))]
        labels += [f"{name}: {_called(model, prompt)}" for prompt in shown]
    return contact_sheet(rows, labels, [f"{steps} step{'s' * (steps > 1)}" for steps in comparison.steps])


def _called(model: Model, prompt: str | int) -> str:
    names = model.pipeline.config.class_names
    return names[prompt] if names and isinstance(prompt, int) else str(prompt)
