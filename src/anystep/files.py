"""Files and folders: written whole or not at all, read with a guard, claimed by the command that makes them.

Everything that anystep reads of what somebody else may have written passes `read_bytes`, `read_text` or `read_json`:
they open regular files only, up to a size, and what is wrong is one line. Every folder of a command's output is opened
by `claimed`, which marks it, locks it, and refuses one that something else has made.
"""

import errno
import json
import os
import shutil
import socket
import stat
import threading
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from anystep.bounds import shown
from anystep.errors import InputError, first_line, is_machine_fault, refused

MARKER = ".anystep.json"
LOCK = ".lock"
HOLDER = ".holder.json"
FORMAT = 1  # of the folders that commands make
NAME_LIMIT = 200  # bytes of a name, so that something may be put around it
TEXT_LIMIT = 256 * 2**20  # bytes of a text file that is read whole


@contextmanager
def replacing(path: Path, durable: bool = False) -> Iterator[Path]:
    """A temporary name beside `path` to write to; renamed to it on leaving, removed where that failed.

    A `durable` file is on the disk before it has its name: a power cut leaves the old one or the new, for milliseconds.
    """
    part = part_of(path)
    try:
        yield part
        part.chmod(0o666 & ~_umask())  # safetensors makes files that only their owner may read
        if durable:
            with part.open("rb+") as file:
                os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:  # a full disk does not say for which file
        if error.errno:  # else all that it says is a message, in whose place the name would stand
            error.filename = error.filename or str(path)
        raise
    finally:
        with suppress(FileNotFoundError):
            part.unlink()


def part_of(path: Path) -> Path:
    """The temporary name, of this thread, that `replacing` writes to."""
    return path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.part")


def _umask() -> int:
    """There is no other way to read it than to set it."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text whole or not at all; lone surrogates of odd file names are written as they are."""
    with replacing(path, durable=True) as part:
        part.write_text(text, "utf-8", "surrogateescape")


