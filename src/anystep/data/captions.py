"""Captions that somebody else wrote: the lines of a text file, the values of a row of metadata."""

from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from anystep.data.example import printable
from anystep.errors import InputError
from anystep.files import parse_json, read_text

CAPTION_KEYS = ("captions", "text", "caption")
METADATA_LIMIT = 2 * 2**30  # bytes


def caption_lines(text: str) -> tuple[str, ...]:
    """One caption a line. Raises ValueError where it is no text that a model could read, and says what it is."""
    return checked_captions([line.strip() for line in text.split("\n")])


def checked_captions(found: Any) -> tuple[str, ...]:
    """The captions among some values, stripped, without empty ones. Raises ValueError, which says what is wrong."""
    if not isinstance(found, list | tuple) or not all(isinstance(text, str) for text in found):
        raise ValueError("its caption is no text")
    captions = tuple(text.strip() for text in found if text.strip())
    if not captions:
        raise ValueError("its caption is empty")
    if any("\0" in text for text in captions):
        raise ValueError("its caption holds NUL characters, as UTF-16 does; save it as UTF-8")
    if any(printable(text) != text for text in captions):
        raise ValueError("its caption holds half of a surrogate pair")
    return captions


def caption_texts(row: Mapping[str, Any]) -> tuple[str, ...]:
    """The captions that a row of metadata gives, if any. Raises ValueError, which says why what it gives is none."""
    found = next((row[key] for key in CAPTION_KEYS if key in row), ())
    return () if found == () else checked_captions(found if isinstance(found, list) else [found])


def read_metadata(path: Path) -> tuple[dict[str, tuple[str, ...]], dict[str, str]]:
    """Captions by image name from a `metadata.jsonl`; several rows of one image are alternative captions.

    And what is wrong with those whose rows give no caption.
    """
    captions: dict[str, tuple[str, ...]] = {}
    wrong: dict[str, str] = {}
    for number, line in enumerate(read_text(path, METADATA_LIMIT).split("\n"), 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        row = parse_json(line, where, object)
        if not isinstance(row, dict) or not isinstance(row.get("file_name"), str):
            raise InputError(f"{where}: expected an object with file_name and text, caption or captions (a list)")
        name = PurePosixPath(row["file_name"]).as_posix()
        try:
            if not (texts := caption_texts(row)):
                raise ValueError("no caption")
            captions[name] = captions.get(name, ()) + texts
        except ValueError as error:
            wrong.setdefault(name, f"{error}, in its row of {path.name}")
    return captions, {name: reason for name, reason in wrong.items() if name not in captions}
