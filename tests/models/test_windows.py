"""Windows: tokens see their window alone, and every token is in one."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from anystep.models.presets import build_transformer
from anystep.models.transformer import TransitionTransformer2DModel
from anystep.models.windows import Windows


@given(length=st.integers(1, 50), side=st.integers(2, 20), moved=st.booleans())
def test_cuts_cover_a_side_once(length: int, side: int, moved: bool) -> None:
    cuts = Windows(length, length, side, moved).cuts(length)
    assert [end for _, end in cuts[:-1]] == [start for start, _ in cuts[1:]]
    assert (cuts[0][0], cuts[-1][1]) == (0, length)
    assert all(0 < end - start <= side for start, end in cuts)


def network(**options: Any) -> TransitionTransformer2DModel:
    """One whose gates are open."""
    torch.manual_seed(0)
    made = build_transformer("c2i-test", **options)
    for parameter in made.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    return made


def test_a_token_hears_its_window_and_through_moved_windows_the_next() -> None:
    made = network(patch_size=1, depth=2)
    made.attention_window = 4
    x = torch.randn(1, 4, 12, 8, requires_grad=True)
    out = made(x, torch.tensor([0.5]), torch.tensor([0.2]), torch.tensor([1]))
    out[0, :, 0, 0].sum().backward()
    heard = x.grad.abs().sum((0, 1)) > 0  # type: ignore[union-attr]
    # in the second block the corner's window is 2 x 2, all of whose tokens saw 4 x 4 in the first
    assert heard[:4, :4].all()
    assert not heard[4:].any()
    assert not heard[:, 4:].any()


@pytest.mark.parametrize("size", [(8, 8), (4, 8)])
def test_a_window_as_large_as_the_image_changes_nothing(size: tuple[int, int]) -> None:
    made = network()
    x, t, label = torch.randn(2, 4, *size), torch.rand(2), torch.tensor([1, 2])
    with torch.no_grad():
        whole = made(x, t, t / 2, label)
        made.attention_window = 4
        assert torch.equal(made(x, t, t / 2, label), whole)
        made.attention_window = 2
        assert not torch.equal(made(x, t, t / 2, label), whole)
