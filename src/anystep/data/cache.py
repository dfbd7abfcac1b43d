"""Where files are kept that can be made again."""

import os
import tempfile
from functools import cache
from pathlib import Path


def cache_folder() -> Path:
    """Where rendered art and other derived files are kept: `$ANYSTEP_CACHE`, else `~/.cache/anystep`.

    One of our own under the temporary folder where the user has no home.
    """
    if root := os.environ.get("ANYSTEP_CACHE"):
        return Path(root)
    if root := os.environ.get("XDG_CACHE_HOME"):
        return Path(root) / "anystep"
    try:
        return Path.home() / ".cache" / "anystep"
    except RuntimeError:
        return _temporary_folder()


@cache
def _temporary_folder() -> Path:
    user = os.getuid() if hasattr(os, "getuid") else 0
    folder = Path(tempfile.gettempdir()) / f"anystep-{user}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if hasattr(os, "getuid") and folder.lstat().st_uid != user:  # somebody else has put something there for us to read
        return Path(tempfile.mkdtemp(prefix="anystep-"))
    return folder
