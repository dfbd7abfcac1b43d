"""Bad values of every option of every command, in a table made from the parser itself.

An option added to the parser is in the table without anyone remembering: its kind says which values are bad, and an
option whose kind the table does not know fails.
"""

import argparse
import os
from collections.abc import Iterator
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, get_args

import pytest
from helpers import leaves

from anystep.bounds import Seed, is_within
from anystep.cli import build_parser, main, option_types
from anystep.cli.generate import seed_or_random

LONG = "x" * 5000
TEXT = ["", "\0", "a\x1b[31m", "\x7f", LONG]  # no names
NUMBERS = [
    "", "x", "é", "１２", "٣", "²", "0x10", "1,5", "True", "none", "\0", "1\n2", " ", "+", "-", ".", "nan", "-nan",
    "inf", "-inf", "Infinity", "1e400", "-1e400", "1e999999999999", "9" * 5000, "-1", "0", "-0.5", "1.5", "1e30",
    "-1e30", "-99999999999999999999", "99999999999999999999", "1e-400",
]  # fmt: skip
SIZES = ["0x16", "16x0", "-1x16", "16x16x16", "１６x16", "nanxnan", "16xinf", "9" * 5000 + "x1", LONG]
NO_ORIGINS = [
    "*", "null", "example.com", "localhost:3000", "https://", "https://a/b", "https://a//", "https://a?b", "https://u@a",
    "https://a:x", "https://a:65536", "https://\u00e9.org", "https://a b",
]  # fmt: skip
NOBODY = "~nobody-of-that-name/x"
PARSER = build_parser()


def options() -> Iterator[tuple[tuple[str, ...], argparse.Action]]:
    for words, parser in leaves(PARSER):
        for action in parser._actions:
            if not isinstance(action, argparse._HelpAction | argparse._VersionAction | argparse._SubParsersAction):
                yield words, action


def bad_values(action: argparse.Action, folder: Path) -> list[str]:
    """Values that are none of the option's."""
    file, fifo = folder / "file", folder / "fifo"
    if action.nargs == 0:
        return ["", "yes", LONG]
    if action.choices is not None:
        return ["", "x", "é", "\0", LONG, str(next(iter(action.choices))).upper() + "x"]
    kind = Seed if action.type is seed_or_random else getattr(action.type, "kind", None)
    if kind is not None:
        base = get_args(kind)[0]

        def fits(text: str) -> bool:
            try:
                return text.isascii() and float(text) == base(float(text)) and is_within(kind, base(float(text)))
            except (ValueError, OverflowError):
                return False

        return [text for text in NUMBERS if not fits(text)]
    nowhere, inside = str(folder / "none" / "x"), str(file / "x")
    table: dict[Any, list[str]] = {
        option_types.text: ["\0", "a\x1b[31m", "x" * 200_000],
        option_types.spec: [*TEXT, NOBODY],
        option_types.weighted_spec: [*TEXT, NOBODY, "x:1e9", "x:1.2.3"],
        option_types.origin: [*TEXT, NOBODY, *NO_ORIGINS],
        option_types.size: [*(text for text in NUMBERS if not text.isdecimal()), *SIZES],
        option_types.square: [*(text for text in NUMBERS if not text.isdecimal()), *SIZES, "16x32"],
        option_types.input_text: [*TEXT, NOBODY, nowhere, inside, str(folder), str(fifo), "/dev/zero"],
        option_types.input_file: [*TEXT, NOBODY, nowhere, inside, str(folder), str(fifo), "/dev/zero"],
        option_types.input_folder: [*TEXT, NOBODY, nowhere, inside, str(file), str(fifo), "/dev/null"],
        option_types.output_file: [*TEXT, NOBODY, nowhere, inside, str(folder), str(fifo), "/dev/full"],
        option_types.output_folder: [*TEXT, NOBODY, inside, str(file), str(fifo), "/dev/full", "/dev/null/x"],
    }
    return table[action.type]


