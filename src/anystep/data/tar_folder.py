"""Folders of tars, local ones and those that fsspec opens: how they are named and what lies in them."""

import os
import re
from pathlib import Path, PurePosixPath
from typing import Any

from fsspec.implementations.local import LocalFileSystem

from anystep.data.example import PassedOver
from anystep.data.shard_index import INDEX
from anystep.errors import InputError, first_line
from anystep.files import decode_text, read_text

DATASET = "dataset.json"  # beside prepared shards: what they hold and what made them
SIZES = "sizes.png"  # a picture of that
CLASSES = "classes.txt"  # beside tars of images: the names of classes, one a line
# what tells one state of a remote file from another, in the words of several file systems
VERSION_KEYS = ("ETag", "etag", "checksum", "mtime", "LastModified", "last_modified", "created")
MAX_TARS = 1_000_000


class TarFolder:
    """The tars that a URL names.

    Args:
        url: of a folder, of one tar, or of several whose names differ in numbers, `part-{000..010}.tar`: a path, or
            whatever fsspec opens.

    Attributes:
        filesystem, root: where the folder is.
        local: whether that is a folder of this machine.
        tars: names of the tars, with their sizes in bytes.
        times: what changes when a tar is written again, by name.
        whole: whether these are all tars of the folder.
        prepared: whether `anystep data prepare` wrote them.
        passed_over: what else lies in the folder.

    Raises:
        InputError: no such folder, no tar in it, or a file system that needs a package.
    """

    def __init__(self, url: str) -> None:
        folder, wanted = named_tars(url)
        self.url, (self.filesystem, self.root) = url, _open(folder)
        self.local = isinstance(self.filesystem, LocalFileSystem)
        self.passed_over = PassedOver()
        found = self._local_files() if self.local else self._remote_files()
        for name in found:
            if not name.endswith(".tar") and name not in (INDEX, DATASET, CLASSES, SIZES):
                packed = ".tar." in name or name.endswith(".tgz")
                kind = "compressed tars, which must be unpacked" if packed else "files that are no .tar"
                self.passed_over.add(kind, name)
        self.whole = wanted is None
        self.prepared = self.whole and DATASET in found
        if wanted is not None:
            if missing := [name for name in wanted if name not in found]:
                raise InputError(f"shards {url!r}: no {missing[0]} there ({len(missing)} of {len(wanted)} are missing)")
            found = {name: found[name] for name in wanted}
        self.tars = {name: size for name, (size, _) in found.items() if name.endswith(".tar")}
        self.times = {name: found[name][1] for name in self.tars}
        if not self.tars:
            held = f"; {self.passed_over.lines[0]}" if self.passed_over else ""
            raise InputError(f"shards {url!r}: no .tar file in it{held}")

    def _local_files(self) -> dict[str, tuple[int, str]]:
        """The files of the folder by name, with their sizes and times."""
        found: dict[str, tuple[int, str]] = {}
        try:
            entries = sorted(os.scandir(self.root), key=lambda entry: entry.name)
        except OSError as error:
            raise InputError(f"shards {self.url!r}: {error.strerror}") from None
        for entry in entries:
            if entry.name.startswith("."):
                continue
            try:
                stat = entry.stat()
            except OSError:
                self.passed_over.add("links to nothing", entry.name)
                continue
            if entry.is_file():
                found[entry.name] = (stat.st_size, str(stat.st_mtime_ns))
            else:
                self.passed_over.add("folders, FIFOs and devices beside tars", entry.name)
        return found

    def _remote_files(self) -> dict[str, tuple[int, str]]:
        try:
            listed = sorted(self.filesystem.ls(self.root, detail=True), key=lambda entry: str(entry["name"]))
        except Exception as error:  # every file system has errors of its own
            raise InputError(f"shards {self.url!r}: {first_line(error)}") from None
        found = {}
        for entry in listed:
            if entry.get("type", "file") == "file":
                version = next((entry[key] for key in VERSION_KEYS if entry.get(key)), "")
                found[PurePosixPath(entry["name"]).name] = (int(entry["size"] or 0), str(version))
        return found


def named_tars(url: str) -> tuple[str, list[str] | None]:
    """A folder, and the names of the tars in it that are meant; None for all.

    Raises:
        InputError: a pattern that names no tars.
    """
    folder, slash, last = url.rpartition("/")
    is_folder = os.path.isdir(url)  # `Path` would not have names as long as patterns may be
    if "{" in folder and not os.path.isdir(folder) and not is_folder:
        raise InputError(f"shards {url!r}: braces may stand in the names of tars alone, not in that of their folder")
    if not ("{" in last or last.endswith(".tar")) or is_folder:
        return url, None
    return f"{folder}//" if folder.endswith(":/") else folder or slash or ".", _expanded(last, url)


def _expanded(pattern: str, url: str) -> list[str]:
    """`part-{00..02}.tar` and `{train,test}.tar`, as a shell writes them out."""
    found = re.search(r"\{(\d{1,9})\.\.(\d{1,9})\}|\{([^{}]*,[^{}]*)\}", pattern)
    if found is None:
        if "{" in pattern or "}" in pattern:
            raise InputError(f"shards {url!r}: {pattern!r} is no pattern; expected one such as part-{{000..010}}.tar")
        return [pattern]
    first, last, listed = found.groups()
    if listed is not None:
        parts = listed.split(",")
    else:
        if not 0 <= int(last) - int(first) < MAX_TARS:
            raise InputError(f"shards {url!r}: {{{first}..{last}}} counts no tars, or more than {MAX_TARS:,}")
        parts = [f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1)]
    ends = _expanded(pattern[found.end() :], url)
    if len(parts) * len(ends) > MAX_TARS:
        raise InputError(f"shards {url!r}: more than {MAX_TARS:,} tars")
    return [f"{pattern[: found.start()]}{part}{end}" for part in parts for end in ends]


def read_beside(url: str, name: str) -> str | None:
    """The text of a small file in a folder of shards, or None. Raises `InputError` where it cannot be read."""
    filesystem, root = _open(named_tars(url)[0])
    where = f"{root}/{name}"
    if isinstance(filesystem, LocalFileSystem):
        return read_text(Path(where)) if os.path.lexists(where) else None
    try:
        content: bytes = filesystem.cat_file(where)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return None
    except Exception as error:  # every file system has errors of its own
        raise InputError(f"{where}: {first_line(error)}") from None
    return decode_text(content, where)


def _open(url: str) -> tuple[Any, str]:
    """The file system of a URL, and the folder in it."""
    import fsspec

    try:
        return fsspec.url_to_fs(url)
    except (ValueError, ImportError) as error:
        raise InputError(f"shards {url!r}: {first_line(error)}") from None
