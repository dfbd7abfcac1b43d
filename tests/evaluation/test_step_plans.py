"""Plans: never worse with a larger budget, chosen on images of their own, kept where the model is."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import anystep
from anystep.cli import main
from anystep.evaluation import collect as collecting
from anystep.evaluation.metrics.base import ImageFeatures, shortfall
from anystep.evaluation.step_plans import BUDGETS, CHOICES, Planned, choices_of, effect, plans_of, search_plans
from anystep.sampling import StepPlan


def search(
    *figures: Callable[[StepPlan], float],
    budgets: Any = BUDGETS,
    noise: float = 0.0,
    kind: str = "transition",
    **words: Any,
) -> list[Planned]:
    """With images whose figures are known, and replicates that are as noisy as that."""
    rng = torch.Generator().manual_seed(0)

    def measured(generated: ImageFeatures) -> list[Tensor]:
        spread = noise * torch.randn(15, dtype=torch.float64, generator=rng)
        figures = generated.features[0].double()[:, None] + torch.cat([torch.zeros(1, dtype=torch.float64), spread])
        return list(figures)

    def draw(plan: StepPlan) -> ImageFeatures:
        return ImageFeatures(torch.tensor([[each(plan) for each in figures]]))

    words = {"directions": ["lower"] * len(figures), "choices": CHOICES[kind], **words}
    return search_plans(draw, measured, budgets, **words)


def test_figures_may_have_different_numbers_of_replicates() -> None:
    def measured(generated: ImageFeatures) -> list[Tensor]:
        return [value.expand(count).double() for value, count in zip(generated.features[0], (201, 16), strict=True)]

    def draw(plan: StepPlan) -> ImageFeatures:
        return ImageFeatures(torch.tensor([[10 / plan.steps + (plan.tail != 0.15), 1.0 / plan.steps]]))

    found = search_plans(draw, measured, [1, 4], ["lower", "lower"], CHOICES["transition"])
    assert plans_of(found)[4] == StepPlan(4, tail=0.15)


def test_no_figure_is_bought_with_another() -> None:
    """A tail halves features and doubles pixels: the one that costs less is taken."""

    def features(plan: StepPlan) -> float:
        return 10.0 / plan.steps * {0.4: 0.5, 0.15: 0.7}.get(plan.tail or 0.0, 1.0)

    def pixels(plan: StepPlan) -> float:
        return {0.4: 3.0, 0.15: 1.1}.get(plan.tail or 0.0, 1.0) / plan.steps**0.1

    alone, both = (search(*figures, budgets=(1, 4)) for figures in ((features,), (features, pixels)))
    assert [plans_of(alone)[4].tail, plans_of(both)[4].tail] == [0.4, 0.15]


def test_no_figure_rises_with_a_budget() -> None:
    def pixels(plan: StepPlan) -> float:
        return 2.0 if plan.steps > 1 else 1.0

    assert plans_of(search(lambda plan: 10.0 / plan.steps**3, pixels, budgets=(1, 4)))[4] == StepPlan(1)


@settings(max_examples=8)
@given(seed=st.integers(0, 1000), direction=st.sampled_from(["lower", "higher", "nearest 1"]), noise=st.floats(0, 2))
def test_no_figure_is_worse_than_that_of_a_smaller_budget_whatever_the_images(
    seed: int, direction: str, noise: float
) -> None:
    def figure(plan: StepPlan) -> float:
        return torch.rand(1, generator=torch.Generator().manual_seed(hash((seed, effect(plan))) % 2**40)).item()

    found = search(figure, noise=noise, directions=[direction])
    figures = shortfall(torch.tensor([row.figure for row in found]), direction)  # type: ignore[arg-type]
    assert (figures[1:] <= figures[:-1]).all()
    assert [row.budget for row in found] == list(BUDGETS)
    for row in found:
        assert row.plan.steps <= row.budget
        assert row.figure == pytest.approx(figure(row.plan))


def test_the_best_of_each_setting_is_found_and_carried_on() -> None:
    def figure(plan: StepPlan) -> float:
        wrong = (plan.tail != 0.25) + (plan.shift != 1.4) + (not plan.memory) + (plan.velocity_below != 1.0)
        return 10 / plan.steps + (plan.steps > 1) * wrong + plan.stochasticity

    found = search(figure)
    assert plans_of(found)[1] == StepPlan(1)
    for budget in (4, 8, 16, 32, 64):
        assert plans_of(found)[budget] == StepPlan(budget, shift=1.4, tail=0.25, velocity_below=1.0, memory=True)
    assert found[-1].uniform == pytest.approx(10 / 64 + 4)


def test_a_budget_that_gains_nothing_is_spent_as_the_smaller_one() -> None:
    found = search(lambda plan: abs(plan.steps - 8) + 1.0)
    assert [plans_of(found)[budget].steps for budget in BUDGETS] == [1, 2, 4, 8, 8, 8, 8]


def test_a_gain_within_the_noise_changes_nothing() -> None:
    def figure(plan: StepPlan) -> float:
        return 10 / plan.steps - 0.1 * (plan.tail == 0.25)

    assert plans_of(search(figure, budgets=[8], noise=1.0))[8] == StepPlan(8)
    assert plans_of(search(figure, budgets=[8], noise=0.01))[8] == StepPlan(8, tail=0.25)


def test_the_guidance_of_a_budget_is_searched_where_there_is_guidance() -> None:
    def figure(plan: StepPlan) -> float:
        share, above = (0.2, 0.0) if plan.steps == 1 else (1.0, 0.4)
        return 10 / plan.steps + abs(plan.guidance_share - share) + abs(plan.guided_above - above)

    found = plans_of(search(figure, budgets=[1, 4], choices=choices_of("transition", True)))
    assert found == {1: StepPlan(1, guidance_share=0.2), 4: StepPlan(4, guided_above=0.4)}
    assert choices_of("transition", False) == CHOICES["transition"]


@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("kind", list(CHOICES))
def test_a_search_of_all_budgets_costs_at_most_1400_evaluations_an_image(kind: str, guided: bool) -> None:
    tried: list[StepPlan] = []

    def figure(plan: StepPlan) -> float:
        tried.append(plan)
        return 10 / plan.steps + (plan.tail != 0.25) + plan.stochasticity

    choices = choices_of(kind, guided)
    search(figure, choices=choices, uniform=lambda steps: StepPlan(steps, velocity_below=float(kind[0] == "i")))
    assert sum(plan.steps for plan in tried) < (1400 if guided else 1200)
    assert len({effect(plan) for plan in tried}) == len(tried)  # nothing is drawn twice
    if kind == "instantaneous":
        assert {plan.velocity_below for plan in tried} == {1.0}
    if kind == "consistency":
        assert {plan.velocity_below for plan in tried} == {0.0}


def test_what_does_the_same_is_told_to() -> None:
    assert effect(StepPlan(1, tail=0.2, shift=3.0, stochasticity=0.5, memory=True)) == effect(StepPlan(1))
    assert effect(StepPlan(8, memory=True)) == effect(StepPlan(8))
    assert effect(StepPlan(8, velocity_below=0.1)) == effect(StepPlan(8))
    assert effect(StepPlan(8, velocity_below=0.125)) == effect(StepPlan(8, velocity_below=1.0))
    assert effect(StepPlan(8, velocity_below=1.0, memory=True)) != effect(StepPlan(8, velocity_below=1.0))
    noisy = StepPlan(8, velocity_below=1.0, stochasticity=0.1)
    assert effect(StepPlan(8, velocity_below=1.0, stochasticity=0.1, memory=True)) == effect(noisy)
    assert effect(StepPlan(8, guided_above=0.3)) == effect(StepPlan(8, guided_above=0.375)) != effect(StepPlan(8))
    assert effect(StepPlan(8, guidance_share=0.5)) != effect(StepPlan(8))
    assert effect(StepPlan(8, guidance_share=0.0, guided_above=0.5)) == effect(StepPlan(8, guidance_share=0.0))


@pytest.fixture(scope="module")
def command(classes: Path, pooled: Path) -> list[str]:
    return [
        "--data", f"classes:{classes}", "--extractor", str(pooled), "--allow-code", "--samples", "50",
        "--budgets", "1", "2", "4",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def searched(tiny_classes: Path, command: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("plans") / "searched"
    assert main(["plan-steps", str(tiny_classes), *command, "--out", str(out)]) == 0
    return out


def test_a_search_leaves_a_copy_of_the_model_that_uses_its_plans(
    searched: Path, tiny_classes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    figures = json.loads((searched / "plans.json").read_text())
    assert [row["budget"] for row in figures["rows"]] == [1, 2, 4]
    planned = [row["planned"] for row in figures["rows"]]
    assert planned == sorted(planned, reverse=True)
    assert figures["nfe_per_image"] > figures["tried"] > 10
    model, before = anystep.load(searched, "cpu"), anystep.load(tiny_classes, "cpu")
    assert before.pipeline.scheduler.config.plans is None
    assert model.pipeline.scheduler.config.plans == figures["plans"]
    for budget in (1, 2, 4):
        plan = model.pipeline.scheduler.plan(budget)
        assert plan == StepPlan.parse("plan", figures["plans"][str(budget)])
        one = model.generate("1", budget, 3)
        assert one.steps == plan.steps
        assert one.images[0].tobytes() == before.generate("1", budget, 3, plan=plan).images[0].tobytes()
    assert "| steps | uniform | planned | plan |" in (searched / "plans.md").read_text()
    assert main(["info", "--model", str(searched)]) == 0
    assert "step plans" in capsys.readouterr().out


@pytest.mark.slow
def test_a_search_goes_on_where_it_was_stopped(
    searched: Path, tiny_classes: Path, command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    extract, made = collecting.extract, []

    def failing(*arguments: Any) -> Any:
        made.append(1)
        if len(made) == 5:
            raise KeyboardInterrupt
        return extract(*arguments)

    words = ["plan-steps", str(tiny_classes), *command, "--out", str(tmp_path / "out")]
    with monkeypatch.context() as patched:
        patched.setattr(collecting, "extract", failing)
        assert main(words) == 130
    assert not (tmp_path / "out" / "pipeline").exists()
    monkeypatch.setattr(collecting, "extract", lambda *arguments: (made.append(1), extract(*arguments))[1])
    assert main(words) == 0
    whole = json.loads((searched / "plans.json").read_text())
    assert json.loads((tmp_path / "out" / "plans.json").read_text()) == whole
    assert len(made) == 1 + whole["tried"] + 1  # one chunk each of real images and of a plan, and the one that failed


@pytest.mark.slow
def test_plans_are_written_into_a_folder_of_ones_own_and_nothing_else_is_changed(
    searched: Path, tiny_classes: Path, command: list[str], tmp_path: Path
) -> None:
    mine = tmp_path / "mine"
    shutil.copytree(tiny_classes, mine)
    before = {path.relative_to(mine): path.read_bytes() for path in mine.rglob("*") if path.is_file()}
    assert main(["plan-steps", str(mine), *command, "--out", str(tmp_path / "out"), "--in-place"]) == 0
    after = {path.relative_to(mine): path.read_bytes() for path in mine.rglob("*") if path.is_file()}
    assert [path for path in after if after[path] != before.get(path)] == [Path("scheduler/scheduler_config.json")]
    plans = json.loads((searched / "plans.json").read_text())["plans"]
    assert anystep.load(mine, "cpu").pipeline.scheduler.config.plans == plans
    assert not (tmp_path / "out" / "pipeline").exists()


@pytest.mark.slow
def test_an_evaluation_uses_plans_and_says_what_was_spent(
    tiny_classes: Path, classes: Path, pooled: Path, tmp_path: Path
) -> None:
    mine = tmp_path / "mine"
    shutil.copytree(tiny_classes, mine)
    config = mine / "scheduler" / "scheduler_config.json"
    plans = {"2": {"steps": 2, "tail": 0.2}, "4": {"steps": 2, "tail": 0.2}}
    config.write_text(json.dumps({**json.loads(config.read_text()), "plans": plans}))
    words = [
        "evaluate", "--model", str(mine), "--data", f"classes:{classes}", "--extractor", str(pooled), "--allow-code",
        "--samples", "50", "--steps", "2", "4", "--metrics", "kernel_distance", "--guidance", "1",
    ]  # fmt: skip

    def points(folder: str, *more: str) -> list[Any]:
        assert main([*words, *more, "--out", str(tmp_path / folder)]) == 0
        report = json.loads((tmp_path / folder / "report.json").read_text())
        return [
            (point["steps"], point["nfe"], point["metrics"]["kernel_distance_pooled"]["value"])
            for point in report["models"][0]["points"]
        ]

    planned, uniform = points("planned"), points("uniform", "--plan", "uniform")
    assert [each[:2] for each in planned] == [(2, 2), (4, 2)]
    assert [each[:2] for each in uniform] == [(2, 2), (4, 4)]
    assert planned[0][2] == planned[1][2] != uniform[0][2]
    assert points("planned", "--plan", "uniform") == uniform  # what was drawn as planned is not taken for it


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["builtin", "--in-place"], "--in-place: model 'builtin' is no folder of yours"),
        (["builtin", "--metric", "beauty"], "unknown metric beauty"),
        (["builtin", "--samples", "20"], "samples 20: frechet_distance needs at least 50 images"),
        (["nobody/knows/it"], "unknown model 'nobody/knows/it'"),
    ],
)
def test_bad_requests_are_one_line(
    words: list[str], message: str, tmp_path: Path, pooled: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    extractor = ["--extractor", str(pooled), "--allow-code"]
    assert main(["plan-steps", *words, *extractor, "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()
