"""Arrays as the content of `.npy` files, which may come from anybody."""

import io
import math
from functools import lru_cache
from typing import Any

import numpy as np

from anystep.errors import first_line


def to_npy(array: np.ndarray) -> bytes:
    """An array as the content of a `.npy` file."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


@lru_cache(maxsize=1024)  # numpy parses it as Python code, which takes longer than all else; records share few
def _npy_header(content: bytes) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """What the part of a `.npy` file before its numbers says: shape, whether columns come first, kind."""
    buffer = io.BytesIO(content)
    version = np.lib.format.read_magic(buffer)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    return read(buffer)


def from_npy(content: bytes) -> np.ndarray:
    """The array in a `.npy` file of numbers, no larger than its content. Raises ValueError where that is damaged."""
    first = 10 if content[6:7] == b"\1" else 12  # byte of the header, whose length is in those before it
    start = first + int.from_bytes(content[8:first], "little")
    try:
        shape, fortran, kind = _npy_header(content[:start])
    except Exception as error:  # its reader meets damage with exceptions of every type
        raise ValueError(f"a damaged array: {first_line(error)}") from None
    if kind.kind not in "fiub" or any(side < 0 for side in shape):
        raise ValueError(f"an array of {kind} and shape {shape}, expected numbers")
    if math.prod(shape) * kind.itemsize != len(content) - start:
        raise ValueError(f"a damaged array: {len(content) - start} bytes, expected {shape} of {kind}")
    array = np.frombuffer(content, kind, offset=start).reshape(shape, order="F" if fortran else "C")
    return array.copy()  # which may be written to
