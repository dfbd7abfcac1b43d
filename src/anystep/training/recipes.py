"""The recipes that come with the package, found by name. Importing this needs no PyTorch: listing them is instant."""

from pathlib import Path
from typing import Any

from anystep.bounds import did_you_mean, shown
from anystep.errors import InputError

FOLDER = Path(__file__).parent.parent / "recipes"
ONE_VALUE = {"source"}  # keys whose mapping is one value, which replaces another: sections and options are merged


def recipe_names() -> list[str]:
    """All of them, `compare/NAME` those of comparisons."""
    return sorted(
        (path.relative_to(FOLDER).with_suffix("").as_posix() for path in FOLDER.rglob("*.yaml")),
        key=lambda name: (name.count("/"), name),
    )


def command_of(name: str) -> str:
    """The command that a recipe is for."""
    if name.startswith("compare/"):
        return "compare"
    return "train-codec" if name.startswith("codec-") else "train"


def description(name: str) -> str:
    """The first line of a recipe's comment."""
    return (FOLDER / f"{name}.yaml").read_text("utf-8").split("\n", 1)[0].removeprefix("# ")


def find_recipe(given: str, command: str | None = None) -> Path:
    """The file that a recipe's name, or path, stands for; a file that is there comes before a name.

    Args:
        given: `emoji`, `compare/emoji`, or the path of a YAML file.
        command: what it is for: `anystep compare emoji` is `compare/emoji`. Any when None.

    Raises:
        InputError: neither a file nor a name of ours; says the nearest.
    """
    path = Path(given).expanduser()
    if path.is_file():
        return path
    names = [name for name in recipe_names() if command in (None, command_of(name))]
    for name in (given, f"{command}/{given}"):
        if name in names:
            return FOLDER / f"{name}.yaml"
    if path.exists() and not path.is_dir():  # reading it says what is wrong with it
        return path
    stem = path.with_suffix("").name if path.suffix in (".yaml", ".yml") else given
    near = next((name for name in names if Path(name).name == stem), None)
    if given in recipe_names():
        hint = f"it is for `anystep {command_of(given)}`"
    else:
        hint = f"did you mean {near}? " if near else did_you_mean(stem, names, 0.5)
        hint += "`anystep recipes` lists those that come with anystep"
    raise InputError(f"cannot read recipe {given!r}: there is no such file or recipe; {hint}")


def recipe_chain(path: Path, *above: Path) -> list[dict[str, Any]]:
    """The content of a recipe file, the last, after that of the recipe that its `base` names, if it has one, and so on.

    Args:
        above: the files that led here.

    Raises:
        InputError: a file that cannot be read, or bases without an end.
    """
    from anystep.plain_yaml import read_yaml

    content = read_yaml(path)
    base = content.pop("base", None)
    if base is None:
        return [content]
    if not isinstance(base, str):
        raise InputError(f"{shown(str(path))}: base {shown(base)}: expected a recipe's name or the path of a file")
    beside = (path.parent / base, path.parent / f"{base}.yaml")
    found = next((file for file in beside if file.is_file()), None) or find_recipe(base)
    if found.resolve() in {each.resolve() for each in (path, *above)}:
        raise InputError(f"{shown(str(path))}: base {shown(base)} leads back to itself: a base must come to an end")
    return [*recipe_chain(found, path, *above), content]
