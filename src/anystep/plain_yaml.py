"""YAML that somebody else wrote, and ours: plain values of bounded size, every key once, and no surprises.

A scalar is null, true or false, a number as JSON writes it (or `1e2`), or text. YAML 1.1 would also take `no` for a
truth value, `010` for eight, `12:30` for 750 and `2024-01-01` for a date, and would not take `1e2` for a number.
"""

import re
from collections.abc import Generator
from pathlib import Path
from typing import Any

import yaml

from anystep.bounds import shown
from anystep.errors import InputError
from anystep.files import read_text

MAX_LENGTH = 128 * 1024  # characters of a file: seconds of reading
MAX_DEPTH = 40  # sections in sections
MAX_VALUES = 20_000  # values, each alias counted as what it stands for
RESOLVERS = [
    ("null", r"null|Null|NULL|~|", ["n", "N", "~", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"-?(?:0|[1-9][0-9]*)", list("-0123456789")),
    (
        "float",
        r"[-+]?(?:\.[0-9]+|[0-9]+\.[0-9]*|[0-9]+(?=[eE]))(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
    ("merge", r"<<", ["<"]),
]


def yaml_error(problem: str, where: Any = None) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=where)


class _Loader(yaml.SafeLoader):
    """Refuses what is too deep or too much before it is made, and a key that is given twice."""

    yaml_implicit_resolvers: dict[str, Any] = {}
    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        self.depth += 1
        event = self.peek_event()
        if self.depth > MAX_DEPTH:
            raise yaml_error("nested too deeply", event.start_mark)
        if tag := getattr(event, "tag", None):
            raise yaml_error(f"{shown(tag)}: values are plain, without tags", event.start_mark)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def get_single_node(self) -> Any:
        node = super().get_single_node()
        _size(node, {})
        return node

    def construct_yaml_map(self, node: yaml.MappingNode) -> Generator[dict[Any, Any], None, None]:
        seen: dict[str, int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml_error("expected text as a key", key.start_mark)
            line = key.start_mark.line + 1
            if key.tag == "tag:yaml.org,2002:merge":
                continue
            if key.value in seen:
                raise yaml_error(f"{shown(key.value)} is given twice, in lines {seen[key.value]} and {line}")
            seen[key.value] = line
            key.tag = "tag:yaml.org,2002:str"  # 2024 and null are names here
        yield from super().construct_yaml_map(node)


class _Dumper(yaml.SafeDumper):
    """Quotes what `_Loader`, or a reader of YAML 1.1, would take for something else."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


for _kind in (_Loader, _Dumper):
    for _name, _pattern, _first in RESOLVERS:
        _kind.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", re.compile(rf"(?:{_pattern})\Z"), _first)
_Loader.add_constructor("tag:yaml.org,2002:map", _Loader.construct_yaml_map)


def _size(node: Any, known: dict[int, int | None]) -> int:
    """How many values a node stands for; what is made of itself has no end."""
    if node is None or isinstance(node, yaml.ScalarNode):
        return 1
    if known.get(id(node), 0) is None:
        raise yaml_error("an alias stands for something that it is part of")
    if (size := known.get(id(node))) is None:
        known[id(node)] = None
        pairs = isinstance(node, yaml.MappingNode)
        parts = [part for pair in node.value for part in pair] if pairs else node.value
        known[id(node)] = size = 1 + sum(_size(part, known) for part in parts)
    if size > MAX_VALUES:
        raise yaml_error(f"it stands for more than {MAX_VALUES} values")
    return size


def parse_yaml(text: str, name: str) -> Any:
    """Plain values.

    Raises:
        InputError: no YAML, a key given twice, a tag that is not plain, too deep, or more than a recipe can need.
    """
    if len(text) > MAX_LENGTH:
        raise InputError(f"{name}: {len(text):,} characters, more than the {MAX_LENGTH:,} that are read")
    try:
        return yaml.load(text, _Loader)
    except RecursionError:
        raise InputError(f"{name} is not YAML: nested too deeply") from None
    except yaml.YAMLError as error:
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
        where = "" if mark is None else f", line {mark.line + 1}"
        raise InputError(f"{name} is not YAML{where}: {problem or error}") from None
    except ValueError:
        raise InputError(f"{name}: a whole number of thousands of digits") from None


def read_yaml(path: Path, kind: str = "recipe") -> dict[str, Any]:
    """The mapping that a file holds, `{}` where it is empty. Raises `InputError` as `parse_yaml` and `read_text` do."""
    name = f"{kind} {shown(str(path))}"
    try:
        text = read_text(path, 4 * MAX_LENGTH)
    except InputError as error:
        raise InputError(str(error).replace("cannot read ", f"cannot read {kind} ", 1)) from None
    content = parse_yaml(text, name)
    if not isinstance(content, dict | None):
        raise InputError(f"{name} must be a mapping of sections, got {type(content).__name__}")
    return content or {}


def dump_yaml(content: Any) -> str:
    """Text that `parse_yaml` reads back."""
    return yaml.dump(content, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
