"""Recipes are checked, and say in one line what is wrong with them."""

from pathlib import Path

import pytest
from helpers import write_recipe

from anystep.errors import InputError
from anystep.objective.presets import OBJECTIVES
from anystep.training.codec_config import CodecRecipe
from anystep.training.config import Recipe
from anystep.training.objective_config import ObjectiveConfig
from anystep.training.recipe_files import dump, load_recipe


@pytest.mark.parametrize(
    ("text", "words", "message"),
    [
        ("runn: {steps: 3}", [], r"unknown key runn, did you mean run\?"),
        ("run: {stepz: 3}", [], r"unknown key run.stepz, did you mean steps\?"),
        ("run: {qqq: 3}", [], r"unknown key run.qqq; known are steps, batch_size"),
        ("run: {steps: many}", [], r"run.steps: expected a whole number from 1 to 1000000000, got 'many'"),
        ("run: {steps: 0}", [], r"run.steps: expected a whole number from 1 to 1000000000, got 0"),
        ("transport: {name: flow}", [], r"transport.name: .*'ot_fm'.*'flow'"),
        ("- 1", [], "must be a mapping"),
        ("run: {steps: [}", [], "is not YAML"),
        ("run: {steps: 3}", ["--run.steps"], "pairs"),
        ("run: {steps: 3}", ["run.steps", "4"], "pairs"),
        ("run: {steps: true}", [], "run.steps: expected a whole number from 1 to 1000000000, got True"),
        ("optimizer: {betas: [true, 0.9]}", [], "optimizer.betas: expected a number, not true or false"),
        ("optimizer: {betas: [0.9, 1.5]}", [], "betas.1: expected a number from 0 to below 1, got 1.5"),
        ("ema_decay: x", [], "ema_decay: expected a number from 0 to below 1, got 'x'"),
        ("ema_decay: [0.9, 2]", [], "ema_decay.1: expected a number from 0 to below 1, got 2"),
        ("transport: {options: {std: .nan}}", [], "transport.options.std: expected a number .*, got nan"),
        ("transport: {options: {stt: 1}}", [], r"unknown transport.options.stt, did you mean std\?"),
        ("transport: {name: ve, options: {t_min: 5, t_max: 4}}", [], "t_min 5.0 must be below t_max 4.0"),
        ("optimizer: {learning_rate: .inf}", [], "learning_rate: expected a number above 0, up to 1000, got inf"),
        ("model: {options: {sample_size: x}}", [], "model.options.sample_size 'x': expected a whole number from 1"),
        ("model: {options: {depth: .inf}}", [], "model.options.depth inf: expected a whole number from 1 to 1000"),
        ("model: {options: {depth: 1000000000}}", [], "model.options.depth 1000000000"),
        ("model: {options: {patch_size: .nan}}", [], "model.options.patch_size nan"),
        ("model: {options: {foo: 3}}", [], "unknown model.options.foo; known are in_channels"),
        ("model: {options: {qk_norm: 3}}", [], "model.options.qk_norm 3: expected true or false"),
        ("objective: {kind: {'': {}}}", [], "objective.kind: expected 'transition'"),
        ("objective: {guidance: {w: 1}}", [], "objective.guidance.w"),
        ("objective: {kind: mean_flow, consistency_share: 0.5}", [], "0.75 and consistency_share 0.5 .* not 1.25"),
        ("objective: {guidance_condition: {w_max: 1}}", [], "w_max: expected a number above 1 to 100, got 1"),
        ("objective: {guidance_condition: {interval: [0.8, 0.3]}}", [], "expected the lower time first"),
        ("objective: {guidance_condition: {}}", [], "given the scale: model.options.guidance_embed"),
        ("objective: {guidance_condition: {}, guidance: {}}", [], "both guide the target: set one of them"),
        ("objective: {kind: self_evaluation, guidance: {}}", [], "compares the condition with none itself"),
        (
            "{objective: {kind: self_evaluation}, condition_dropout: 0}",
            [],
            "objective.target self_evaluation needs the",
        ),
        ("model: {options: {guidance_embed: true}}", [], "is learned by objective.guidance_condition, which is null"),
        (
            "{objective: {guidance_condition: {}}, model: {options: {guidance_embed: true}}, condition_dropout: 0}",
            [],
            "set condition_dropout above 0",
        ),
        (
            "{objective: {guidance: {w_gt: 1}}, condition_dropout: 0, guidance: 1}",
            [],
            "objective.guidance needs the empty",
        ),
        ("{condition_dropout: 0, guidance: 3}", [], "guidance 3 needs the empty condition: .* above 0, or guidance 1"),
        (
            "{model: {preset: c2i-test, options: {class_dropout_prob: 0}}, guidance: 1}",
            [],
            "condition_dropout 0.1 needs an empty class: .* above 0, or condition_dropout 0",
        ),
        (
            "{model: {preset: c2i-test, options: {class_dropout_prob: 0}}, guidance: 3}",
            [],
            "guidance 3 needs an empty class: set model.options.class_dropout_prob above 0, or guidance 1",
        ),
        ("{optimizer: {name: adafactor}, parallel: fsdp}", [], "weights that parallel fsdp shards; use ddp, or adamw"),
        ("{optimizer: {name: adafactor}, parallel: hsdp}", [], "weights that parallel hsdp shards"),
        ("a: {b: {c: 1}}", [], "unknown key a; known are data"),
        ("run: 3", [], "run: expected"),
        ("data: {source: [1]}", [], "data.source: expected a valid string"),
    ],
)
def test_mistakes_are_one_line(tmp_path: Path, text: str, words: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        load_recipe(write_recipe(tmp_path, text), Recipe, words)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "{condition_dropout: 0, guidance: 1}",
        "{condition_dropout: 0, guidance: 3, lora: {}, model: {weights: builtin}}",
        "{condition_dropout: 0, guidance: 1, model: {preset: c2i-test, options: {class_dropout_prob: 0}}}",
        "{model: {options: {class_dropout_prob: 0}}}",  # of captions, the empty one is always there
    ],
)
def test_guidance_is_taken_where_the_empty_condition_is_learned_or_not_needed(tmp_path: Path, text: str) -> None:
    load_recipe(write_recipe(tmp_path, text), Recipe)


