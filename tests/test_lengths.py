"""What is to be read in one go is short: files, functions and what they are called with."""

import ast
from pathlib import Path

import pytest

import anystep

PACKAGE = Path(anystep.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
FILE_LINES, FUNCTION_LINES, ARGUMENTS = 400, 80, 10
# what diffusers calls by names that are its own, and configurations
WIDE = {("transition.py", "__call__"), ("transition.py", "__init__"), ("transformer.py", "__init__"),
        ("transformer.py", "forward")}  # fmt: skip


def functions(path: Path) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    tree = ast.walk(ast.parse(path.read_text("utf-8")))
    return [node for node in tree if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]


def lines_without_docstring(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    first = function.body[0]
    docstring = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
    said = (first.end_lineno or 0) - first.lineno + 1 if docstring else 0
    return (function.end_lineno or 0) - function.lineno + 1 - said


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_files_functions_and_signatures_are_short(path: Path) -> None:
    assert len(path.read_text("utf-8").splitlines()) <= FILE_LINES
    for function in functions(path):
        named = function.args.args + function.args.kwonlyargs
        own = [each for each in named if each.arg not in ("self", "cls")]
        if (path.name, function.name) not in WIDE:
            assert lines_without_docstring(function) <= FUNCTION_LINES, function.name
            assert len(own) <= ARGUMENTS, function.name
