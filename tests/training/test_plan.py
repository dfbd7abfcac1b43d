"""Budgets: exact counts, memory against a real step, and one line for what cannot fit."""

from pathlib import Path
from typing import Any

import pytest
import torch

from anystep.cli import main
from anystep.data_sheets import DEVICES
from anystep.errors import InputError
from anystep.objective import TrainingBatch
from anystep.training.config import Recipe
from anystep.training.objective import make_objective
from anystep.training.plan import (
    Communication,
    budget,
    check_fits,
    check_memory,
    communication,
    evaluations_per_sample,
    recipe_evaluations,
)
from anystep.training.recipe_files import load_recipe

CONFIGS = Path(__file__).parent.parent.parent / "configs"


def test_checkpointing_saves_memory_and_costs_a_forward() -> None:
    recipe = Recipe.model_validate({"model": {"gradient_checkpointing": True}, "objective": {"diffusion_share": 1.0}})
    plain = Recipe.model_validate({"objective": {"diffusion_share": 1.0}})
    assert budget(recipe).activation_bytes < 0.5 * budget(plain).activation_bytes
    assert budget(recipe).flops_per_step == pytest.approx(4 / 3 * budget(plain).flops_per_step)


@pytest.mark.parametrize("interval", [None, (0.3, 0.8)])
def test_evaluations_of_a_guided_target_are_those_that_an_objective_spends(interval: Any) -> None:
    recipe = Recipe.model_validate({
        "objective": {"guidance_condition": {"interval": interval}, "diffusion_share": 0.6},
        "model": {"preset": "c2i-test", "options": {"guidance_embed": True}},
        "condition_dropout": 0.25,
    })  # fmt: skip
    objective, rng, count = make_objective(recipe), torch.Generator().manual_seed(0), 2000
    t, r = objective.draw_times(count, rng)
    scale = objective.guidance.scales(torch.rand(count, generator=rng))  # type: ignore[union-attr]
    scale[torch.rand(count, generator=rng) < 0.25] = 1.0
    x, z, labels = torch.randn(count, 1, 1, 1), torch.randn(count, 1, 1, 1), torch.ones(count)
    network: Any = lambda x, t, r, condition, mask, guidance: 0.5 * x  # noqa: E731
    batch = TrainingBatch(x, z, t, r, labels, null_condition=labels, guidance=scale)
    record = objective.evaluate(network, batch, ema_network=network)
    assert recipe_evaluations(recipe) - 2 == pytest.approx(record.evaluations / count, abs=0.06)


@pytest.mark.slow
def test_shards_share_the_state() -> None:
    recipe = Recipe.model_validate({"parallel": "fsdp", "run": {"batch_size": 8}})
    one, four = budget(recipe), budget(recipe, 4)
    assert one.state_bytes == 4 * one.parameters * 5  # weights, gradients, two moments, one average
    gathered = 3 * 4 * one.parameters // 7  # three of seven blocks: weights of two, gradients of one
    assert four.state_bytes == one.state_bytes // 4 + gathered
    copies = recipe.model_copy(update={"parallel": "hsdp"})
    assert budget(copies, 8).state_bytes == one.state_bytes // 8 + gathered
    assert budget(copies, 64).state_bytes == budget(copies, 8).state_bytes  # within a machine of eight


@pytest.mark.slow
def test_averages_that_are_kept_count_in_memory_and_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from types import SimpleNamespace

    recipe = Recipe.model_validate({"run": {"batch_size": 8}, "ema_lengths": [0.05, 0.1], "ema_snapshots": 10})
    plan, plain = budget(recipe), budget(recipe.model_copy(update={"ema_lengths": ()}))
    assert plan.state_bytes - plain.state_bytes == plan.checkpoint_bytes - plain.checkpoint_bytes
    assert plan.state_bytes == plain.state_bytes + 2 * 4 * plan.parameters
    assert (plan.snapshot_bytes, plain.snapshot_bytes) == (2 * 2 * plan.parameters, 0)
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=1e6))
    with pytest.raises(InputError, match=r"3 checkpoints and 10 snapshots take up to .* run.keep or ema_snapshots"):
        check_fits(recipe, tmp_path / "run", 1, torch.device("cpu"), torch.float32)
    words = ["train", "emoji", "--dry-run", "--ema_lengths", "[0.05, 0.1]", "--ema_snapshots", "10"]
    assert main(words) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("snapshots")]
    assert line.endswith("GB, 10 in all")


def plan(parallel: str, **objective: Any) -> Recipe:
    return Recipe.model_validate({"model": {"preset": "t2i-xl"}, "parallel": parallel, "objective": objective})


