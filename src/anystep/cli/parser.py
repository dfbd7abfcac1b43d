"""A parser of arguments whose errors are one line that says what was meant; options may stand anywhere."""

import argparse
import difflib
import os
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Annotated, Any, NoReturn, get_origin

from anystep.bounds import cut, did_you_mean, parse, shown
from anystep.errors import LONGEST, InputError, one_line

# what diffusers, its training scripts, ComfyUI and others call our options: the first of those here that a command has
OTHER_NAMES = {
    "width": "--size", "height": "--size", "resolution": "--size --data.size", "num-images": "--count", "n": "--count",
    "num-images-per-prompt": "--count", "batch-count": "--count", "batch-size": "--batch --count --run.batch_size",
    "train-batch-size": "--run.batch_size", "num-inference-steps": "--steps --sample_steps", "cfg": "--guidance",
    "cfg-scale": "--guidance", "init-image": "--image", "denoise": "--strength", "denoising-strength": "--strength",
    "checkpoint": "--model", "ckpt": "--model", "ckpt-name": "--model", "pretrained-model-name-or-path": "--model",
    "prompt": "PROMPT", "positive": "PROMPT", "generator": "--seed --run.seed", "noise-seed": "--seed --run.seed",
    "num-samples": "--samples", "eta": "--stochasticity", "output-dir": "--out", "resume-from-checkpoint": "--out",
    "lr": "--optimizer.learning_rate", "lr-warmup-steps": "--optimizer.warmup", "max-grad-norm": "--optimizer.clip",
    "max-train-steps": "--run.steps", "num-train-epochs": "--run.steps --epochs", "mixed-precision": "--run.precision",
    "gradient-accumulation-steps": "--run.accumulate", "checkpointing-steps": "--run.checkpoint_every",
    "checkpoints-total-limit": "--run.keep", "dataset-name": "--data.source --data", "train-data-dir": "--data.source",
    "validation-prompt": "--sample_prompts", "report-to": "--run.trackers",
}  # fmt: skip


class DefaultsInHelp(argparse.HelpFormatter):
    """Says the default of an option at the end of its help, where that does not."""

    def _get_help_string(self, action: argparse.Action) -> str:
        told, default = action.help or "", action.default
        if any(default is each for each in (None, False, argparse.SUPPRESS)) or default == [] or "default:" in told:
            return told
        return f"{told} (default: {' '.join(map(str, default)) if isinstance(default, list) else default})"


