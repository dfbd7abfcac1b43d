"""Which examples a step sees: everything once an epoch, equal tokens, and the same whatever the processes."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from anystep.errors import InputError
from anystep.training.batch_samplers import (
    TokenBudgetBatchSampler,
    apportion,
    batch_indices,
    count_micro_batches,
    mixed_indices,
)
from anystep.training.config import DataConfig, RunConfig


@given(count=st.integers(1, 40), batch=st.integers(1, 17), seed=st.integers(0, 5))
def test_every_epoch_sees_every_sample_once(count: int, batch: int, seed: int) -> None:
    steps = -(-3 * count // batch)
    seen = [index for step in range(steps) for index in batch_indices(count, batch, seed, step)]
    assert len(seen) == steps * batch
    for epoch in range(3):
        assert sorted(seen[epoch * count : (epoch + 1) * count]) == list(range(count))


@given(weights=st.lists(st.floats(0.01, 100), min_size=1, max_size=5), batch=st.integers(5, 64), seed=st.integers(0, 3))
def test_every_source_has_its_share_of_every_batch(weights: list[float], batch: int, seed: int) -> None:
    shares = [weight / sum(weights) for weight in weights]
    counts = apportion(batch, shares)
    assert sum(counts) == batch
    assert min(counts) >= 1
    if all(batch * share >= 1 for share in shares):
        assert all(abs(count - batch * share) < 1 + 1e-9 for count, share in zip(counts, shares, strict=True))
    sizes = [3 + 2 * place for place in range(len(shares))]
    indices = mixed_indices(sizes, shares, batch, seed, 7)
    ends = torch.tensor(sizes).cumsum(0)
    of = torch.bucketize(torch.tensor(indices), ends, right=True)
    assert torch.bincount(of, minlength=len(sizes)).tolist() == counts


def test_one_source_is_drawn_as_it_always_was_and_too_small_a_batch_is_refused() -> None:
    assert mixed_indices([11], [1.0], 4, 3, 5) == batch_indices(11, 4, 3, 5)
    with pytest.raises(InputError, match="batch_size 1: expected at least one for each of 2 sources"):
        apportion(1, [0.5, 0.5])


SHAPES = [(2, 2), (2, 4), (4, 2), (4, 4), (2, 8)]


def grids(count: int, seed: int) -> torch.Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.tensor(SHAPES)[torch.randint(len(SHAPES), (count,), generator=rng)]


@given(
    count=st.integers(1, 200),
    micro_batches=st.integers(1, 4),
    seed=st.integers(0, 3),
    room=st.sampled_from([16, 32, 50]),
)
def test_micro_batches_of_one_shape_hold_every_example_once_an_epoch(
    count: int, micro_batches: int, seed: int, room: int
) -> None:
    sides = grids(count, seed)
    tokens = sides.prod(1)
    batches = TokenBudgetBatchSampler([sides], [1.0], room, 1, micro_batches, seed)
    # an epoch has as many micro-batches as the shapes need
    each = [int((sides == torch.tensor(shape)).all(1).sum()) for shape in SHAPES]
    epoch = sum(-(-members // (room // (a * b))) for (a, b), members in zip(SHAPES, each, strict=True))
    steps = [batches.step(position) for position in range(-(-epoch // micro_batches))]
    seen = [micro_batch for step in steps for micro_batch in step]
    for micro_batch in seen:
        shape = sides[micro_batch.examples]
        assert (shape == shape[0]).all()
        members, most = int((sides == shape[0]).all(1).sum()), room // int(shape[0].prod())
        parts = -(-members // most)
        assert len(micro_batch.examples) in (members // parts, -(-members // parts))
        assert len(micro_batch.examples) <= most
    assert sorted(number for micro_batch in seen[:epoch] for number in micro_batch.examples) == list(range(count))
    for step in steps:
        assert sum(micro_batch.loss_weight for micro_batch in step) == pytest.approx(1)
        total = sum(int(tokens[micro_batch.examples].sum()) for micro_batch in step)
        assert all(
            micro_batch.loss_weight == pytest.approx(int(tokens[micro_batch.examples].sum()) / total)
            for micro_batch in step
        )
    # every sample has a number of its own
    numbers = [micro_batch.first_sample + row for micro_batch in seen for row in range(len(micro_batch.examples))]
    assert len(set(numbers)) == len(numbers)


@given(count=st.integers(1, 200), seed=st.integers(0, 3))
def test_packs_hold_every_example_once_an_epoch_and_leave_little_room(count: int, seed: int) -> None:
    sides = grids(count, seed)
    tokens = sides.prod(1)
    batches = TokenBudgetBatchSampler([sides], [1.0], 40, 1, 1, seed, packed=True)
    seen: list[int] = []
    position, short = 0, 0
    while len(seen) < count:
        (micro_batch,) = batches.step(position)
        assert micro_batch.packed
        filled = int(tokens[micro_batch.examples].sum())
        assert filled <= 40
        short += filled <= 40 - 16
        seen += micro_batch.examples
        position += 1
    assert sorted(seen) == list(range(count))
    assert short <= 1  # what is left
    again = TokenBudgetBatchSampler([sides], [1.0], 40, 1, 1, seed, packed=True)
    assert again.step(position + 3) == batches.step(position + 3)  # a resumed run does not need the steps before


def test_a_resumed_run_makes_the_epoch_it_is_in_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    sides, made = grids(100, 0), list[int]()
    real = TokenBudgetBatchSampler._make_epoch

    def make(self: TokenBudgetBatchSampler, source: int, epoch: int) -> list[torch.Tensor]:
        made.append(epoch)
        return real(self, source, epoch)

    monkeypatch.setattr(TokenBudgetBatchSampler, "_make_epoch", make)
    undisturbed, resumed = (TokenBudgetBatchSampler([sides], [1.0], 32, 1, 1, 0) for _ in range(2))
    steps = [undisturbed.step(position) for position in range(200)]
    made.clear()
    assert resumed.step(199) == steps[199]
    assert len(made) == 1
    assert made[0] > 2


def test_shapes_are_seen_in_proportion_to_their_tokens() -> None:
    sides = torch.tensor([(2, 2)] * 600 + [(4, 4)] * 200)
    batches = TokenBudgetBatchSampler([sides], [1.0], 32, 1, 2, 0)
    micro_batches = [micro_batch for position in range(500) for micro_batch in batches.step(position)]
    large = sum(len(micro_batch.examples) == 2 for micro_batch in micro_batches)
    assert large / len(micro_batches) == pytest.approx(200 * 16 / (200 * 16 + 600 * 4), abs=0.01)


def test_several_sources_give_their_share_of_the_micro_batches() -> None:
    batches = TokenBudgetBatchSampler([grids(30, 0), grids(50, 1)], [0.25, 0.75], 32, 1, 4, 0)
    for position in range(20):
        first = [min(micro_batch.examples) < 30 for micro_batch in batches.step(position)]
        assert first.count(True) == 1
        for micro_batch in batches.step(position):
            assert len({number < 30 for number in micro_batch.examples}) == 1


def test_the_order_changes_from_epoch_to_epoch_and_with_the_seed() -> None:
    sides = torch.tensor([(4, 4)] * 64)
    one, two = (TokenBudgetBatchSampler([sides], [1.0], 64, 1, 1, seed) for seed in (0, 1))
    assert one.step(0) != two.step(0)
    assert one.step(0)[0].examples != one.step(16)[0].examples


def test_what_cannot_be_shared_out_is_one_line() -> None:
    with pytest.raises(InputError, match="tokens_per_micro_batch 8: expected at least the 16 tokens"):
        TokenBudgetBatchSampler([grids(50, 0)], [1.0], 8, 1, 1, 0)
    with pytest.raises(InputError, match=r"run\.micro_batches 1: expected at least one for each of 2 sources"):
        TokenBudgetBatchSampler([grids(50, 0), grids(50, 0)], [0.5, 0.5], 16, 1, 1, 0)


def test_every_row_of_a_batch_is_seen_by_one_process() -> None:
    from anystep.ranks import Ranks
    from anystep.training.batch_samplers import FixedShapeBatchSampler, of_rank

    batches, seen = FixedShapeBatchSampler([100], [1.0], 24, 6, 0), []
    for rank in range(3):
        ranks = Ranks()
        ranks.count, ranks.rank = 3, rank
        parts = of_rank(batches.step(2), rank, 3)
        assert [len(part.examples) for part in parts] == [4, 4]
        seen += [part.first_sample + row for part in parts for row in range(4)]
    assert sorted(seen) == list(range(48, 72))


def test_a_step_that_processes_cannot_share_is_one_line() -> None:
    with pytest.raises(InputError, match=r"batch_size 64 does not divide into 3 processes x 2 .*; 60 or 66 would"):
        count_micro_batches(DataConfig(), RunConfig(batch_size=64, accumulate=2), 3)
    with pytest.raises(InputError, match=r"run\.micro_batches 4: 3 processes need a multiple, as 6"):
        count_micro_batches(DataConfig(native=True), RunConfig(micro_batches=4), 3)
