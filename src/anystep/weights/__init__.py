"""The weights that come with the package, by the name `builtin` in every option that takes weights."""

from pathlib import Path

BUILTIN = "builtin"


def shipped(name: str) -> Path:
    """The file or folder of that name among the weights of the package."""
    return Path(__file__).parent / name
