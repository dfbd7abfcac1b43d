"""Bad values of every field of every recipe, in a table made from the schema itself.

A field added to the schema is in the table without anyone remembering; one whose type the table does not know fails.
"""

import math
from collections.abc import Iterator
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints
from unittest.mock import patch

import pytest
from pydantic import BaseModel

from anystep.bounds import check_text, is_within
from anystep.compare import Comparison
from anystep.errors import LONGEST, InputError, one_line
from anystep.models.transformer import TransitionTransformer2DModel
from anystep.training.codec_config import CodecRecipe
from anystep.training.config import Recipe
from anystep.training.recipe_files import load_recipe
from anystep.transport import TRANSPORTS

NUMBERS = [
    0, 1, -1, 1.5, -0.5, 10**30, -(10**30), 1e30, 1e300, -1e300, math.nan, math.inf, -math.inf, True, "", "x", "１２",
    "é", "\0", "nan", "9" * 400, None, [], {}, [[1]], {"a": 1}, [None], [math.nan, math.nan], ["x"], "1e400",
]  # fmt: skip
LONG = "x" * 200_000


def fields(kind: type[BaseModel], place: str = "") -> Iterator[tuple[str, Any]]:
    """The place and the annotation of every field, those of sections inside it included."""
    for name, field in kind.model_fields.items():
        annotation = Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation
        yield f"{place}{name}", annotation
        for each in alternatives(annotation):
            if isinstance(each, type) and issubclass(each, BaseModel):
                yield from fields(each, f"{place}{name}.")


def alternatives(annotation: Any) -> list[Any]:
    if get_origin(annotation) in (Union, UnionType):
        return [inner for each in get_args(annotation) for inner in alternatives(each)]
    return [annotation]


def takes(annotation: Any, value: Any) -> bool:
    """Whether a value is one of an annotation's, as a person would read it."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin in (Union, UnionType):
        return any(takes(each, value) for each in inner)
    if annotation is NoneType:
        return value is None
    if annotation is Any:
        return True
    if origin is Annotated and inner[0] in (int, float):
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        return is_within(annotation, value) and (inner[0] is float or value == int(value))
    if origin is Annotated and inner[0] is str:
        text = str(value) if type(value) is int else value
        checks = [each.func for each in inner[1:]]
        try:
            return isinstance(text, str) and all(check(text) == text for check in checks)
        except InputError:
            return False
    if origin is Annotated:  # at least so many in a tuple
        return takes(inner[0], value) and len(value) >= max(each.min_length for each in inner[1:])
    if origin is Literal:
        return value in inner
    if origin is tuple:
        each = [inner[0]] * len(value) if isinstance(value, list) and inner[-1] is ... else inner
        return isinstance(value, list) and len(value) == len(each) and all(map(takes, each, value))
    if origin is dict:
        return isinstance(value, dict) and all(takes(inner[0], k) and takes(inner[1], v) for k, v in value.items())
    if annotation is bool:
        return value in (0, 1, 0.0, 1.0) or value in ("yes", "no")
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return isinstance(value, dict)
    raise AssertionError(f"the table does not know {annotation}")


def line(kind: type[BaseModel], path: Path, place: str, value: Any) -> str | None:
    """What a recipe file with that value at that place is refused with."""
    content: Any = value
    for part in reversed(place.split(".")):
        content = {part: content}
    with patch("anystep.plain_yaml.read_yaml", lambda path: content):  # writing and reading it takes longer
        try:
            load_recipe(path, kind)  # type: ignore[type-var]
        except InputError as error:
            return one_line(str(error))
    return None


@pytest.mark.parametrize("kind", [CodecRecipe, Comparison])  # a comparison holds a recipe of training
def test_bad_values_of_every_field_are_one_line_that_names_it(kind: type[BaseModel], tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    for place, annotation in fields(kind):
        bad = [value for value in [*NUMBERS, [LONG[:2000]]] if not takes(annotation, value)]
        assert bad, place
        for value in bad:
            if place.endswith("options") and isinstance(value, dict):
                continue  # below
            told = line(kind, path, place, value)
            assert told is not None, (place, value)
            assert place.split(".")[-1] in told, (place, value, told)
            assert "expected" in told or "at least 1 item" in told, (place, value, told)
            assert len(told) <= LONGEST
    assert not list(tmp_path.iterdir())


def test_bad_options_of_networks_and_transports_are_one_line_that_names_them(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    makers = [("model", {}, TransitionTransformer2DModel.__init__)]
    makers += [("transport", {"name": name}, kind.__init__) for name, kind in TRANSPORTS.items()]
    for section, beside, maker in makers:
        for name, annotation in get_type_hints(maker, include_extras=True).items():
            if name == "return":
                continue
            for value in NUMBERS:
                if takes(annotation, value) or (annotation is bool and isinstance(value, bool)):
                    continue
                told = line(Recipe, path, section, {**beside, "options": {name: value}})
                assert told is not None, (section, name, value)
                assert name in told, (section, name, value, told)
                assert "expected" in told, (section, name, value, told)
        told = line(Recipe, path, section, {**beside, "options": {"nobody": 1}})
        assert told is not None
        assert "unknown" in told


def test_texts_have_an_end() -> None:
    with pytest.raises(InputError, match="at most 100,000 characters"):
        check_text(LONG)
