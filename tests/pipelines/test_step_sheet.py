"""Sheets of many step counts: which image is where, and what is written beside it."""

from pathlib import Path
from typing import Any

import pytest

from anystep.contact_sheet import contact_sheet
from anystep.pipelines.load import Model, load
from anystep.pipelines.step_sheet import any_step_sheet, blank_sheet, models_sheet


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> Model:
    return load(tiny_model)


def test_a_sheet_has_prompts_down_and_steps_across(model: Model) -> None:
    drawn = []
    sheet = any_step_sheet(
        model, ["a whale", "a tractor"], [1, 3], 2, on_image=lambda cell, *place: drawn.append(place)
    )
    assert drawn == [(0, 0), (1, 0)] * 2
    assert [(steps, nfe) for steps, nfe, _ in sheet.costs()] == [(1, 2), (3, 6)]
    assert all(ms > 0 for _, _, ms in sheet.costs())
    assert sheet.columns[1][0].images[0].tobytes() == model("a whale", steps=3, seed=2)[0].tobytes()
    picture = sheet.picture()
    assert sheet.size == blank_sheet(["a whale", "a tractor"], [2], [1, 3], (16, 16)).size == picture.size
    assert picture.width > 2 * 160
    assert picture.height > 2 * 160


@pytest.mark.parametrize("costs", [False, True])
def test_models_and_prompts_are_rows_of_one_seed_each(model: Model, tiny_classes: Path, costs: bool) -> None:
    prompts, classes = ["a whale", "a tractor"], load(tiny_classes)
    words: dict[str, Any] = {"seeds": [3, 4], "guidance": 1.0}
    made = [model(prompts, count, [3, 4], guidance=1.0) for count in (1, 3)]
    rows = [list(row) for row in zip(*made, strict=True)]
    columns = ["1 step", "3 steps"] if not costs else ["1 step\n1 NFE", "3 steps\n3 NFE"]
    expected = contact_sheet(rows, prompts, columns)
    found = models_sheet([("", model, prompts)], [1, 3], costs=costs, **words)
    assert found.tobytes() == expected.tobytes()
    both = models_sheet([("one: ", classes, [2, 0]), ("other: ", classes, [2, 0])], [2], 5)
    images = [[image] for image in classes([2, 0], 2, 5)]
    labels = [f"{name}: {classes.class_names[number]}" for name in ("one", "other") for number in (2, 0)]
    assert both.tobytes() == contact_sheet(2 * images, labels, ["2 steps"]).tobytes()
