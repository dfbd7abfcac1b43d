"""Arrays of anybody: what is read is as large as what was given."""

import numpy as np
import pytest

from anystep.data.npy import from_npy, to_npy


def headed(kind: str, shape: str) -> bytes:
    """Eight bytes as a `.npy` file that says something else of them."""
    header = f"{{'descr': {kind}, 'fortran_order': False, 'shape': {shape}}}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\0v\0" + header.encode() + bytes(8)


@pytest.mark.parametrize(
    "content",
    [
        b"", b"\x93NUMPY", to_npy(np.zeros(3))[:-1], to_npy(np.zeros(3)) + b"x", b"\x93NUMPY\x03\0" + bytes(99),
        to_npy(np.zeros(10**6))[:128], to_npy(np.array(["text"])),
        headed("'<f8'", "(1000000, 500000)"), headed("'|O'", "(1,)"), headed("'<f8'", "(-1, -1)"), headed("'<f8'", "x"),
    ],
)  # fmt: skip
def test_a_damaged_array_makes_nothing_larger_than_itself(content: bytes) -> None:
    with pytest.raises(ValueError, match="array"):
        from_npy(content)


@pytest.mark.parametrize("array", [np.zeros((0, 3), np.float16), np.ones((2, 3), order="F"), np.arange(6, dtype=">i4")])
def test_arrays_come_back_as_they_were(array: np.ndarray) -> None:
    found = from_npy(to_npy(array))
    assert found.dtype == array.dtype
    np.testing.assert_array_equal(found, array)
