"""Files appear whole or not at all."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name beside `path` to write to; renamed to it on leaving, removed where that failed."""
    part = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.part")
    try:
        yield part
        part.chmod(0o666 & ~_umask())  # safetensors makes files that only their owner may read
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _umask() -> int:
    """There is no other way to read it than to set it."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def write_text(path: Path, text: str) -> None:
    with replacing(path) as part:
        part.write_text(text, "utf-8")
