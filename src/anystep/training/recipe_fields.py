"""What a recipe may say: every value with its type, its default and a sentence.

It is read from the source of the recipes' classes, since importing them imports PyTorch: help is told at once. The
sentence of a value is the comment above it.
"""

import ast
import json
import runpy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import takewhile
from pathlib import Path
from typing import Any, get_args

from anystep import bounds
from anystep.training.old_names import current_recipe
from anystep.training.recipes import ONE_VALUE, recipe_chain

PACKAGE = Path(__file__).parent.parent
PLAIN = {
    "int": "INT", "float": "NUMBER", "str": "TEXT", "Name": "TEXT", "Text": "TEXT", "bool": "true|false",
    "None": "null",
}  # fmt: skip


@dataclass(frozen=True)
class RecipeField:
    """A value of a recipe.

    Attributes:
        name: its sections and its own name, with dots between.
        type: in a few words, such as `INT`, `true|false` or `[INT, ...]`.
        default: as a recipe would say it.
        sentence: what it is.
    """

    name: str
    type: str
    default: str
    sentence: str

    @property
    def choices(self) -> list[str] | None:
        """All that it can be, where these are names."""
        words = self.type.split("|")
        return words if len(words) > 1 and all(word.islower() for word in words) else None


def recipe_fields(module: str, kind: str, path: Path | None = None) -> list[RecipeField]:
    """The values of a class of recipes, in their order.

    Args:
        module: that defines the class, for example `anystep.training.config`.
        kind: the class, for example `Recipe`.
        path: a recipe, whose values are the defaults.

    Raises:
        InputError: the recipe cannot be read.
    """
    given = [] if path is None else [current_recipe(content) for content in recipe_chain(path)]
    return list(_expanded(_source(module), kind, "", given))


class _Source:
    """The names that a module of ours defines or imports from another of ours, without importing it."""

    def __init__(self, name: str) -> None:
        place = PACKAGE.joinpath(*name.split(".")[1:])
        text = (place / "__init__.py" if place.is_dir() else place.with_suffix(".py")).read_text("utf-8")
        self.lines = text.splitlines()
        self.defined: dict[str, ast.stmt] = {}
        self.imported: dict[str, str] = {}
        for node in ast.parse(text).body:
            if isinstance(node, ast.ClassDef):
                self.defined[node.name] = node
            elif isinstance(node, ast.Assign | ast.AnnAssign):
                for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                    self.defined[ast.unparse(target)] = node
            elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("anystep."):
                self.imported |= {alias.name: str(node.module) for alias in node.names}

    def find(self, name: str) -> "tuple[_Source, Any] | None":
        """Where a name is defined, and by what: a class, or the value of an assignment."""
        if name in self.defined:
            node = self.defined[name]
            return self, node if isinstance(node, ast.ClassDef) else node.value  # type: ignore[attr-defined]
        return _source(self.imported[name]).find(name) if name in self.imported else None

    def has_class(self, name: str) -> bool:
        """Whether a name is that of a class of ours."""
        found = self.find(name)
        return found is not None and isinstance(found[1], ast.ClassDef)

    def literal(self, node: ast.expr | None) -> Any:
        """The plain value of a default. Raises ValueError where it is computed."""
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "Field":
            node = next((each.value for each in node.keywords if each.arg == "default"), None) or node.args[0]
        if isinstance(node, ast.Name) and (found := self.find(node.id)) is not None:
            return found[0].literal(found[1])
        return None if node is None else ast.literal_eval(node)


@cache
def _source(name: str) -> _Source:
    return _Source(name)


Given = Sequence[Mapping[str, Any]]  # contents of recipes, each over those before it
ABSENT = object()


