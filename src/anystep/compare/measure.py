"""All runs of a comparison measured alike, and the report of them."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from anystep.compare.experiment import ComparedRun, Comparison
from anystep.compare.figures import Replicates, over_seeds, side_by_side
from anystep.compare.milestones import Milestone, check_milestones, draw_milestones, time_to_quality
from anystep.compare.report import markdown
from anystep.contact_sheet import save_image
from anystep.data.sources import ConcatSource
from anystep.environment import environment
from anystep.errors import InputError
from anystep.evaluation.evaluate import Point, generate_points, model_report, prompts_of, whole_report
from anystep.evaluation.extractors.registry import try_extractor
from anystep.evaluation.metrics.base import ImageFeatures
from anystep.evaluation.metrics.registry import check_measurable
from anystep.evaluation.reference import Reference, control_features, real_features
from anystep.evaluation.report import curve
from anystep.evaluation.settings import Evaluation, MeasurementSettings
from anystep.evaluation.step_plans import BESIDE, VALIDATION_SAMPLES, Planned, plan_model, plans_of
from anystep.files import make_folder, read_json, write_json, write_text
from anystep.pipelines.load import Model, find, load
from anystep.pipelines.scheduler import write_plans
from anystep.pipelines.step_sheet import models_sheet
from anystep.sampling import StepPlan
from anystep.training.config import Recipe

SHEET_PROMPTS = 3


@dataclass(frozen=True)
class Measurement:
    """What all runs of a comparison are measured with; plans are chosen by `validation`, where they are searched."""

    comparison: Comparison
    evaluation: Evaluation
    reference: Reference
    validation: Reference | None
    device: torch.device

    @classmethod
    def open(cls, comparison: Comparison, out: Path, device: torch.device, allow_code: bool) -> "Measurement":
        """Raises `InputError` for metrics, an extractor or data that do not serve."""
        settings = MeasurementSettings(
            out=out / "evaluation", samples=comparison.samples, extractor=comparison.extractor, allow_code=allow_code,
            guidance=comparison.guidance, plan=comparison.planning,
        )  # fmt: skip
        evaluation = Evaluation.open(settings, device, comparison.metrics)
        metrics, extractor = evaluation.metrics, evaluation.extractor
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
        return cls(comparison, evaluation, reference, validation, device)

    def check_variant(self, classes: Sequence[str] | None) -> None:
        """Raise `InputError` where the data has no captions, or not these classes, for a variant to be measured by."""
        for reference in filter(None, (self.reference, self.validation)):
            reference.prompts(len(reference.held_out), 0, "it", classes)

    @property
    def plan_evaluation(self) -> Evaluation:
        """The evaluation by which plans are chosen."""
        assert self.validation is not None
        first, *rest = self.evaluation.metrics
        metrics = [first, *(each for each in rest if each.name == BESIDE)]
        settings = replace(self.evaluation.settings, samples=len(self.validation.real), validation=True)
        return replace(self.evaluation, metrics=metrics, settings=settings)

    def real_images(self) -> tuple[ImageFeatures, dict[str, ImageFeatures]]:
        """The real images and the controls; those of validation are looked at too, and kept in the folder."""
        real = real_features(self.evaluation, self.reference)
        controls = control_features(self.evaluation, self.reference)
        if self.validation is not None:
            real_features(self.plan_evaluation, self.validation)
        return real, controls

    def points(self, recipe: Recipe, folder: Path) -> tuple[Model, list[Planned], list[Point], list[Milestone]]:
        """What a trained run is measured by; what was generated before is read again."""
        comparison, evaluation, settings = self.comparison, self.evaluation, self.evaluation.settings
        model, planned = self._planned(folder)
        prompts = prompts_of(model, self.reference, settings)
        points = generate_points(evaluation, model, sorted(comparison.steps), prompts)
        milestones: list[Milestone] = []
        if comparison.milestones:
            prompts = prompts_of(model, self.reference, replace(settings, samples=comparison.milestone_samples))
            milestones = draw_milestones(comparison, evaluation, recipe, folder, prompts, self.device)
        return model, planned, points, milestones

    def _planned(self, folder: Path) -> tuple[Model, list[Planned]]:
        """The model of a trained run, with its plans where the comparison has them."""
        model = load(folder, self.device)
        if self.validation is None:
            return model, []
        rows = self._search(model, self.validation)
        write_plans(Path(find(folder)), plans_of(rows))
        return load(folder, self.device), rows

    def _search(self, model: Model, validation: Reference) -> list[Planned]:
        """The plans of a model; those found before are read again, as images are."""
        evaluation, budgets = self.plan_evaluation, self.comparison.steps
        metrics, images = [each.name for each in evaluation.metrics], [*validation.real, *validation.held_out]
        keys = model.digest, validation.fingerprint(images), metrics, budgets, evaluation.settings.guidance
        kept = evaluation.chunk_folder("plans", *keys) / "plans.json"
        with suppress(InputError):  # not there, or damaged
            found = read_json(kept)["plans"]
            return [Planned(**{**row, "plan": StepPlan.parse("plan", row["plan"])}) for row in found]
        rows = plan_model(evaluation, model, validation, budgets)
        make_folder(kept.parent)
        write_json(kept, {"plans": [{**vars(row), "plan": row.plan.plain()} for row in rows]})
        return rows

    def report(
        self,
        runs: Sequence[ComparedRun],
        real: ImageFeatures,
        controls: Mapping[str, ImageFeatures],
        on_run: Callable[[str], None],
    ) -> tuple[dict[str, Any], dict[str, Model]]:
        """The figures of all trained runs, and a model of each variant."""
        comparison, evaluation = self.comparison, self.evaluation
        found: dict[str, dict[int, list[Replicates]]] = {}
        models: dict[str, Model] = {}
        reports: dict[str, dict[str, Any]] = {}
        milestones: dict[str, list[list[dict[str, Any]]]] = {}
        plans: dict[str, list[dict[str, Any]]] = {}
        for run in runs:
            models[run.variant], planned, points, reached = self.points(run.recipe, run.folder)
            if planned:
                plans[run.name] = [row.plain() for row in planned]
                on_run(f"planned {run.name}")
            reports[run.name] = model_report(evaluation, run.name, points, real)
            # no images of all runs at once
            found.setdefault(run.variant, {})[run.seed] = [point.replicates for point in points]
            if comparison.milestones:
                milestones.setdefault(run.variant, []).append([each.measured(evaluation, real) for each in reached])
            on_run(f"measured {run.name}")
        whole = whole_report(evaluation, list(reports.values()), real, controls)
        directions = whole["better"]
        figures = {
            **side_by_side(comparison, found, directions),
            "models": [
                over_seeds(comparison, [run for run in runs if run.variant == name], each, reports, directions)
                for name, each in found.items()
            ],
            **{key: whole[key] for key in ("controls", "better", "samples", "real_images", "seed")},
            "runs": whole["models"],
            "milestones": time_to_quality(comparison, milestones) if milestones else None,
            "plans": plans,
            "notes": self.reference.notes,
            "seeds": list(comparison.seeds),
            "evaluations": comparison.evaluations,
            "comparison": comparison.model_dump(mode="json", exclude_unset=True),
        }
        return figures, models

    def write(
        self, out: Path, figures: Mapping[str, Any], models: Mapping[str, Model], command: str | None
    ) -> dict[str, Any]:
        """Write the report with its pictures into `out` and return it."""
        report = {**figures, "command": command, "versions": environment()}
        write_json(out / "report.json", report)
        write_text(out / "report.md", markdown(report))
        curve(report, out / "curve.png")
        comparison, settings = self.comparison, self.evaluation.settings
        rows = [
            (f"{name}: ", model, list(dict.fromkeys(prompts_of(model, self.reference, settings)))[:SHEET_PROMPTS])
            for name, model in models.items()
        ]
        sheet = models_sheet(rows, comparison.steps, 0, guidance=comparison.guidance, plan=comparison.planning)
        save_image(sheet, out / "sheet.png")
        return report
