"""What every section of a recipe is, and how a value that does not fit is explained in one line."""

from collections.abc import Sequence
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError, field_validator
from pydantic.fields import FieldInfo

from anystep.bounds import check_name, check_text, cut, expectation, nearest, shown

Name = Annotated[str, AfterValidator(check_name)]
Text = Annotated[str, AfterValidator(check_text)]


class Section(BaseModel):
    """A part of a recipe: immutable, and an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _plain(cls, value: Any, info: Any) -> Any:
        """Whole numbers are text where text is wanted; true and false are no numbers."""
        return _plainly(value, cls.model_fields[info.field_name or ""].annotation)


def _plainly(value: Any, annotation: Any) -> Any:
    kinds = _kinds(annotation)
    if isinstance(value, list | tuple):
        inner = next((each for each in kinds if get_origin(each) is tuple), None)
        places = (
            get_args(inner)[:1] * len(value) if inner is not None and get_args(inner)[-1] is ... else get_args(inner)
        )
        return [_plainly(*each) for each in zip(value, places, strict=True)] if len(places) == len(value) else value
    if isinstance(value, dict) and (inner := next((each for each in kinds if get_origin(each) is dict), None)):
        for key, each in value.items():
            if isinstance(each, bool) and {int, float} & set(_kinds(get_args(inner)[1])):
                raise ValueError(f"{cut(str(key))} {each}: expected a number, not true or false")
        return value
    numeric, text = {int, float} & set(kinds), str in kinds
    if isinstance(value, bool) and numeric and bool not in kinds:
        raise ValueError("expected a number, not true or false")
    return str(value) if type(value) is int and text and not numeric else value


def _kinds(annotation: Any) -> list[Any]:
    """The types that an annotation allows, without bounds and None."""
    if get_origin(annotation) is Annotated:
        return _kinds(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return [kind for each in get_args(annotation) if each is not NoneType for kind in _kinds(each)]
    return [annotation]


def explain(kind: type[BaseModel], error: ValidationError) -> str:
    """What is wrong with a recipe, as a line: field, value, and what was expected, once a field."""
    problems: dict[str, str] = {}
    for each in error.errors():
        where, annotation, known = _place(kind, each["loc"])
        message = each["msg"].removeprefix("Value error, ").replace("Input should be", "expected")
        if each["type"] == "extra_forbidden":
            problems[where] = f"unknown key {cut(where)}{nearest(str(each['loc'][-1]), known)}"
        elif each["type"] == "value_error" and isinstance(each["input"], dict | BaseModel):
            problems[where] = f"{cut(where)}: {message}" if where and where not in message else message
        else:
            if expected := [expectation(kind) for kind in _bounded(annotation)]:
                message = f"expected {' or '.join(expected)}"
            got = "" if message.startswith(shown(each["input"])) else f", got {shown(each['input'])}"
            problems.setdefault(where, f"{cut(where)}: {message[:1].lower()}{message[1:]}{got}")
    lines = list(problems.values())
    return "; ".join(lines[:2]) + (f"; and {len(lines) - 2} more" if len(lines) > 2 else "")


def _place(kind: type[BaseModel], path: Sequence[str | int]) -> tuple[str, Any, list[str]]:
    """Of the place of an error: its name in the recipe, the annotation there, and the keys that are known beside it."""
    names: list[str] = []
    annotation: Any = kind
    known: list[str] = []
    parts = list(path)
    while parts:
        part, (single, *others) = parts.pop(0), _kinds(annotation)
        if others:  # pydantic names the alternative that it tried
            origin = {"tuple": tuple, "dict": dict}.get(str(part).split("[")[0])
            if origin is None or not parts:
                break
            annotation = next((each for each in (single, *others) if get_origin(each) is origin), None)
            continue
        names.append(str(part))
        if isinstance(single, type) and issubclass(single, BaseModel):
            known = list(single.model_fields)
            annotation = _annotated(single.model_fields[part]) if part in single.model_fields else None
        elif get_origin(single) is tuple:
            inner = get_args(single)
            annotation = inner[0] if inner[-1] is ... or not isinstance(part, int) else inner[min(part, len(inner) - 1)]
        elif get_origin(single) is dict:
            annotation = None if parts[:1] == ["[key]"] else get_args(single)[1]
        else:
            annotation = None
    return ".".join(names), annotation, known


def _annotated(field: FieldInfo) -> Any:
    return Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation


def _bounded(annotation: Any) -> list[Any]:
    """The kinds of numbers among what an annotation allows."""
    if get_origin(annotation) in (Union, UnionType):
        return [kind for each in get_args(annotation) for kind in _bounded(each)]
    return [annotation] if get_origin(annotation) is Annotated and get_args(annotation)[0] in (int, float) else []
