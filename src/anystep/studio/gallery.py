"""The gallery: a folder of PNG files, each with its settings in it, and nothing else to keep in step with them."""

import re
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

from anystep.bounds import shown
from anystep.errors import InputError, refused
from anystep.files import make_folder, replacing
from anystep.pipelines.settings import Settings, read_settings
from anystep.studio.draw import Drawn

NAME = re.compile(r"[0-9A-Za-z][\w.-]{0,195}\.png", re.ASCII)


@dataclass(frozen=True)
class Kept:
    """A picture of the gallery: the name of its file, and what it says of how it was made."""

    name: str
    settings: Settings


class Gallery:
    """Pictures in a folder, the latest first. The folder is made when there is one to keep."""

    def __init__(self, folder: Path) -> None:
        self.folder, self._naming = folder, Lock()

    def keep(self, drawn: Drawn, content: bytes) -> str:
        """Write a picture's file. Returns its name, which begins with the time, so that names are in order."""
        with self._naming:
            make_folder(self.folder)
            name = _name(drawn)
            while (self.folder / name).exists():
                name = _name(drawn)
            with replacing(self.folder / name) as part:
                part.write_bytes(content)
        return name

    def latest(self, before: str | None = None) -> Iterator[Kept]:
        """The pictures, from the last one on or from that before a name. Images of others are left out."""
        names = sorted((path.name for path in self.folder.glob("*.png") if NAME.fullmatch(path.name)), reverse=True)
        for name in names:
            if before is None or name < before:
                with suppress(InputError):
                    yield Kept(name, read_settings(self.path(name)))

    def path(self, name: str) -> Path:
        """The file of a picture. Raises `InputError` for anything else."""
        path = self.folder / name
        if not NAME.fullmatch(name) or path.is_symlink() or not path.is_file():
            raise InputError(f"{shown(name)} is no picture of the gallery")
        return path

    def remove(self, name: str) -> None:
        """Delete a picture; one that anystep has not made stays.

        Raises:
            InputError: anything else, or a folder that cannot be written to.
        """
        path = self.path(name)
        read_settings(path)
        with refused(f"cannot delete {shown(name)}"):
            path.unlink(missing_ok=True)


def _name(drawn: Drawn) -> str:
    now = time.time_ns()
    moment = time.strftime("%Y%m%d-%H%M%S", time.gmtime(now // 10**9))
    return f"{moment}-{now // 1000 % 10**6:06d}-seed-{drawn.request.seed}-steps-{drawn.request.steps:03d}.png"
