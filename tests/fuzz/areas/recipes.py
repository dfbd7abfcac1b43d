"""Recipes, comparison files, and what is set over them."""

import random
from pathlib import Path

from areas.area import Area


def make_recipe(folder: Path) -> None:
    from anystep.plain_yaml import dump_yaml

    content = {
        "data": {"source": "builtin", "size": 64, "native": False, "limit": 10},
        "model": {
            "preset": "t2i-test",
            "options": {"hidden_size": 32, "depth": 2, "rope_grid": "row_major", "mlp_ratio": 2.0},
        },
        "transport": {"name": "ot_fm", "options": {"std": 1.0, "t_max": 1.0}},
        "objective": {"kind": "shortcut", "eps": 0.01, "guidance": {"w_gt": 1.0}},
        "optimizer": {"betas": [0.9, 0.99], "learning_rate": 1e-4},
        "run": {"steps": 3, "trackers": ["tensorboard"], "precision": "auto"},
        "ema_decay": [0.9, 0.99],
        "sample_prompts": ["a cat", "1e2"],
        "debug": {"run": {"steps": 2}},
    }
    (folder / "r.yaml").write_text(dump_yaml(content))


def read_recipe(folder: Path, out: Path, rng: random.Random) -> None:
    from anystep.compare import Comparison, variant_recipe
    from anystep.training.codec_config import CodecRecipe
    from anystep.training.config import Recipe
    from anystep.training.recipe_files import dump, load_recipe

    if rng.random() < 0.6:
        recipe = load_recipe(folder / "r.yaml", Recipe, debug=rng.random() < 0.5)
        dump(recipe)
    elif rng.random() < 0.5:
        load_recipe(folder / "r.yaml", CodecRecipe)
    else:
        comparison = load_recipe(folder / "c.yaml", Comparison)
        for name in comparison.variants:
            variant_recipe(comparison, name, 0)


def make_recipes(folder: Path) -> None:
    from anystep.plain_yaml import dump_yaml

    make_recipe(folder)
    content = {
        "recipe": {"model": {"preset": "t2i-test"}, "data": {"source": "builtin"}},
        "variants": {"a": {"objective": {"kind": "transition"}}, "b": {"transport": {"name": "edm"}}},
        "evaluations": 1000, "seeds": [0, 1], "steps": [1, 2], "samples": 60, "metrics": ["kernel_distance"],
    }  # fmt: skip
    (folder / "c.yaml").write_text(dump_yaml(content))


def read_overrides(folder: Path, out: Path, rng: random.Random) -> None:
    """Odd words for overrides and for the values of a comparison's changes."""
    from anystep.compare import Comparison, vary
    from anystep.training.config import Recipe
    from anystep.training.recipe_files import load_recipe

    keys = [
        "run.steps",
        "run",
        "model.options.depth",
        "data.source",
        "a.b",
        "",
        ".",
        "objective.guidance.w_gt",
        "ema_decay",
    ]
    values = [
        "1",
        "1e2",
        "[",
        "{a: 1}",
        "nan",
        "-1",
        "!!python/name:os.system",
        "&a [*a]",
        "[" * 5000,
        "\0",
        "é",
        "",
        "~",
        "9" * 5000,
    ]
    words = [f"--{rng.choice(keys)}={rng.choice(values)}" for _ in range(rng.randrange(1, 3))]
    if rng.random() < 0.5:
        vary(Comparison(), [word[2:] for word in words])
    load_recipe(folder / "r.yaml", Recipe, words)


AREAS = {
    "YAML": Area(make_recipes, read_recipe, 4),
    "overrides": Area(make_recipe, read_overrides, 1, valid=False),
}
