"""Where tokens are."""

import pytest
import torch

from anystep.models.rotary import positions, rotary_angles, rotate


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


def test_the_first_half_of_the_head_turns_with_the_first_coordinate() -> None:
    angles = rotary_angles(3, 5, 8, "row_major").view(3, 5, 2, 2)
    frequencies = torch.tensor([1.0, 10_000**-0.5])
    torch.testing.assert_close(angles[2, 3, 0], 3 * frequencies)  # column 3
    torch.testing.assert_close(angles[2, 3, 1], 2 * frequencies)  # row 2


@pytest.mark.parametrize("grid", ["row_major", "reference"])
def test_rotation_keeps_length_and_depends_on_differences_alone(grid: str) -> None:
    angles = rotary_angles(4, 4, 8, grid)  # type: ignore[arg-type]
    q, k = torch.randn(2, 1, 1, 1, 8).expand(2, 1, 16, 1, 8)
    turned_q, turned_k = rotate(q, angles), rotate(k, angles)
    torch.testing.assert_close(turned_q.norm(dim=-1), q.norm(dim=-1))
    product = torch.einsum("bnhd,bmhd->nm", turned_q, turned_k).view(4, 4, 4, 4)
    torch.testing.assert_close(product[0, 0, 1, 2], product[2, 1, 3, 3])  # both one row down, two columns right
    assert (product[0, 0, 1, 2] - product[0, 0, 2, 1]).abs() > 1e-3
