"""What was meant by what is no option, and words in any order."""

import os
import subprocess
import sys
from pathlib import Path
from time import perf_counter

import pytest
from helpers import leaves, refused

from anystep.cli import build_parser, main
from anystep.cli.parser import OTHER_NAMES


@pytest.mark.parametrize("arguments", [[], ["paint"], ["data"], ["data", "paint"], ["train"], ["info", "--x"]])
def test_bad_usage_is_one_line(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    assert "error: " in refused(capsys, *arguments)


@pytest.mark.parametrize(
    ("arguments", "meant"),
    [
        (["generate", "a whale", "--num-inference-steps", "3"], "--steps"),
        (["generate", "a whale", "--step", "3"], "--steps"),
        (["generate", "a whale", "-o", "x.png"], "--out"),
        (["generate", "a whale", "--width", "64"], "--size"),
        (["generate", "a whale", "--guidance-scale", "3"], "--guidance"),
        (["data", "prepare", "x", "--size", "32", "--outt", "y"], "--out"),
        (["benchmark", "scenes", "--out", "x", "--num-inference-steps", "3"], "--steps"),
        (["evaluate", "--output", "x"], "--out"),
        (["train", "emoji", "--dryrun", "1"], "--dry-run"),
        (["genrate", "a whale"], "generate"),
        (["plan", "--on", "H10"], "H100"),
        (["plan", "--model", "t2i-xxl"], "t2i-xl"),
        (["generate", "--prompt", "a whale"], "PROMPT"),
        (["generate", "a whale", "--cfg", "3"], "--guidance"),
        (["generate", "a whale", "--ckpt_name", "x"], "--model"),
        (["train", "emoji", "--batch-size", "4", "--dry-run"], "--run.batch_size"),
        (["train", "emoji", "--lr", "1e-3", "--dry-run"], "--optimizer.learning_rate"),
        (["train", "emoji", "--max_train_steps", "4", "--dry-run"], "--run.steps"),
        (["train", "emoji", "--output_dir", "x"], "--out"),
        (["train", "emoji", "--optimzer.learning_rate", "1e-3", "--dry-run"], "--optimizer.learning_rate"),
        (["compare", "emoji", "--out", "x", "--lr", "1e-3"], "--recipe.optimizer.learning_rate"),
    ],
)
def test_a_near_miss_is_told_what_was_meant(
    capsys: pytest.CaptureFixture[str], arguments: list[str], meant: str
) -> None:
    told = refused(capsys, *arguments)
    assert f"did you mean {meant}?" in told
    assert told.count("did you mean") == 1


def test_what_other_programs_call_an_option_is_one_that_some_command_has() -> None:
    known = {"PROMPT"}
    for parser in (each for _, each in leaves(build_parser())):
        known |= {*parser._option_string_actions, *(f"--{name}" for name in parser.override_names())}
    assert {each for names in OTHER_NAMES.values() for each in names.split()} <= known


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["plan-steps", "--out", "o", "--budgets", "1", "2", "runs/x"], {"model": "runs/x", "budgets": [1, 2]}),
        (["plan-steps", "runs/x", "--budgets", "1", "2", "--out", "o"], {"model": "runs/x", "budgets": [1, 2]}),
        (["average", "--choose", "0.05", "0.1", ".", "--out", "o"], {"folder": Path("."), "choose": [0.05, 0.1]}),
        (["compare", "--only", "a", "b", "emoji", "--out", "o"], {"recipe": "emoji", "only": ["a", "b"]}),
        (["compare", "--out", "o", "--debug", "emoji"], {"recipe": "emoji", "debug": True}),
        (["train", "--run.seed", "-1", "emoji"], {"recipe": "emoji", "overrides": ["--run.seed", "-1"]}),
        (["data", "show", "--count", "2", "builtin"], {"source": "builtin", "count": 2}),
        (["generate", "--steps", "1", "2", "a whale", "--seed", "3", "b"], {"prompts": ["a whale", "b"], "seed": 3}),
        (["generate", "--like", __file__, "--seeds", "12", "13"], {"prompts": [], "seeds": [12, 13]}),
        (["generate", "--prompts-file", "-", "--steps", "1", "2"], {"prompts": [], "steps": [1, 2]}),
        (["generate", "--like", __file__, "--lora", "a", "b"], {"prompts": [], "lora": [("a", 1.0), ("b", 1.0)]}),
        (["generate", "--lora", "a", "a whale"], {"prompts": ["a whale"], "lora": [("a", 1.0)]}),
        (["generate", "--seed", "3", "--", "--a whale"], {"prompts": ["--a whale"], "seed": 3}),
        (["--verbose", "generate", "x"], {"prompts": ["x"], "verbose": True}),
        (["generate", "x", "--verbose"], {"prompts": ["x"], "verbose": True}),
        (["generate", "x", "--size", "64"], {"size": (64, 64)}),
        (["evaluate", "--out", "o", "--size", "64x32"], {"size": (64, 32)}),
    ],
)
def test_options_stand_anywhere(words: list[str], expected: dict[str, object]) -> None:
    options, rest = build_parser().parse_known_args(words)
    assert rest == []
    assert {name: getattr(options, name) for name in expected} == expected


@pytest.mark.parametrize(
    ("words", "lines"),
    [
        (["train", "emoji"], ["--run.steps INT", "(default: 8000)", "--objective.kind transition|any_step"]),
        (["train"], ["--run.steps INT", "(default: 1000)", "Number of optimizer steps"]),
        (["train-codec", "codec-emoji"], ["--codec.latent_channels INT", "--refine TEXT|null"]),
        (["compare", "emoji"], ["--recipe.run.batch_size INT", "--evaluations INT", "(default: 96000)"]),
    ],
)
def test_help_lists_the_fields_of_a_recipe(
    words: list[str], lines: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert main([*words, "--help"]) == 0
    told = capsys.readouterr().out
    assert main([words[0], "--help", *words[1:]]) == 0
    assert capsys.readouterr().out == told
    assert all(line in told for line in lines)


def test_help_of_a_recipe_that_is_none_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert "did you mean emoji?" in refused(capsys, "train", "emojy", "--help")


@pytest.mark.parametrize("words", [["--help"], ["train", "emoji", "--help"], ["compare", "emoji", "--help"]])
def test_help_comes_at_once_and_without_torch(words: list[str]) -> None:
    """Time of this process alone, as neighbours on the machine cost more."""
    code = f"import sys; from anystep.cli import main; main({words!r}); sys.exit('torch' in sys.modules)"
    before, begin = os.times(), perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
    after = os.times()
    spent = after.children_user + after.children_system - before.children_user - before.children_system
    assert min(spent, perf_counter() - begin) < 0.4