def finite(content: Any) -> Any:
    """Plain values with null in place of each number that is not finite, which JSON cannot say."""
    if isinstance(content, dict):
        return {key: finite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [finite(value) for value in content]
    return None if isinstance(content, float) and not -float("inf") < content < float("inf") else content


def write_json(path: Path, content: Any) -> None:
    """Write plain values as JSON that every reader takes: numbers that are not finite become null."""
    write_text(path, json.dumps(finite(content), indent=1, allow_nan=False) + "\n")


def write_tensors(path: Path, tensors: Mapping[str, Any], metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file whole or not at all. A full disk is an OSError; in safetensors' own it is none."""
    from safetensors.torch import save

    with replacing(path, durable=True) as part:
        part.write_bytes(save(dict(tensors), None if metadata is None else dict(metadata)))


def remove_parts(folder: Path, below: bool = True) -> None:
    """Remove what killed processes have left half-written in a folder that is ours alone, and below it."""
    for path in folder.glob("**/.*.part" if below else ".*.part"):
        if path.is_file():
            path.unlink(missing_ok=True)


def check_output(path: Path, suffix: str, reads: Callable[[Path], object]) -> None:
    """Refuse, before anything is made for it, a file that cannot be written or that holds something else.

    Args:
        reads: raises `InputError` for a file of another kind: such a one is not overwritten.
    """
    cannot = f"cannot write {str(path)!r}"
    if path.suffix != suffix:
        raise InputError(f"{cannot}: expected a name that ends in {suffix}")
    if not path.absolute().parent.is_dir():
        raise InputError(f"{cannot}: there is no such folder")
    try:
        if path.exists() or path.is_symlink():
            check_regular(path)
            reads(path)
    except InputError:
        raise InputError(f"{cannot}: what is there was not made by this command") from None
    with refused(cannot), TemporaryFile(dir=path.absolute().parent):
        pass


def check_room(out: Path, needed: int) -> None:
    """Refuse a model of so many bytes where the disk that `out` is on, or will be, has not that much left."""
    place = next(folder for folder in (out, *out.parents) if folder.exists())
    free = shutil.disk_usage(place).free
    if needed > free:
        raise InputError(
            f"the model takes {needed / 1e9:.3g} GB, {place} has {free / 1e9:.3g} GB left: make room, or choose "
            "another --out"
        )


def check_names(paths: Iterable[Sequence[Any]], what: str) -> None:
    """Refuse names that somebody else chose where they cannot be names of files in a folder of ours.

    Args:
        paths: of each file the names of the folders above it, and its own. None may lead elsewhere or be hidden, and no
            two paths may be one on a file system that does not tell their letters apart.
    """
    seen: dict[str, str] = {}
    for parts in paths:
        for name in parts:
            if not isinstance(name, str) or not _is_plain(name):
                raise InputError(
                    f"{what} {shown(name)} cannot name a file: expected up to {NAME_LIMIT} bytes, no slash, backslash, "
                    "control character, or dot in front"
                )
        path = "/".join(parts)
        other = seen.setdefault(unicodedata.normalize("NFC", path).casefold(), path)
        if other != path:
            raise InputError(f"{what} {shown(path)} and {shown(other)} would be one file on many systems: rename one")


def _is_plain(name: str) -> bool:
    try:
        short = 0 < len(name.encode()) <= NAME_LIMIT
    except UnicodeEncodeError:  # a lone surrogate
        return False
    return short and name == name.strip() and name.isprintable() and name[0] != "." and not {"/", "\\"} & set(name)


def check_regular(path: Path) -> None:
    """Refuse what is no regular file: opening a FIFO waits for ever, and a device may never end.

    Raises:
        InputError: nothing there, or a folder, FIFO, socket or device.
    """
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError) as error:  # a ValueError for a name with a NUL byte
        if is_machine_fault(error):
            raise
        raise InputError(f"cannot read {str(path)!r}: {first_line(error)}") from None
    if not stat.S_ISREG(mode):
        kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket"}
        raise InputError(f"cannot read {str(path)!r}: it is {kinds.get(stat.S_IFMT(mode), 'a device')}, not a file")


def read_bytes(path: Path, limit: int = TEXT_LIMIT) -> bytes:
    """The content of a regular file of at most `limit` bytes.

    Raises:
        InputError: it is not there, not regular, too large, or may not be read.
    """
    check_regular(path)
    try:
        size = path.stat().st_size
        if size > limit:
            raise InputError(f"cannot read {str(path)!r}: it has {size:,} bytes, more than the {limit:,} that are read")
        return path.read_bytes()
    except OSError as error:
        if is_machine_fault(error):
            error.filename = error.filename or str(path)
            raise
        raise InputError(f"cannot read {str(path)!r}: {error.strerror}") from None


def decode_text(content: bytes, name: str) -> str:
    """UTF-8 text that somebody else wrote, without a byte order mark and with plain line ends.

    Raises:
        InputError: it is not UTF-8.
    """
    try:
        return content.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        raise InputError(f"{name}: not UTF-8 text, at byte {error.start}") from None


def read_text(path: Path, limit: int = TEXT_LIMIT) -> str:
    """`decode_text` of a file. Raises `InputError` as `read_bytes` does."""
    return decode_text(read_bytes(path, limit), str(path))


def parse_json(text: str | bytes, name: str, kind: type = dict) -> Any:
    """JSON that somebody else wrote, of the kind that is expected.

    Raises:
        InputError: it is no JSON, too deeply nested, or of another kind.
    """
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else error
        raise InputError(f"{name}: not JSON: {reason}") from None
    if not isinstance(content, kind):
        raise InputError(f"{name}: expected a JSON {kind.__name__}, got {type(content).__name__}")
    return content


def read_json(path: Path) -> Any:
    """The JSON object of a file. Raises `InputError` as `read_bytes` and `parse_json` do."""
    return parse_json(read_text(path), str(path))


def writing_to(folder: Path) -> AbstractContextManager[None]:
    """A block in which whatever fails is an `InputError`: the folder cannot be written to."""
    return refused(f"cannot write to folder {str(folder)!r}")


def make_folder(folder: Path) -> None:
    """Make a folder and those above it. Raises `InputError` where that cannot be."""
    with writing_to(folder):
        folder.mkdir(parents=True, exist_ok=True)


@contextmanager
def claimed(folder: Path, kind: str, legacy: Sequence[str] = ()) -> Iterator[None]:
    """A folder for one command's output, made where it is not there, marked as such, and locked for the block.

    Args:
        kind: what is made in it, for example "training run".
        legacy: entries that tell a folder of this kind made before folders were marked; all must be there.

    Raises:
        InputError: another process uses it; it holds what this command has not made; or it cannot be written.
    """
    make_folder(folder)
    check_claim(folder, kind, legacy)
    with locked(folder, folder / LOCK, folder / HOLDER):
        with writing_to(folder):
            if not (folder / MARKER).exists():
                write_json(folder / MARKER, {"kind": kind, "format": FORMAT})
        yield


@contextmanager
def locked(folder: Path, path: Path, holder: Path) -> Iterator[None]:
    """A block in which no other process works on `folder`; that lock goes with the process, however that ends.

    Where the file system has no locks, the block is run without.

    Args:
        path: of the lock.
        holder: a file that says which process has it, while it has it.

    Raises:
        InputError: another process, or another thread, has it; or it cannot be written.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(path, timeout=0, thread_local=False)
    try:
        lock.acquire()
    except Timeout:
        raise InputError(f"{str(folder)!r} is in use by {_said(holder)}: wait, or choose another --out") from None
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
            with writing_to(folder):
                raise
    try:
        with writing_to(folder):
            write_json(holder, {"pid": os.getpid(), "host": socket.gethostname()})
        yield
    finally:
        holder.unlink(missing_ok=True)
        lock.release()


def check_claim(folder: Path, kind: str, legacy: Sequence[str] = ()) -> None:
    """Raise `InputError` where `folder` holds something that is not of `kind`; an empty or missing one is free."""
    if (folder / MARKER).exists():
        _check_marker(folder, kind)
        return
    held = sorted(path.name for path in folder.iterdir()) if folder.exists() else []
    # parts are of a process that was killed in its first write
    held = [name for name in held if name not in (LOCK, HOLDER) and not name.endswith(".part")]
    if held and not (legacy and set(legacy) <= set(held)):
        raise InputError(
            f"{str(folder)!r} holds {held[0]}{f' and {len(held) - 1} more' * (len(held) > 1)}, which this command has "
            "not made: choose a new or an empty folder as --out"
        )


def _check_marker(folder: Path, kind: str) -> None:
    right = json.dumps({"kind": kind, "format": FORMAT})
    remedy = f"choose another --out, or write {right} into that file if this folder is one"
    try:
        content = read_json(folder / MARKER)
    except InputError as error:
        raise InputError(f"{error}; {remedy}") from None
    found, version = content.get("kind"), content.get("format")
    if not isinstance(found, str):
        raise InputError(f"{folder / MARKER}: does not say what the folder holds; {remedy}")
    if found != kind:
        raise InputError(f"{str(folder)!r} holds a {found}, not a {kind}: choose another --out")
    if not isinstance(version, int) or version > FORMAT:
        raise InputError(f"{str(folder)!r} was made by a newer anystep (format {version}): upgrade, or choose another")


def check_settings(
    folder: Path,
    what: str,
    before: Mapping[str, Any],
    now: Mapping[str, Any],
    may_differ: Callable[[str], object] = lambda name: False,
    remedy: str = "choose another --out",
) -> None:
    """Raise `InputError` where what lies in a folder was made with other settings than a command is to go on with.

    Args:
        what: what lies there, up to "differs": for example "a run that differs".
        may_differ: whether the setting of a name does not matter.
    """
    changed = [name for name in sorted({*before, *now}) if before.get(name) != now.get(name) and not may_differ(name)]
    if changed:
        values = f" ({shown(before.get(changed[0]))}, not {shown(now.get(changed[0]))})" * (len(changed) == 1)
        raise InputError(f"{str(folder)!r} holds {what} in {', '.join(changed)}{values}: {remedy}")


def _said(holder: Path) -> str:
    try:
        content = read_json(holder)
    except InputError:
        return "another process"
    return f"process {content.get('pid')} on {content.get('host')}"
