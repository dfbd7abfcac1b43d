"""Where tokens are, and where they are said to be beyond what training saw."""

import math

import pytest
import torch

from anystep.models.rotary import frequencies, positions, rope, rope_angles, rotate


def test_row_major_positions_are_columns_and_rows() -> None:
    expected = [(column, row) for row in range(3) for column in range(5)]
    assert [tuple(pair) for pair in positions(3, 5, "row_major").tolist()] == expected


def test_row_major_neighbours_are_at_distance_one() -> None:
    grid = positions(3, 5, "row_major").view(3, 5, 2)
    assert ((grid[1:] - grid[:-1]).abs().sum(-1) == 1).all()
    assert ((grid[:, 1:] - grid[:, :-1]).abs().sum(-1) == 1).all()


def test_the_reference_grid_walks_with_the_height() -> None:
    assert [tuple(pair) for pair in positions(3, 5, "reference").tolist()] == [(n % 3, n // 3) for n in range(15)]
    assert torch.equal(positions(4, 4, "reference"), positions(4, 4, "row_major"))


def test_the_first_half_of_the_head_rotates_with_the_first_coordinate() -> None:
    angles = rope_angles(3, 5, 8, "row_major").angles.view(3, 5, 2, 2)
    frequencies = torch.tensor([1.0, 10_000**-0.5])
    torch.testing.assert_close(angles[2, 3, 0], 3 * frequencies)  # column 3
    torch.testing.assert_close(angles[2, 3, 1], 2 * frequencies)  # row 2


@pytest.mark.parametrize("grid", ["row_major", "reference"])
def test_rotation_keeps_length_and_depends_on_differences_alone(grid: str) -> None:
    rotation = rope([rope_angles(4, 4, 8, grid)], torch.device("cpu"))  # type: ignore[arg-type]
    q, k = torch.randn(2, 1, 1, 1, 8).expand(2, 1, 16, 1, 8)
    rotated_q, rotated_k = rotate(q, rotation.queries), rotate(k, rotation.unscaled)
    torch.testing.assert_close(rotated_q.norm(dim=-1), q.norm(dim=-1))
    product = torch.einsum("bnhd,bmhd->nm", rotated_q, rotated_k).view(4, 4, 4, 4)
    torch.testing.assert_close(product[0, 0, 1, 2], product[2, 1, 3, 3])  # both one row down, two columns right
    assert (product[0, 0, 1, 2] - product[0, 0, 2, 1]).abs() > 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_a_compiler_sees_is_what_is_computed(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    turns = rope([rope_angles(3, 4, 16, "row_major")], torch.device("cpu")).unscaled
    x = torch.randn(2, 12, 3, 16, dtype=dtype, requires_grad=True)
    eager = rotate(x, turns)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    written_out = rotate(x, turns)
    assert eager.dtype == dtype
    torch.testing.assert_close(eager, written_out)
    back = [torch.autograd.grad(found, x, torch.ones_like(x))[0] for found in (eager, written_out)]
    torch.testing.assert_close(*back)


def test_interpolation_brings_long_axes_back_into_the_trained_extent() -> None:
    """Position Interpolation (arXiv 2306.15595, eq. 4): f(x, m) becomes f(x, m L / L')."""
    long, short = rope_angles(4, 16, 16, "row_major", "interpolation", 8), rope_angles(4, 16, 16, "row_major")
    columns, rows = long.angles.chunk(2, 1)
    torch.testing.assert_close(columns, short.angles.chunk(2, 1)[0] / 2)
    torch.testing.assert_close(rows, short.angles.chunk(2, 1)[1])  # 4 of 8: this axis is not stretched


def test_ntk_keeps_the_fastest_pair_and_interpolates_the_slowest() -> None:
    """NTK-aware (arXiv 2309.00071, section 3.1): base b s^(d/(d-2)), so that the last wavelength grows by s."""
    plain, raised = frequencies(8), frequencies(8, "ntk", 3.0)
    assert raised[0] == plain[0]
    torch.testing.assert_close(raised[-1], plain[-1] / 3.0)
    base = 10_000 * 3.0 ** (16 / 14)
    torch.testing.assert_close(raised, base ** (-2 * torch.arange(8) / 16.0))


def test_ntk_by_parts_leaves_pairs_that_turned_and_interpolates_those_that_did_not() -> None:
    """NTK-by-parts (arXiv 2309.00071, eqs. 17 to 19) with alpha = 1 and beta = 32."""
    extent, stretch = 256, 4.0
    plain, found = frequencies(16), frequencies(16, "by_parts", stretch, extent)
    for own, got in zip(plain.tolist(), found.tolist(), strict=True):
        turns = extent / (2 * math.pi / own)
        ramp = min(1.0, max(0.0, (turns - 1) / (32 - 1)))
        assert got == pytest.approx((1 - ramp) * own / stretch + ramp * own, rel=1e-5)
    assert found[0] == plain[0]
    assert found[-1] == plain[-1] / stretch


def test_yarn_is_ntk_by_parts_and_sharper() -> None:
    """YaRN (arXiv 2309.00071, eq. 22): sqrt(1/t) = 0.1 ln s + 1 on queries and on keys alike."""
    parts, yarn = (rope_angles(8, 24, 16, "row_major", kind, 8) for kind in ("by_parts", "yarn"))  # type: ignore[arg-type]
    torch.testing.assert_close(yarn.angles, parts.angles)
    assert parts.attention_factor is None
    assert yarn.attention_factor is not None
    torch.testing.assert_close(yarn.attention_factor, torch.full((192,), (0.1 * math.log(3.0) + 1) ** 2))
    rotation = rope([rope_angles(2, 8, 16, "row_major", "yarn", 8), yarn], torch.device("cpu"))  # of two images, packed
    assert torch.equal(rotation.queries[:16], rotation.unscaled[:16])
    torch.testing.assert_close(rotation.queries[16:], rotation.unscaled[16:] * yarn.attention_factor[0])


@pytest.mark.parametrize("kind", ["plain", "interpolation", "ntk", "by_parts", "yarn"])
def test_within_the_trained_extent_all_kinds_are_one(kind: str) -> None:
    here = rope_angles(5, 8, 16, "row_major", kind, 8)  # type: ignore[arg-type]
    torch.testing.assert_close(here.angles, rope_angles(5, 8, 16, "row_major").angles)
    assert here.attention_factor is None