def _expanded(source: _Source, kind: str, prefix: str, given: Given) -> Iterator[RecipeField]:
    """The values of a class, and of the classes of its sections, whose names begin with the prefix."""
    if kind == "ObjectiveConfig":
        given = [_set_by_objective(prefix, given), *given]
    for name, (where, field, sentence) in _fields(source, kind).items():
        name = prefix + name
        section = next(filter(where.has_class, _names(field.annotation)), None)
        if section is not None:
            yield from _expanded(where, section, f"{name}.", given)
        else:
            yield RecipeField(name, _type(where, field.annotation), _default(where, field, name, given), sentence)


def _fields(source: _Source, kind: str) -> dict[str, tuple[_Source, ast.AnnAssign, str]]:
    """The fields of a class and of those that it is made from, with the source and a sentence of each."""
    where, node = source.find(kind) or (source, None)
    assert isinstance(node, ast.ClassDef), kind
    fields: dict[str, tuple[_Source, ast.AnnAssign, str]] = {}
    for base in _names(*node.bases):
        if where.has_class(base):
            fields |= _fields(where, base)
    for each in node.body:
        if isinstance(each, ast.AnnAssign) and isinstance(each.target, ast.Name):
            name = each.target.id
            before = map(str.strip, where.lines[each.lineno - 2 :: -1])
            above = [line.lstrip("# ") for line in takewhile(lambda line: line.startswith("#"), before)]
            told = " ".join(reversed(above)) or (fields[name][2] if name in fields else "")
            fields[name] = (where, each, told)
    return fields


def _names(*nodes: ast.AST) -> list[str]:
    return [each.id for node in nodes for each in ast.walk(node) if isinstance(each, ast.Name)]


def _default(source: _Source, field: ast.AnnAssign, name: str, given: Given) -> str:
    if (value := _given(given, name)) is ABSENT:
        if field.value is None:
            return "none"
        try:
            value = source.literal(field.value)
        except (ValueError, IndexError):
            return "computed"
    return json.dumps(value, ensure_ascii=False)


def _given(given: Given, name: str) -> Any:
    """What recipes say of a value, the last before the others; mappings are merged as in `recipe_files.merged`."""
    found: Any = ABSENT
    one_value = name.split(".")[-1] in ONE_VALUE
    for content in given:
        value: Any = content
        for part in name.split("."):
            value = value.get(part, ABSENT) if isinstance(value, Mapping) else ABSENT
        if value is not ABSENT:
            both = not one_value and isinstance(value, Mapping) and isinstance(found, Mapping)
            found = {**found, **value} if both else value
    return found


def _set_by_objective(prefix: str, given: Given) -> Mapping[str, Any]:
    """What the kind of an objective sets, as a recipe that says only that."""
    kind = _given(given, f"{prefix}kind")
    # run by itself: importing its package imports PyTorch
    presets = runpy.run_path(str(PACKAGE / "objective" / "presets.py"))["OBJECTIVES"]
    content: dict[str, Any] = next((preset.options for name, preset in presets.items() if name == kind), {})
    for part in reversed(prefix.split(".")[:-1]):
        content = {part: content}
    return content


def _type(source: _Source, node: ast.AST) -> str:
    """An annotation in a few words."""
    if isinstance(node, ast.BinOp):
        return f"{_type(source, node.left)}|{_type(source, node.right)}"
    if isinstance(node, ast.Constant):
        return "null"
    if isinstance(node, ast.Name):
        if node.id in PLAIN:
            return PLAIN[node.id]
        if bounded := get_args(getattr(bounds, node.id, None)):
            return PLAIN[bounded[0].__name__]
        found = source.find(node.id)
        return "VALUE" if found is None else _type(*found)
    if not isinstance(node, ast.Subscript):
        return "VALUE"
    parts = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
    match ast.unparse(node.value):
        case "Literal":
            return "|".join(str(ast.literal_eval(each)) for each in parts)
        case "Annotated":
            return _type(source, parts[0])
        case "dict":
            return f"{{{_type(source, parts[0])}: {_type(source, parts[1])}}}"
        case _:
            return f"[{', '.join('...' if ast.unparse(each) == '...' else _type(source, each) for each in parts)}]"
