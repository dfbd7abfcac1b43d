"""Tars that somebody else wrote: their files by their headers, put together to records as WebDataset does."""

import tarfile
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Any, NamedTuple

from anystep.data.example import MAX_CLASSES, PassedOver
from anystep.data.images import image_suffixes
from anystep.data.shard_index import UNKNOWN, Index, IndexRow
from anystep.data.tar_folder import TarFolder
from anystep.errors import InputError, first_line, is_machine_fault

WRONG = -2  # a label that is the number of no class
BESIDE = {".txt", ".json", ".cls"}  # what tells of an image
MAX_LABEL_BYTES = 64  # of a file with the number of a class
MAX_PADDING = 2**20  # bytes after the end of an archive


class Entry(NamedTuple):
    """A file in a tar: its name, where its content begins, its size, and the first bytes of it where it is a class."""

    name: PurePosixPath
    offset: int
    size: int
    content: bytes


def _next(tar: tarfile.TarFile, at: int, size: int) -> tarfile.TarInfo | None:
    """The header after the one at byte `at`; an error names that."""
    try:
        return tar.next()
    except tarfile.TarError as error:
        where = f" after the file at byte {at:,} of {size:,}" if at >= 0 else ""
        raise tarfile.ReadError(f"{error}{where}") from None


def read_entries(file: Any, size: int, passed: PassedOver) -> list[Entry]:
    """The files in an uncompressed tar, from its headers; what is no plain file is counted in `passed`.

    Raises:
        tarfile.TarError: damaged, or cut: the end of the archive, two blocks of zeros, is not where the headers lead
            to, or is not the end of the file. Says at which byte.
    """
    entries = []
    with tarfile.open(fileobj=file, mode="r:") as tar:
        at = -1
        while (entry := _next(tar, at, size)) is not None:
            if entry.offset <= at or entry.size < 0:
                raise tarfile.ReadError(f"a header that leads back, at byte {entry.offset:,}")
            at = entry.offset
            if entry.offset_data + entry.size > size:
                raise tarfile.ReadError(f"it ends in the middle of {entry.name}, at byte {size:,}")
            if entry.isdir():
                continue
            name = PurePosixPath(entry.name)
            if not entry.isreg() or entry.issparse():
                passed.add("links, devices and sparse files in tars", entry.name)
            elif name.name.startswith("."):
                passed.add("hidden files and folders", entry.name)
            else:
                short = name.suffix.lower() == ".cls" and entry.size <= MAX_LABEL_BYTES
                opened = tar.extractfile(entry) if short else None
                entries.append(Entry(name, entry.offset_data, entry.size, b"" if opened is None else opened.read()))
        end = tar.offset
    file.seek(end)
    rest = file.read(MAX_PADDING + 1)
    if len(rest) < tarfile.BLOCKSIZE or any(rest[: 2 * tarfile.BLOCKSIZE]):
        what = "damaged" if any(rest[: tarfile.BLOCKSIZE]) else "cut off"
        raise tarfile.ReadError(f"{what} at byte {end:,} of {size:,}: no end of the archive there")
    if any(rest) or len(rest) > MAX_PADDING:
        raise tarfile.ReadError(f"its archive ends at byte {end:,}, but {size - end:,} more follow")
    return entries


def group(entries: Iterable[Entry], passed: PassedOver) -> list[dict[str, Entry]]:
    """The records that some files of a tar are: by field, files of one name.

    Of files of the same path the last counts, as for tar itself, which appends what replaces another.
    The first dot ends a name, as WebDataset has it. But where several dots would make fields nobody knows
    ("photo.1.png"), and what is before the last dot is a record of its own, the last dot does.
    """
    names: dict[str, list[Entry]] = {}
    last: dict[PurePosixPath, Entry] = {}
    for entry in entries:
        if entry.name in last:
            passed.add("files in tars that a later one of the same name replaces", str(entry.name))
        last[entry.name] = entry
    for entry in sorted(last.values(), key=lambda entry: entry.offset):
        names.setdefault(f"{entry.name.parent}/{entry.name.name.partition('.')[0]}", []).append(entry)
    records = []
    for members in names.values():
        plain, dotted = list[Entry](), dict[str, list[Entry]]()
        for entry in members:
            (dotted.setdefault(entry.name.stem, []) if entry.name.name.count(".") > 1 else plain).append(entry)
        described = any(entry.name.suffix.lower() in BESIDE for entry in plain)
        found: dict[str, list[tuple[str, Entry]]] = {"": [(_extension(entry, 1), entry) for entry in plain]}
        for stem, those in dotted.items():
            suffixes = {entry.name.suffix.lower() for entry in those}
            pictured = bool(suffixes & image_suffixes())
            own = pictured and (not described or bool(suffixes & BESIDE))
            fields = [(_extension(entry, entry.name.name.count(".") if own else 1), entry) for entry in those]
            found.setdefault(stem if own else "", []).extend(fields)
            if pictured and not own:
                passed.add("images in tars that belong to another: the first dot ends a name", str(those[0].name))
        for fields in found.values():
            record: dict[str, Entry] = {}
            for extension, entry in fields:
                if extension in record:  # its suffix is written in another case
                    records.append(record)
                    record = {}
                record[extension] = entry
            if record:
                records.append(record)
    return sorted(records, key=lambda record: next(iter(record.values())).offset)


def _extension(entry: Entry, dot: int) -> str:
    """What follows that dot of a file's name, in lower case."""
    return entry.name.name.split(".", dot)[-1].lower() if "." in entry.name.name else ""


def _label(record: Mapping[str, Entry]) -> int:
    """The class that a record gives; `UNKNOWN` without, `WRONG` where it is none."""
    if "cls" not in record:
        return UNKNOWN
    digits = record["cls"].content.strip()  # `int` would take 1_0 for 10
    return int(digits) if digits.isdigit() and int(digits) < MAX_CLASSES else WRONG


def scan(folder: TarFolder) -> Index:
    """The index of tars that somebody else made, from their headers. Raises `InputError` where one is not whole."""
    found: list[tuple[int, dict[str, Entry]]] = []
    passed = PassedOver()
    for place, (name, size) in enumerate(folder.tars.items()):
        path = f"{folder.root}/{name}"
        try:
            with folder.filesystem.open(path, "rb") as file:
                entries = read_entries(file, size, passed)
        except (tarfile.TarError, ValueError, RecursionError) as error:
            what = "too many headers in a row" if isinstance(error, RecursionError) else error
            raise InputError(f"{path}: not a whole, uncompressed tar: {what}") from None
        except Exception as error:  # every file system has errors of its own
            if is_machine_fault(error):
                raise
            raise InputError(f"{path}: cannot be read: {first_line(error)}") from None
        found += [(place, record) for record in group(entries, passed)]
    columns = sorted({extension for _, fields in found for extension in fields})
    rows = []
    for place, fields in found:
        held = [fields.get(name) for name in columns]
        places = [(0, UNKNOWN, UNKNOWN) if each is None else (each.offset, each.size, UNKNOWN) for each in held]
        rows.append(IndexRow(places, _label(fields), shard=place))
    return replace(Index.from_rows(folder.tars, columns, rows), times=dict(folder.times), passed_over=passed)
