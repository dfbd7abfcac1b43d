"""Pairs of training times."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from anystep.objective import TimeDistribution, TimeDraws, TransitionObjective
from anystep.transport import make_transport

FLOW = make_transport("ot_fm")


def test_the_shares_hold_at_batch_size_one() -> None:
    objective, generator = TransitionObjective(FLOW), torch.Generator().manual_seed(0)
    pairs = [objective.draw_times(1, generator) for _ in range(600)]
    t, r = (torch.cat(side) for side in zip(*pairs, strict=True))
    assert (t >= r).all()
    assert ((t == r).float().mean() - 0.5).abs() < 0.06
    assert ((r == FLOW.t_min).float().mean() - 0.1).abs() < 0.04


@given(share=st.floats(0, 1), rest=st.floats(0, 1))
def test_any_shares_hold(share: float, rest: float) -> None:
    objective = TransitionObjective(FLOW, TimeDraws(share, (1 - share) * rest))
    t, r = objective.draw_times(4000, torch.Generator().manual_seed(0))
    assert ((t == r).float().mean() - share).abs() < 0.04
    assert ((r == FLOW.t_min).float().mean() - (1 - share) * rest).abs() < 0.04


def test_uniform_shares_of_both_draws_are_independent() -> None:
    anywhere = TimeDistribution(mean=0.0, std=1.0, uniform=1.0)
    draws = TimeDraws(0.25, 0.0, diffusion=anywhere, later=anywhere, earlier=anywhere)
    t, r = TransitionObjective(FLOW, draws).draw_times(20_000, torch.Generator().manual_seed(0))
    assert ((t == r).double().mean() - 0.25).abs() < 0.01
    interval = (t - r)[t > r].double()
    assert (interval.mean() - 1 / 3).abs() < 0.01  # of two uniform numbers