def test_values_whose_meaning_is_clear_are_taken(tmp_path: Path) -> None:
    recipe = load_recipe(
        write_recipe(tmp_path, "model: {preset: t2i-test, options: {hidden_size: 1e2, depth: 3}}\ndata: {mirror: yes}"),
        Recipe,
        [
            "--sample_prompts",
            "[0, 1]",
            "--data.source",
            "2024",
            "--run.steps",
            "1e2",
            "--optimizer.learning_rate",
            "1e-4",
        ],
    )
    assert recipe.model.options == {"hidden_size": 100, "depth": 3}
    assert (recipe.sample_prompts, recipe.data.source, recipe.data.mirror) == (("0", "1"), "2024", True)
    assert (recipe.run.steps, recipe.optimizer.learning_rate) == (100, 1e-4)


def test_another_kind_of_objective_keeps_what_was_given_and_nothing_else(tmp_path: Path) -> None:
    given = ObjectiveConfig.model_validate({"kind": "mean_flow", "eps": 0.1})
    assert given.model_dump(exclude_unset=True) == {"kind": "mean_flow", "eps": 0.1}
    (tmp_path / "config.yaml").write_text(dump(Recipe(objective=given)))
    assert load_recipe(tmp_path / "config.yaml", Recipe).objective == given
    for kind in OBJECTIVES:
        changed = load_recipe(tmp_path / "config.yaml", Recipe, ["--objective.kind", kind]).objective
        assert changed == ObjectiveConfig.model_validate({"kind": kind, "eps": 0.1})
    (tmp_path / "own.yaml").write_text("objective: {kind: mean_flow, diffusion_share: 0.75}")
    own = load_recipe(tmp_path / "own.yaml", Recipe, ["--objective.kind", "transition"]).objective
    assert (own.diffusion_share, own.derivative) == (0.75, "central")


def test_what_is_given_of_a_section_leaves_the_rest_as_its_recipe_has_it() -> None:
    for kind in (Recipe, CodecRecipe):
        whole, given = kind(), kind.model_validate({"run": {"steps": 7}, "optimizer": {"warmup": 3}})
        assert given.run == whole.run.model_copy(update={"steps": 7})
        assert given.optimizer == whole.optimizer.model_copy(update={"warmup": 3})
