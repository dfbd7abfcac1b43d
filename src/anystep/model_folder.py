"""Folders of models that somebody else made, looked through before a library opens anything in them.

Weights are read from safetensors, which hold numbers alone. Refused are pickles, which can run code when they are
opened; classes that a folder brings along; what is no regular file, for opening a FIFO waits for ever; and sizes that
its own weights do not bear out, which a library would spend hours on before it compares them.
"""

import re
from collections.abc import Container, Iterator
from pathlib import Path
from typing import Any

from anystep.bounds import shown
from anystep.errors import InputError
from anystep.files import check_regular, parse_json, read_text

CONFIG_LIMIT = 64 * 2**20  # bytes of a JSON file
HEADER_LIMIT = 16 * 2**20  # bytes of the header of a safetensors file; that of a network of 10,000 tensors has 1 MB
LARGEST = 2**24  # of the whole numbers in a configuration: the vocabularies and positions of language models are below
LONGEST = 1000  # entries of a list there, and layers
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
LAYERS = re.compile(r"layers|depth|blocks$")


def check_model_folder(folder: Path, given: Container[str] = ()) -> None:
    """Look through the folder of a model, and the folders of its parts one level below.

    Args:
        given: parts that come from elsewhere, and need not be in the folder.

    Raises:
        InputError: something in it is refused; one line that names it and says why.
    """
    for part in (folder, *sorted(path for path in folder.iterdir() if path.is_dir())):
        check_part(part, given)


def check_part(folder: Path, given: Container[str] = (), plain_pickles: bool = False) -> None:
    """`check_model_folder` of one folder alone; `plain_pickles` where they are read by what runs no code."""
    files = [path for path in sorted(folder.iterdir()) if not path.is_dir() and not path.name.startswith(".")]
    for path in files:
        check_regular(path)
    weights = [path for path in files if path.suffix == ".safetensors"]
    tensors = sum(count_tensors(path) for path in weights)
    for path in files:
        if path.name.endswith(".index.json"):
            _check_index(path, {each.name for each in files})
        elif path.name == "model_index.json":
            _check_classes(path, given)
        elif path.name == "config.json":
            config = parse_json(read_text(path, CONFIG_LIMIT), str(path))
            pickles = [each.name for each in files if each.suffix in PICKLES]
            if pickles and not weights and not plain_pickles:
                raise InputError(
                    f"{str(folder / pickles[0])!r} is a pickle, which can run code when it is opened, and there are no "
                    "safetensors beside it: have its weights saved as those"
                )
            check_sizes(config, str(path), tensors if weights else None)


def count_tensors(path: Path) -> int:
    """How many tensors a safetensors file holds, by its header.

    Raises:
        InputError: it is no such file, or was cut short.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= min(HEADER_LIMIT, size - 8):
            raise InputError(f"{str(path)!r} is damaged: no file of safetensors")
        header = parse_json(file.read(length), str(path))
    header.pop("__metadata__", None)
    for name, entry in header.items():
        try:
            end = entry["data_offsets"][1]
            if not 0 <= end <= size - 8 - length:
                raise InputError(f"{str(path)!r} is damaged: it ends before its tensor {shown(name)} does")
        except (TypeError, KeyError, IndexError):
            raise InputError(f"{str(path)!r} is damaged: its tensor {shown(name)} has no place") from None
    return len(header)


def check_sizes(config: dict[str, Any], name: str, tensors: int | None = None) -> None:
    """Refuse numbers in a configuration that nobody means, and more layers than there are tensors.

    Raises:
        InputError: one line that names the entry, its value and what was expected.
    """
    for key, value in _entries(config):
        if isinstance(value, list) and len(value) > LONGEST:
            raise InputError(f"{name}: {shown(key)} has {len(value):,} entries: expected {LONGEST:,} at most")
        if not isinstance(value, int) or isinstance(value, bool) or "theta" in key:
            continue
        layers = LAYERS.search(key.rpartition(".")[2]) is not None
        most = min(LONGEST, LONGEST if tensors is None else max(tensors, 32)) if layers else LARGEST
        if abs(value) > most:
            why = f", as its weights are {tensors} tensors" if layers and tensors is not None else ""
            raise InputError(f"{name}: {key} {shown(value)}: expected {most:,} at most{why}")


def _entries(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """All values of nested JSON with their keys; entries of a list have the key of the list."""
    yield key, value
    if isinstance(value, dict):
        for name, each in value.items():
            yield from _entries(each, f"{key}.{name}" if key else name)
    elif isinstance(value, list) and len(value) <= LONGEST:
        for each in value:
            yield from _entries(each, key)


def _check_index(path: Path, looked_through: Container[str]) -> None:
    places = parse_json(read_text(path, CONFIG_LIMIT), str(path)).get("weight_map", {})
    for place in set(map(str, places.values() if isinstance(places, dict) else [places])):
        if place not in looked_through:
            raise InputError(f"{str(path)!r} names the file {shown(place)}, which is not beside it, or hidden")


def _check_classes(path: Path, given: Container[str]) -> None:
    for part, entry in parse_json(read_text(path, CONFIG_LIMIT), str(path)).items():
        if not (isinstance(entry, list) and len(entry) == 2 and entry[0] in ("anystep", "diffusers", "transformers")):
            continue
        if re.match(r"Auto[A-Z]", str(entry[1])):
            raise InputError(f"{str(path)!r}: {part} is {entry[1]}, which takes classes from a folder: name the class")
        if entry[1] is not None and part not in given and not (path.parent / part).is_dir():
            raise InputError(f"{str(path.parent)!r} has no folder {part!r}, in which its {part} should be")
