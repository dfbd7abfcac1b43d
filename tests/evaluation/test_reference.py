"""The real images of a report, and those that something is chosen by."""

import errno
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from anystep.cli import main
from anystep.data.example import BrokenExample, Example
from anystep.data.sources import open_source
from anystep.errors import InputError
from anystep.evaluation.reference import Reference
from anystep.evaluation.settings import VALIDATION_SEED


class Pictures(list[Example | None]):
    """Examples in memory; None where one cannot be read."""

    def __init__(self, count: int, class_names: Sequence[str] = (), **about: Any) -> None:
        classes = max(1, len(class_names))
        super().__init__(
            Example(
                f"{place}", Image.new("RGB", (2, 2), (place % 256, place // 256, 0)), label=place % classes, **about
            )
            for place in range(count)
        )
        self.class_names = class_names

    def __getitem__(self, index: int) -> Example:  # type: ignore[override]
        if (found := super().__getitem__(index)) is None:
            raise BrokenExample(f"{index}: cut off")
        return found


@pytest.mark.parametrize("seed", [0, 1, 7])
def test_validation_has_nothing_in_common_with_what_is_reported(classes: Path, seed: int) -> None:
    source = open_source(f"classes:{classes}", 8)
    whole, test, validation = (
        Reference.draw(source, 8, 40, 0 if part == "validation" else seed, part)
        for part in ("whole", "test", "validation")  # type: ignore[arg-type]
    )
    assert (whole.real, whole.held_out) == (test.real, test.held_out)
    assert not {*validation.real, *validation.held_out} & {*test.real, *test.held_out}
    assert (whole.real == Reference.draw(source, 8, 40, 0).real) == (seed == 0)
    most = [Reference.draw(source, 8, 1000, 0, part) for part in ("test", "validation")]  # type: ignore[arg-type]
    drawn = [index for each in most for index in (*each.real, *each.held_out)]
    assert len(drawn) == len(set(drawn)) == 220
    assert VALIDATION_SEED > 10**9


@given(
    broken=st.sets(st.integers(0, 39)),
    samples=st.integers(1, 25),
    seed=st.integers(0, 3),
    part=st.sampled_from(["whole", "test", "validation"]),
)
def test_what_cannot_be_read_is_passed_over_and_nothing_is_drawn_twice(
    broken: set[int], samples: int, seed: int, part: Literal["whole", "test", "validation"]
) -> None:
    pictures, other = Pictures(40), "test" if part == "validation" else "validation"
    count = 40 if part == "whole" else 20
    order = Reference.draw(pictures, 2, count // 2, seed, part)
    order = [index for index in (*order.real, *order.held_out) if index not in broken]
    for index in broken:
        pictures[index] = None
    if len(order) < 2:
        with pytest.raises(InputError, match=r"cannot be read: \d+: cut off: need at least 2"):
            Reference.draw(pictures, 2, samples, seed, part)
        return
    found = Reference.draw(pictures, 2, samples, seed, part)
    drawn = [*found.real, *found.held_out]
    assert len(found.real) == len(found.held_out) == min(samples, count // 2, len(order) // 2)
    assert drawn == order[: len(drawn)]  # in the order that they have where all can be read
    assert bool(found.notes) == bool(found.unreadable)
    if part != "whole" and len(broken) < 18:
        assert not {*drawn} & {*(apart := Reference.draw(pictures, 2, 40, seed, other)).real, *apart.held_out}  # type: ignore[arg-type]


@given(st.integers(0, 299))
def test_any_image_that_is_replaced_is_noticed(place: int) -> None:
    pictures = Pictures(600)
    before = Reference.draw(pictures, 2, 300, 0)
    for index, changes in ((before.real[place], True), (before.held_out[place], False)):
        changed = Pictures(600)
        changed[index] = replace(pictures[index], image=Image.new("RGB", (2, 2), "white"))
        after = Reference.draw(changed, 2, 300, 0)
        assert after.real == before.real
        assert (after.fingerprint(after.real) != before.fingerprint(before.real)) == changes


def test_an_image_file_that_is_replaced_is_noticed_and_one_that_is_touched_is_not(tmp_path: Path) -> None:
    def fingerprint() -> str:
        reference = Reference.draw(open_source(f"classes:{tmp_path}", 2), 2, 10, 0)
        return reference.fingerprint(reference.real)

    (tmp_path / "one").mkdir()
    for number in range(3):
        Image.new("RGB", (2, 2), (number, 0, 0)).save(tmp_path / "one" / f"{number}.png")
    before = fingerprint()
    for path in tmp_path.glob("*/*"):
        path.touch()
    assert fingerprint() == before
    for path in tmp_path.glob("*/*"):
        Image.new("RGB", (2, 2), "white").save(path)
    assert fingerprint() != before


@pytest.mark.parametrize(
    ("theirs", "ours", "found"),
    [
        (["bee", "cat"], ["ant", "bee", "cat"], [1, 2]),
        (["cat", "ant"], ["ant", "bee", "cat"], [2, 0]),
        (["0", "2"], ["0", "1", "2"], [0, 2]),
        (["crane", "crane"], ["crane", "crane"], [0, 1]),  # ImageNet has two
        (["0", "1"], ["ant", "bee", "cat"], [0, 1]),  # no names in the data
        ([], ["ant", "bee", "cat"], [0, 0]),
        (["ant", "bee"], ["0", "1", "2"], [0, 1]),  # no names in the model
    ],
)
@pytest.mark.parametrize("captions", [(), ("a caption",)])
def test_classes_are_those_of_the_same_name(
    theirs: list[str], ours: list[str], found: list[int], captions: tuple[str, ...]
) -> None:
    reference = Reference.draw(Pictures(40, theirs, captions=captions), 2, 20, 0)
    labels = [found[index % 2] for index in reference.held_out]
    assert reference.prompts(30, 0, "a model", ours) == [*labels, *labels[:10]]


def test_what_a_model_cannot_draw_of_the_data_is_one_line() -> None:
    named, captioned = Pictures(40, ["ant", "wasp"]), Pictures(40, captions=("a", "b"))
    assert {*Reference.draw(captioned, 2, 9, 0).prompts(30, 0, "it", None)} == {"a", "b"}
    with pytest.raises(InputError, match="it draws other classes than the data has: unknown class 'wasp'"):
        Reference.draw(named, 2, 9, 0).prompts(9, 0, "it", ["ant", "bee"])
    with pytest.raises(InputError, match=r"it draws captions, but the data has none of '\d+'"):
        Reference.draw(named, 2, 9, 0).prompts(9, 0, "it", None)
    for place, example in enumerate(list(captioned)):
        captioned[place] = replace(example, label=None) if example else None
    with pytest.raises(InputError, match=r"it draws 2 classes, but '\d+' has no class"):
        Reference.draw(captioned, 2, 9, 0).prompts(9, 0, "it", ["ant", "bee"])


def test_scorers_are_told_the_names_of_classes() -> None:
    named, numbered = (Pictures(40, names) for names in (["ant", "wasp"], ["0", "1"]))
    reference = Reference.draw(named, 2, 20, 0)
    assert reference.captions(20, 0) == [["ant", "wasp"][index % 2] for index in reference.held_out]
    with pytest.raises(InputError, match="neither a caption nor a class with a name"):
        Reference.draw(numbered, 2, 20, 0).captions(20, 0)


def test_a_command_refuses_classes_that_the_model_has_not(
    tiny_classes: Path, pooled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(220):
        (tmp_path / "data" / "wasp").mkdir(exist_ok=True, parents=True)
        Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / "data" / "wasp" / f"{number}.png")
    command = f"evaluate --model {tiny_classes} --extractor {pooled} --allow-code --samples 60 --out {tmp_path / 'out'}"
    words = [*command.split(), *f"--metrics kernel_distance --data classes:{tmp_path / 'data'} --dry-run".split()]
    assert main(words) == 2
    assert f"model '{tiny_classes}' draws other classes than the data has" in capsys.readouterr().err
    (tmp_path / "data" / "wasp").rename(tmp_path / "data" / "bee")
    assert main(words) == 0


def test_a_fault_of_the_machine_passes_nothing_over() -> None:
    class Behind(Pictures):
        def __getitem__(self, index: int) -> Example:
            raise BrokenExample("0.png: Input/output error") from OSError(errno.EIO, "Input/output error")

    with pytest.raises(InputError, match="no fault of the example: run the same command again"):
        Reference.draw(Behind(40), 2, 9, 0)