def refused(capsys: pytest.CaptureFixture[str], words: list[str]) -> str:
    """The one line that a command refused with."""
    code = main(words)
    told = capsys.readouterr()
    assert code == 2, words
    assert told.out in ("", f"anystep {words[0]}: loading\n"), words
    assert told.err.count("\n") == 1, (words, told.err)
    assert len(told.err) <= 301, (words, told.err)
    assert told.err.rstrip("\n").isprintable(), words
    return told.err


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a file and a FIFO, beside the empty one where commands run."""
    (tmp_path / "file").write_text("x")
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "work").mkdir()
    monkeypatch.setattr("anystep.cli.build_parser", lambda: PARSER)  # to make it takes longer than to use it
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path


def everything(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*"))


COMMANDS = sorted({words for words, _ in options()})


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_bad_values_of_every_option_are_one_line_that_names_it(
    words: tuple[str, ...], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = everything(folder)
    for command, action in options():
        if command != words:
            continue
        values = bad_values(action, folder)
        assert values
        for value in values:
            if action.option_strings:
                flag = action.option_strings[-1]
                line = refused(capsys, [*words, f"{flag}={value}"])
            else:  # after all others that may be good
                flag = str(action.metavar or action.dest)
                line = refused(capsys, [*words, "--", value])
            assert flag in line, (words, value)
            assert "expected" in line or "explicit argument" in line or "cannot write there" in line, (line, value)
    assert everything(folder) == before


def test_the_table_has_every_command() -> None:
    assert {words[0] for words in COMMANDS} == {
        "generate", "train", "plan", "train-codec", "evaluate", "benchmark", "train-scene-detector", "train-alignment",
        "train-classifier", "average", "compare", "convert", "data", "recipes", "info", "plan-steps", "objectives",
        "completion", "serve", "studio", "export",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train", "--run.steps", "0", "emoji"], "run.steps: expected a whole number from 1"),
        (["train", "--run.steps=0", "--dry-run", "emoji"], "run.steps: expected a whole number from 1"),
        (["train", "--run.seed", "-1", "emoji", "--debug"], "run.seed: expected a whole number from 0"),
        (["train", "emoji", "--run.steps"], "expected --section.key value pairs"),
        (["train", "emoji", "run.steps", "4"], "expected --section.key value pairs"),
        (["train", "emoji", "--device", "abacus", "--dry-run"], "device 'abacus' is not available"),
        (["train", "emoji", "--devices", "2", "--out", "x"], "--devices 2: goes with --dry-run only"),
        (
            ["train", "emoji", "--dry-run", "--model.options.foo", "3"],
            "unknown model.options.foo; known are in_channels",
        ),
        (["train", "emoji", "--dry-run", "--model.options.hidden_size", "1e2"], "hidden_size 100 / num_heads"),
        (["train", "emoji", "--dry-run", "--a.b.c.d", "3"], "unknown key a"),
        (["train", "emoji", "--dry-run", f"--{LONG}", "3"], "unknown key xxx"),
        (["train", "emoji", "--dry-run", "--run.steps", "[" * 5000], "nested too deeply"),
        (["train", "emoji", "--dry-run", "--run", "!!python/name:os.system"], "without tags"),
        (["plan", "--train", "--model", "t2i-xl", "--devices", "0"], "--devices: '0': expected a whole number from 1"),
        (["plan", "--train", "--model", "t2i-xl", "--batch", "-1"], "--batch: '-1': expected a whole number from 1"),
        (["plan", "--on", "H100", "--utilisation", "nan"], "--utilisation: 'nan': expected a number above 0"),
        (["train-classifier", "classes:x", "--device", "abacus", "--out", "x.safetensors"], "device 'abacus' is not"),
        (["train-alignment", "--device", "abacus", "--out", "x.safetensors"], "device 'abacus' is not available"),
        (["train-scene-detector", "--device", "abacus", "--out", "x.safetensors"], "device 'abacus' is not available"),
        (["info", "--device", "meta"], "device 'meta' is not available"),
        (["info", "--device", "hpu"], "device 'hpu' is not available"),
        (["info", "--device", "cuda:99999999999999999999"], "device 'cuda:99999999999999999999' is not available"),
    ],
)
def test_overrides_and_what_they_meet(
    words: list[str], message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = everything(folder)
    assert message in refused(capsys, words)
    assert everything(folder) == before


def test_defaults_are_those_of_the_library() -> None:
    """Said in the help, which does not import what runs, and by the record that is run."""
    from anystep.data.prepare import Request as Preparation
    from anystep.evaluation.benchmarks.run import BenchmarkRequest
    from anystep.evaluation.run import Request as Evaluation
    from anystep.evaluation.step_plans import PlanRequest
    from anystep.pipelines.generate import Request as Generation

    records = {
        ("generate",): Generation, ("evaluate",): Evaluation, ("plan-steps",): PlanRequest,
        ("benchmark", "dpg"): BenchmarkRequest, ("data", "prepare"): Preparation,
    }  # fmt: skip
    compared = 0
    for words, parser in leaves(PARSER):
        for field in fields(records[words]) if words in records else ():
            given = next((action for action in parser._actions if action.dest == field.name), None)
            if given is not None and field.default is not MISSING and not given.required and field.name != "prompts":
                default = list(field.default) if isinstance(field.default, tuple) else field.default
                assert given.default == default or (given.dest == "model" and not given.default), (words, field.name)
                compared += 1
    assert compared > 50


def test_an_origin_is_what_browsers_say_of_a_page() -> None:
    for given, said in (
        ("https://ok.org/", "https://ok.org"),
        ("HTTPS://OK.org:443", "https://ok.org"),
        ("http://localhost:3000", "http://localhost:3000"),
        ("http://[::1]:80/", "http://[::1]"),
        ("chrome-extension://abcdef", "chrome-extension://abcdef"),
    ):
        assert option_types.origin(given) == said
    with pytest.raises(argparse.ArgumentTypeError, match="any page that one of your users opens could then ask"):
        option_types.origin("*")


def test_a_path_that_ends_like_a_scale_is_a_path_where_it_is_there(tmp_path: Path) -> None:
    path = tmp_path / "run-12:30"
    assert option_types.weighted_spec(str(path)) == (str(tmp_path / "run-12"), 30.0)
    path.mkdir()
    assert option_types.weighted_spec(str(path)) == (str(path), 1.0)
    assert option_types.weighted_spec(f"{path}:0.5") == (str(path), 0.5)
