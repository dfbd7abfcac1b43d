"""The recipe of each run of a comparison file, and what its training costs."""

from pathlib import Path
from typing import Any

import pytest
import torch

from anystep.compare import Comparison, choose, variant_recipe, vary
from anystep.errors import InputError
from anystep.objective.presets import OBJECTIVES
from anystep.training.objective import make_objective
from anystep.training.objective_config import ObjectiveConfig
from anystep.training.plan import evaluations_per_sample
from anystep.training.recipe_files import load_recipe

CONFIGS = Path(__file__).parent.parent.parent / "configs" / "compare"


def test_only_and_vary_together_keep_the_new_variants(small: Path) -> None:
    comparison = choose(load_recipe(small, Comparison), ["transition"])
    assert list(vary(comparison, ["objective.eps=0.01"]).variants) == ["transition", "eps 0.01"]


@pytest.mark.parametrize("name", ["trigflow", "edm", "vp", "ve"])
def test_another_transport_starts_from_its_own_options(name: str) -> None:
    comparison = Comparison.model_validate({"recipe": {"transport": {"options": {"mean": 0.0, "std": 1.2}}}})
    recipe = variant_recipe(vary(comparison, [f"transport.name={name}"]), f"name {name}", 0)
    assert recipe.transport.options == {}
    objective = make_objective(recipe)
    t, r = objective.draw_times(2000, torch.Generator().manual_seed(0))
    assert objective.weighting(objective.transport, t, r, torch.ones_like(t)).isfinite().all()


def test_each_variant_is_its_own_kind_whatever_the_recipe_says() -> None:
    comparison = Comparison.model_validate({"recipe": {"objective": {"kind": "mean_flow", "eps": 0.1}}})
    for kind, preset in OBJECTIVES.items():
        expected = ObjectiveConfig.model_validate({"kind": kind, "eps": 0.1})
        assert variant_recipe(comparison, preset.label, 0).objective == expected


def test_costs_of_a_sample() -> None:
    def cost(**options: Any) -> float:
        return evaluations_per_sample(ObjectiveConfig.model_validate(options))

    assert cost(kind="flow_matching") == 3
    assert cost(kind="transition") == 4
    assert cost(kind="transition", derivative="one_sided") == 3.5
    assert cost(kind="transition", diffusion_phase=0.5) == 3.5
    assert cost(kind="consistency") == 5
    assert cost(kind="mean_flow") == cost(kind="shortcut") == 3.5
    assert cost(kind="flow_matching", guidance={"w_cond": 0.5}) == 5


def test_ablations_are_variants_of_the_first() -> None:
    comparison = vary(Comparison(evaluations=4096), ["objective.eps=0.001,0.02", "model.options.interval_condition=r"])
    assert list(comparison.variants)[-3:] == ["eps 0.001", "eps 0.02", "interval_condition r"]
    recipe = variant_recipe(comparison, "eps 0.02", 7)
    assert (recipe.objective.kind, recipe.objective.eps, recipe.run.seed) == ("transition", 0.02, 7)
    assert recipe.run.steps == 4096 // (64 * 4)
    assert variant_recipe(comparison, "interval_condition r", 0).model.options == {"interval_condition": "r"}
    with pytest.raises(InputError, match=r"--vary 'eps': expected KEY=VALUE"):
        vary(comparison, ["eps"])
    nested = vary(comparison, ["objective.guidance={w_gt: 1, w_cond: 0.5}", "a.std=1", "b.std=1"])
    assert list(nested.variants)[-3:] == ['guidance {"w_gt": 1, "w_cond": 0.5}', "std 1", "b.std 1"]
    with pytest.raises(InputError, match="is not YAML"):
        vary(comparison, ["objective.eps={"])
    with pytest.raises(InputError, match=r"variant 'epz 1'.*objective\.epz"):
        variant_recipe(vary(comparison, ["objective.epz=1"]), "epz 1", 0)


@pytest.mark.parametrize("section", [None, 3, "edm", [], True])
def test_a_variant_whose_section_is_none_is_one_line(section: Any) -> None:
    comparison = Comparison.model_validate({"variants": {"a": {"transport": section}}})
    with pytest.raises(InputError, match="variant 'a': transport"):
        variant_recipe(comparison, "a", 0)


@pytest.mark.parametrize(("name", "count"), [("fashion-mnist", 11), ("emoji", 6), ("objectives", 12), ("ablation", 17),
                                            ("objectives-mnist", 4), ("objectives-long", 3),
                                            ("objectives-cold", 6), ("objectives-guided", 4),
                                            ("shares", 6)])  # fmt: skip
def test_the_comparisons_that_come_with_the_project_are_sound(name: str, count: int) -> None:
    from anystep.training.recipe_files import load_recipe

    comparison = load_recipe(CONFIGS / f"{name}.yaml", Comparison)
    assert len(comparison.variants) == count
    comparison.check_seeds()
    for variant in comparison.variants:
        assert variant_recipe(comparison, variant, 0).run.steps > 600