class OneLineParser(argparse.ArgumentParser):
    """Bad usage is one line and exit code 2. An option is its whole name: parts of names would hide typing errors.

    Attributes:
        given: what it was asked to parse.
        positionals: the words of that which belong to no option.
        takes_overrides: whether what is no option is `--section.key VALUE` of a recipe.
        explain_overrides: adds to the help what these may be, for the positional arguments that were given.
        override_names: the names of these values.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**{**options, "allow_abbrev": False, "formatter_class": DefaultsInHelp})
        self.given: list[str] | None = None
        self.positionals: list[str] = []
        self.takes_overrides = False
        self.explain_overrides: Callable[[argparse.HelpFormatter, Sequence[str]], None] | None = None
        self.override_names: Callable[[], Sequence[str]] = lambda: ()
        loudness = self.add_mutually_exclusive_group()
        flag: dict[str, Any] = {"action": "store_true", "default": argparse.SUPPRESS}
        loudness.add_argument("--quiet", **flag, help="no progress: results and errors alone")
        loudness.add_argument("--verbose", **flag, help="also the notices of libraries, and where an error came from")

    def add_argument(self, *names: Any, **options: Any) -> argparse.Action:
        """That of argparse, whose `type` may also be a kind of numbers of `anystep.bounds`."""
        if get_origin(options.get("type")) is Annotated:
            options["type"] = parse(options["type"])
        return super().add_argument(*names, **options)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        self.given = list(sys.argv[1:] if args is None else args)
        if self._subparsers is not None or "_ARGCOMPLETE" in os.environ:  # which completes the words in their order
            return super().parse_known_args(self.given, namespace)
        options, self.positionals, unknown = self._sorted(self.given)
        behind = ["--", *self.positionals] if self.positionals else []
        parsed, rest = super().parse_known_args([*options, *behind], namespace)
        rest = rest[1:] if rest[:1] == ["--"] else rest  # ours, where the command takes no positional argument
        if self.takes_overrides:
            parsed.overrides, rest, unknown = [*unknown, *rest], [], []
        return parsed, [*unknown, *rest]

    def _sorted(self, words: Sequence[str]) -> tuple[list[str], list[str], list[str]]:
        """Options with their values, positional arguments, and what looks like an option and is none, with its value.

        An option of several numbers ends at the first word that is no attempt at a number, as in
        `--steps 1 2 "a red apple"`; one of several words gives up its last where a positional argument is missing.
        Where that may be missing, as prompts may beside `--like`, only a word with a space in it is given up.
        """
        options: list[str] = []
        positionals: list[str] = []
        unknown: list[str] = []
        last_of_several: list[int] = []  # places in `options`
        place = 0
        while place < len(words):
            word = words[place]
            place += 1
            if word == "--":
                positionals += words[place:]
                break
            if not self._is_option(word):
                positionals.append(word)
                continue
            name, equals, _ = word.partition("=")
            action = self._option_string_actions.get(name)
            into = unknown if action is None else options
            into.append(word)
            several = action is not None and action.nargs == "+"
            most = 0 if equals else self._values_of(action)
            first = place
            while place < len(words) and place - first < most and self._is_value(words[place], action):
                if several and place > first and _ends_numbers(action, words[place]):
                    break
                into.append(words[place])
                place += 1
            if several and place - first > 1:
                last_of_several.append(len(options) - 1)
        required = [each for each in self._get_positional_actions() if each.required]
        if len(positionals) < len(required) and len(last_of_several) == 1:
            (last,) = last_of_several
            if any(each.nargs != "*" for each in required) or " " in options[last]:
                positionals.append(options.pop(last))
        return options, positionals, unknown

    def _is_option(self, word: str) -> bool:
        name = word.split("=")[0]
        if not word.startswith("-") or word == "-" or self._negative_number_matcher.match(word):
            return False
        return name in self._option_string_actions or " " not in name

    def _is_value(self, word: str, action: argparse.Action | None) -> bool:
        if action is None and self.takes_overrides:  # of a recipe, such as -1e-3
            return word.split("=")[0] not in self._option_string_actions
        return word != "--" and not self._is_option(word)

    def _values_of(self, action: argparse.Action | None) -> int:
        """The most words that an option takes."""
        if action is None:
            return 1 if self.takes_overrides else sys.maxsize
        if isinstance(action.nargs, int):
            return action.nargs
        return sys.maxsize if action.nargs in ("+", "*") else 1

    @property
    def chosen(self) -> "OneLineParser":
        """The parser of the command that was given, or of its action."""
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                return next((each.chosen for each in action.choices.values() if each.given is not None), self)
        return self

    def unknown(self, words: Sequence[str]) -> NoReturn:
        """Refuse words that are no arguments of this command."""
        named = "--model" in self._option_string_actions and not words[0].startswith("-")
        self.error(f"unknown arguments: {cut(' '.join(words), 160)}{': a model is named by --model' * named}")

    def did_you_mean(self, words: Iterable[str]) -> str:
        """What options, or values of a recipe, were meant by words that look like options and are none."""
        fields = [f"--{name}" for name in self.override_names()]
        options = [name for name in self._option_string_actions if name.startswith("--")]
        positionals = [str(action.metavar or action.dest) for action in self._get_positional_actions()]
        meant = {word: near for word in words if (near := nearest_option(word, [*positionals, *options], fields))}
        return "".join(f"; {cut(word)}: did you mean {near}?" for word, near in meant.items())

    def format_help(self) -> str:
        if self.explain_overrides is None:
            return super().format_help()
        formatter = self._get_formatter()
        try:
            self.explain_overrides(formatter, self.positionals)
        except InputError as error:
            self.error(str(error))
        return super().format_help() + "\n" + formatter.format_help()

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            names = [str(each) for each in action.choices]
            hint = did_you_mean(str(value), names)
            raise argparse.ArgumentError(action, f"{shown(value)}: {hint}expected one of {', '.join(names)}")

    def error(self, message: str) -> NoReturn:
        # a misspelt name may be why another is missing, so it is told with every error
        start = f"{self.prog}: error: "
        self.exit(2, f"{start}{one_line(message + self.did_you_mean(self.given or ()), LONGEST + 16 - len(start))}\n")


def nearest_option(word: str, options: Sequence[str], fields: Sequence[str] = ()) -> str | None:
    """What was meant by a word that looks like an option and is none: by what others call it, or by its letters.

    Args:
        options: those of the command, and its positional arguments.
        fields: values of a recipe, `--section.key`; the last part of a name is enough.
    """
    if not re.fullmatch(r"--?[A-Za-z][\w.-]*(=.*)?", word, re.DOTALL):
        return None
    name = word.split("=")[0].lower().replace("_", "-").strip("-")
    known = {each[2:].replace("_", "-"): each for each in (*fields, *options) if each.startswith("--")}
    if name in known:
        return None
    for other in OTHER_NAMES.get(name, "").split():
        inside = f".{other[2:]}"  # in a comparison, the recipe's sections lie in one of its own
        if found := next((each for each in (*options, *fields) if each == other or each.endswith(inside)), None):
            return found
    short = {each[2:].rpartition(".")[2].replace("_", "-"): each for each in reversed(fields)}
    known = {**(known if "." in name else short), **{each[2:]: each for each in options if each.startswith("--")}}
    near = [known[name]] if name in known else []
    near += [each for each in options if len(name) == 1 and each[2:].startswith(name)]
    near += [known[each] for each in difflib.get_close_matches(name, known, n=1, cutoff=0.7)]
    near += [known[each] for each in known if each in name.split("-")]
    near += [known[each] for each in difflib.get_close_matches(name, known, n=1)]
    return near[0] if near else None


def _ends_numbers(action: argparse.Action | None, word: str) -> bool:
    """Whether a word behind the numbers of an option is no attempt at another."""
    if getattr(getattr(action, "type", None), "kind", None) is None:
        return False
    try:
        float(word)
    except ValueError:
        return any(each.isalpha() for each in word) and (" " in word or not word[0].isdigit())
    return False