def test_communication_is_that_of_rings() -> None:
    size = 4 * 864_978_080
    assert communication(plan("ddp"), 1) == Communication()
    ddp = communication(plan("ddp"), 8)
    assert ddp.inside == pytest.approx(2 * size * 7 / 8)
    assert ddp.between == 0
    # forward, derivative, backward; and the gradients
    fsdp = communication(plan("fsdp"), 64)
    assert fsdp.inside == pytest.approx(4 * size * 63 / 64)
    assert fsdp.between == pytest.approx(4 * size * 7 / 8 / 8)
    assert communication(plan("fsdp", diffusion_share=1.0), 64).inside == pytest.approx(3 * size * 63 / 64)
    # whole inside a machine; between machines an eighth of the gradients, twice
    hsdp = communication(plan("hsdp"), 64)
    assert hsdp.inside == pytest.approx(4 * size * 7 / 8)
    assert hsdp.between == pytest.approx(2 * size / 8 * 7 / 8)
    h100 = DEVICES["H100"]
    waiting = 2e-6 * hsdp.hops_inside + 5e-6 * hsdp.hops_between
    assert hsdp.seconds(h100, 1.0) == pytest.approx(hsdp.inside / 450e9 + waiting)
    with pytest.raises(InputError, match="network between machines of these devices is not known"):
        communication(plan("ddp"), 16).seconds(DEVICES["4090"])


def test_what_cannot_fit_is_refused_with_the_number_and_what_would(tmp_path: Path) -> None:
    recipe = load_recipe(CONFIGS / "t2i-865m.yaml", Recipe)
    check_memory(recipe, 16, DEVICES["A100"].memory, torch.bfloat16)
    with pytest.raises(InputError, match=r"a step takes \d+\.\d GB on each device .* \d+ images? at a time would fit"):
        check_memory(recipe, 1, DEVICES["4090"].memory, torch.bfloat16)
    with pytest.raises(InputError, match="parallel fsdp on more devices"):
        check_memory(recipe, 1, 8e9, torch.bfloat16)


@pytest.mark.slow
def test_native_parts_are_counted_as_squares_of_as_many_tokens() -> None:
    squares = ["--run.batch_size", "12", "--run.micro_batches", "1", "--run.packed", "false", "--data.native", "false"]
    plain = budget(load_recipe(CONFIGS / "scenes-native.yaml", Recipe, squares, True), caption_tokens=8)
    tokens = plain.tokens_per_image
    over = ["--run.micro_batches", "2", "--run.tokens_per_micro_batch", str(12 * tokens)]
    native = load_recipe(CONFIGS / "scenes-native.yaml", Recipe, over, True)
    plan = budget(native, caption_tokens=8)
    assert (plan.images_at_once, plan.images_per_step, plan.tokens_per_step) == (12, 24, 24 * tokens)
    assert plan.activation_bytes == plain.activation_bytes
    assert plan.flops_per_step == pytest.approx(2 * plain.flops_per_step)
    over[-1] = str(12 * tokens + 1)  # a part that is not of whole squares
    more = budget(load_recipe(CONFIGS / "scenes-native.yaml", Recipe, over, True), caption_tokens=8)
    assert (more.images_at_once, more.tokens_per_step) == (13, 24 * tokens + 2)
    budgeted = budget(native)
    with pytest.raises(InputError, match=rf"would fit: lower run.tokens_per_micro_batch to {6 * tokens}"):
        check_memory(native, 1, budgeted.state_bytes + 0.55 * budgeted.activation_bytes, torch.float32)
    sharded = [
        load_recipe(CONFIGS / "scenes-native.yaml", Recipe, ["--run.micro_batches", parts, "--parallel", "fsdp"], True)
        for parts in ("8", "16")
    ]
    once, twice = (communication(recipe, 8).inside for recipe in sharded)
    assert 1.5 < twice / once < 2  # each part gathers the weights again, and gradients are scattered once


def test_a_full_disk_is_foreseen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import shutil
    from types import SimpleNamespace

    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=1e6))
    with pytest.raises(InputError, match=r"3 checkpoints take up to 0\.[0-9]+ GB, .* has .* GB left: make room"):
        check_fits(Recipe(), tmp_path / "run", 1, torch.device("cpu"), torch.float32)


def test_a_velocity_that_is_learned_on_all_samples_is_paid_for() -> None:
    def cost(options: dict[str, Any], **objective: Any) -> float:
        recipe = Recipe.model_validate({"model": {"options": options}, "objective": objective})
        return evaluations_per_sample(recipe.objective, recipe.model)

    branches = {"depth": 6, "branch_depth": 2}
    # half of the samples have an interval; of these, a third of the network is evaluated beside, forward and backward
    assert cost(branches) == cost({}) + 0.5 * 3 / 3
    assert cost(branches, velocity_weight=0.0) == cost({})
    # and where the target asks for the velocity, it is known
    assert cost(branches, kind="any_step") == pytest.approx(cost({}, kind="any_step") + 0.1 * (3 / 3 - 1))
    assert cost(branches, kind="flow_matching") == cost({}, kind="flow_matching")
