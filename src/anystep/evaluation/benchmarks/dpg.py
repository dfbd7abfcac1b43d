"""DPG-Bench (arXiv 2403.05135): long prompts, judged by questions that depend on each other.

Prompts are `FOLDER/ID.txt`; questions a CSV file as published. Images lie as its scorer expects them: `ID.png`, four
samples in a square.
"""

import csv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from anystep.errors import InputError
from anystep.evaluation.benchmarks.generate import GenerationRequest
from anystep.evaluation.benchmarks.scores import share
from anystep.evaluation.image_files import open_image, write_image
from anystep.files import check_names, read_text

GRID = 2  # samples on each side of a square
COLUMNS = ("item_id", "proposition_id", "dependency", "category_broad", "question_natural_language")
Answer = Callable[[Image.Image, Sequence[str]], list[bool]]


@dataclass(frozen=True)
class Question:
    """`parents` must all be answered with yes before this one counts."""

    number: int
    parents: tuple[int, ...]
    category: str
    text: str


def read_prompts(folder: Path) -> dict[str, str]:
    """By id, in order. Raises InputError: no folder, or none in it."""
    paths = sorted(folder.glob("*.txt")) if folder.is_dir() else []
    if not paths:
        raise InputError(f"DPG-Bench prompts {str(folder)!r}: expected a folder of ID.txt files")
    check_names(((path.stem,) for path in paths), f"{folder}: the prompt")
    prompts = {path.stem: read_text(path).strip() for path in paths}
    if empty := [name for name, prompt in prompts.items() if not prompt]:
        raise InputError(f"{folder / empty[0]}.txt: no prompt in it")
    return prompts


def read_questions(path: Path) -> dict[str, list[Question]]:
    """By the id of the prompt. Raises InputError: no such file, or columns missing."""
    try:
        rows = list(csv.DictReader(read_text(path).splitlines(keepends=True)))
    except csv.Error as error:
        raise InputError(f"DPG-Bench questions {str(path)!r}: {error}") from None
    missing = [name for name in COLUMNS if not rows or name not in rows[0]]
    if missing:
        raise InputError(f"{path}: no column {', '.join(missing)}; expected the published dpg_bench.csv")
    questions: dict[str, list[Question]] = {}
    for number, row in enumerate(rows, 2):
        try:
            if None in row.values():
                raise ValueError("fewer fields than columns")
            parents = tuple(int(each) for each in row["dependency"].split(",") if int(each) != 0)
            question = Question(
                int(row["proposition_id"]), parents, row["category_broad"].strip(), row["question_natural_language"]
            )
        except ValueError as error:
            raise InputError(f"{path}, line {number}: {error}") from None
        questions.setdefault(row["item_id"], []).append(question)
    return questions


def generation_requests(prompts: Mapping[str, str], folder: Path, seed: int = 0) -> list[GenerationRequest]:
    """Four samples of each prompt, to be put together by `assemble`."""
    return [
        GenerationRequest(folder / "samples" / f"{name}-{sample}.png", prompt, seed + number * GRID**2 + sample)
        for number, (name, prompt) in enumerate(prompts.items())
        for sample in range(GRID**2)
    ]


def assemble(prompts: Mapping[str, str], folder: Path) -> None:
    """The samples of each prompt in one square."""
    for name in prompts:
        parts = [open_image(folder / "samples" / f"{name}-{sample}.png") for sample in range(GRID**2)]
        width, height = parts[0].size
        square = Image.new("RGB", (width * GRID, height * GRID))
        for place, part in enumerate(parts):
            square.paste(part, (place % GRID * width, place // GRID * height))
        write_image(square, folder / f"{name}.png")


def count_answers(questions: Sequence[Question], yes: Sequence[bool]) -> dict[int, float]:
    """1 for a yes whose parents count too, by question: a no travels down the chain of those that rest on it.

    Struck out in the order of the questions, as published: what rests on a later one sees its plain answer.
    """
    counts = {question.number: float(answer) for question, answer in zip(questions, yes, strict=True)}
    for question in questions:
        if not all(counts.get(parent, 0.0) for parent in question.parents):
            counts[question.number] = 0.0
    return counts


def check_questions(prompts: Mapping[str, str], questions: Mapping[str, Sequence[Question]]) -> None:
    """Raises InputError for a prompt that nothing is asked about."""
    for name in prompts:
        if name not in questions:
            raise InputError(f"no questions about prompt {name!r}: the prompts and the CSV file belong together")


def score(
    folder: Path, prompts: Mapping[str, str], questions: Mapping[str, Sequence[Question]], answer: Answer
) -> dict[str, dict[str, float]]:
    """By broad category, and `overall`: the mean over prompts of the share of questions answered with yes.

    In a category each answer counts as it was given, whatever it rests on, as in the published scores.

    Raises:
        InputError: a prompt without questions, or an image that is missing or cannot be cut in four.
    """
    check_questions(prompts, questions)
    categories: dict[str, list[float]] = {}
    overall = []
    for name in prompts:
        square = open_image(folder / f"{name}.png")
        width, height = square.width // GRID, square.height // GRID
        if square.width % GRID or square.height % GRID:
            raise InputError(f"{folder / name}.png: {square.width}x{square.height} is no square of four images")
        means = []
        plain: dict[str, list[float]] = {}
        for place in range(GRID**2):
            left, top = place % GRID * width, place // GRID * height
            part = square.crop((left, top, left + width, top + height))
            yes = answer(part, [question.text for question in questions[name]])
            right = count_answers(questions[name], yes)
            means.append(sum(right.values()) / len(right))
            for question, said in zip(questions[name], yes, strict=True):
                plain.setdefault(question.category, []).append(float(said))
        overall.append(sum(means) / len(means))
        for category, values in plain.items():  # one figure a prompt: its answers are not independent
            categories.setdefault(category, []).append(sum(values) / len(values))
    return {**{name: share(values) for name, values in sorted(categories.items())}, "overall": share(overall)}
