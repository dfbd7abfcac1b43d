"""Folders that appear whole, in place of what the same command has published there before.

Each says in its marker which kind of folder it is, and which files were published: those that somebody has put beside
them are carried over.
"""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from anystep.errors import InputError
from anystep.files import (
    FORMAT,
    HOLDER,
    LOCK,
    MARKER,
    check_claim,
    locked,
    make_folder,
    read_json,
    write_json,
    writing_to,
)

PUBLISHED = "published folder"  # the kind of all of them, before markers said which command had made one
Known = Callable[[Path], bool]  # whether a folder of that kind was made by the command that asks


def check_free(folder: Path, kind: str, earlier: Known) -> None:
    """Raise `InputError` where `folder` holds something that is not of `kind`; an empty or missing one is free."""
    with suppress(InputError):  # of a damaged marker, which `check_claim` tells of
        if (folder / MARKER).exists() and read_json(folder / MARKER).get("kind") == PUBLISHED and earlier(folder):
            return
    check_claim(folder, kind)


def publish_folder(part: Path, folder: Path, kind: str) -> None:
    """Give the finished folder `part` its name, in place of what was published there before.

    What else is in the old folder is carried over, unless the new one has an entry of its name; the marker tells which.
    """
    old = folder.with_name(f".{folder.name}.old.part")
    if old.exists() and not folder.exists():  # a process was killed between the two renames below
        old.replace(folder)
    made = sorted(path.relative_to(part).as_posix() for path in part.rglob("*") if path.is_file())
    ours = {*made, MARKER}
    with suppress(InputError, KeyError, TypeError):  # damaged: then nothing else is known to be ours, and all stays
        ours |= set(map(str, read_json(folder / MARKER)["published"]))
    for path in sorted(folder.rglob("*")) if folder.is_dir() else ():
        name = path.relative_to(folder).as_posix()
        link = path.is_symlink()  # also one to a folder, or to what is not there now
        if name in ours or not (link or path.is_file()) or (link and (part / name).is_dir()):
            continue
        (part / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, part / name, follow_symlinks=False)
    write_json(part / MARKER, {"kind": kind, "format": FORMAT, "published": made})
    _remove(old)
    if folder.exists():
        folder.replace(old)
    part.replace(folder)
    _remove(old)


def _remove(folder: Path) -> None:
    """A folder with all that is in it; of a link the link alone."""
    if folder.is_symlink():
        folder.unlink()
    else:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def publishing(folder: Path, kind: str | None, earlier: Known | None = None) -> Iterator[Path]:
    """The name of a folder beside `folder`, to be made by the block; on leaving, it is published under that name.

    Where the block fails, it is removed, and `folder` stays as it was. One process at a time publishes a folder.

    Args:
        kind: what it is, for example "converted model"; None for one that is new, and says it itself.
        earlier: as `check_free` has it; None within a folder that the command has claimed, where all is its own.

    Raises:
        InputError: another process is at it; it holds what this command has not made; or it cannot be written.
    """
    part, lock, holder = (folder.with_name(f".{folder.name}{end}") for end in (".part", LOCK, HOLDER))
    make_folder(folder.parent)
    with locked(folder, lock, holder):
        try:
            if earlier is not None and kind is not None:
                check_free(folder, kind, earlier)
            shutil.rmtree(part, ignore_errors=True)  # of a process that was killed
            with writing_to(folder):
                yield part
                if kind is None:
                    part.replace(folder)
                else:
                    publish_folder(part, folder, kind)
        finally:
            shutil.rmtree(part, ignore_errors=True)
            with suppress(OSError):  # some systems remove nothing that is open
                lock.unlink()
