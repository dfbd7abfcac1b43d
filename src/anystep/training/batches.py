"""Which examples each step sees: a pure function of the seed and the step, whatever the number of processes."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Int
from torch import Tensor

from anystep.errors import InputError
from anystep.ranks import Ranks


@dataclass(frozen=True)
class Part:
    """What one process evaluates at once.

    Attributes:
        examples: their numbers.
        first: the number of the first sample, which keys its draws; the others follow.
        share: of the step's loss, by tokens; those of all parts of a step sum to 1.
        packed: whether the examples differ in shape and go into one sequence.
    """

    examples: list[int]
    first: int
    share: float
    packed: bool = False


@runtime_checkable
class Batches(Protocol):
    """The parts of every step, of all processes.

    Attributes:
        parts: how many a step has.
        most: images a part has at most.
    """

    parts: int
    most: int

    def step(self, position: int) -> list[Part]: ...


def mine(parts: Sequence[Part], ranks: Ranks) -> list[Part]:
    """Those of a step that this process evaluates."""
    return list(parts[ranks.rank :: ranks.count])


def part_count(batch_size: int, accumulate: int, processes: int) -> int:
    """How many parts a batch is cut into.

    Raises:
        InputError: the processes do not divide the batch; says what would.
    """
    parts = processes * accumulate
    if batch_size % parts:
        fits = sorted({max(1, batch_size // parts) * parts, -(-batch_size // parts) * parts})
        raise InputError(
            f"run.batch_size {batch_size} does not divide into {processes} processes x {accumulate} parts; "
            f"{' or '.join(map(str, fits))} would"
        )
    return parts


class EqualBatches:
    """Batches of one shape and size, of several sources with shares of every batch.

    Args:
        sizes: examples of each source.
        members: the `class_members` of each, to draw every class equally often.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        shares: Sequence[float],
        batch_size: int,
        parts: int,
        seed: int,
        members: Sequence[Sequence[Tensor]] | None = None,
    ) -> None:
        self._sizes, self._shares, self._batch_size, self._seed, self._members = (
            sizes, shares, batch_size, seed, members
        )  # fmt: skip
        self.parts, self.most = parts, batch_size // parts

    def step(self, position: int) -> list[Part]:
        order = mixed_indices(self._sizes, self._shares, self._batch_size, self._seed, position, self._members)
        return [
            Part(order[start : start + self.most], position * self._batch_size + start, 1 / self.parts)
            for start in range(0, self._batch_size, self.most)
        ]


class TokenBatches:
    """Parts of equally many tokens, from examples of different shapes.

    A part holds `tokens_per_part // tokens` images of one shape, so shapes are seen in proportion to their tokens; or,
    packed, images of any shapes in one sequence. Every example is seen once an epoch; what is left of a shape when its
    last part is filled comes from the beginning of its order. Of several sources each gives its share of the parts.

    Args:
        grids: rows and columns of the latents of each source.
        patch: latent pixels along one side of a token.
        parts: of a step.

    Raises:
        InputError: an image has more tokens than a part, or there are fewer parts than sources.
    """

    def __init__(
        self,
        grids: Sequence[Int[Tensor, "_examples 2"]],
        shares: Sequence[float],
        tokens_per_part: int,
        patch: int,
        parts: int,
        seed: int,
        packed: bool = False,
    ) -> None:
        self.parts, self._seed, self._packed, self._room = parts, seed, packed, tokens_per_part
        self._grids = [(each // patch).long() for each in grids]
        self._tokens = [each.prod(1) for each in self._grids]
        self._all_tokens = torch.cat(self._tokens)
        largest, smallest = int(self._all_tokens.max()), int(self._all_tokens.min())
        if largest > tokens_per_part:
            raise InputError(
                f"run.tokens_per_part {tokens_per_part} is fewer than the {largest} tokens of the largest image"
            )
        self.most = tokens_per_part // smallest
        self._counts = apportion(parts, shares, "run.parts")
        self._before = [sum(len(each) for each in grids[:place]) for place in range(len(grids))]
        self._epoch = lru_cache(maxsize=2 * len(grids))(self._make_epoch)
        self._ends: list[list[int]] = [[] for _ in grids]  # parts of each source up to the end of each epoch

    def step(self, position: int) -> list[Part]:
        chosen: list[list[int]] = []
        for place, count in enumerate(self._counts):
            chosen += [self._part(place, position * count + slot) for slot in range(count)]
        tokens = [self.tokens(part) for part in chosen]
        first = position * self.parts * self.most
        return [
            Part(examples, first + slot * self.most, mine / sum(tokens), self._packed)
            for slot, (examples, mine) in enumerate(zip(chosen, tokens, strict=True))
        ]

    def tokens(self, examples: Sequence[int]) -> int:
        """Of these together."""
        return int(self._all_tokens[list(examples)].sum())

    def _part(self, place: int, number: int) -> list[int]:
        ends = self._ends[place]
        while not ends or number >= ends[-1]:
            ends.append((ends[-1] if ends else 0) + len(self._epoch(place, len(ends))[1]))
        epoch = bisect_right(ends, number)
        order, bounds = self._epoch(place, epoch)
        start, end = bounds[number - (ends[epoch - 1] if epoch else 0)]
        return (order[start:end] + self._before[place]).tolist()

    def _make_epoch(self, place: int, epoch: int) -> tuple[Tensor, list[tuple[int, int]]]:
        """The order of the examples, and where each part of the epoch begins and ends in it."""
        rng = _generator(self._seed + 104_729 * place, epoch)
        tokens = self._tokens[place]
        if self._packed:
            order = torch.randperm(len(tokens), generator=rng).repeat(2)  # the last part is filled from the beginning
            ends = tokens[order].cumsum(0)
            bounds, start, before = [], 0, 0
            while start < len(tokens):
                end = int(torch.searchsorted(ends, before + self._room, right=True))
                bounds.append((start, end))
                start, before = end, int(ends[end - 1])
        else:
            pieces, bounds, start = [], [], 0
            for grid in self._grids[place].unique(dim=0):
                members = torch.nonzero((self._grids[place] == grid).all(1)).squeeze(1)
                members = members[torch.randperm(len(members), generator=rng)]
                each = self._room // int(grid.prod())
                filled = -(-len(members) // each) * each
                pieces.append(members.repeat(-(-filled // len(members)))[:filled])
                bounds += [(start + begin, start + begin + each) for begin in range(0, filled, each)]
                start += filled
            order = torch.cat(pieces)
        shuffled = torch.randperm(len(bounds), generator=rng).tolist()
        return order, [bounds[number] for number in shuffled]


def batch_indices(count: int, batch_size: int, seed: int, step: int) -> list[int]:
    """Which samples step `step` sees: consecutive slices of one shuffle an epoch, wrapping over epoch ends."""
    first = step * batch_size
    indices: list[int] = []
    while len(indices) < batch_size:
        epoch, offset = divmod(first + len(indices), count)
        indices += _order(count, seed, epoch)[offset : offset + batch_size - len(indices)].tolist()
    return indices


@lru_cache(maxsize=8)
def _order(count: int, seed: int, epoch: int) -> Tensor:
    """Of an epoch; kept, since shuffling millions for every batch would take longer than a step."""
    return torch.randperm(count, generator=_generator(seed, epoch))


def _generator(seed: int, epoch: int) -> torch.Generator:
    return torch.Generator().manual_seed((seed * 7_919 + epoch) % 2**63)  # the largest seeds would not fit


def apportion(batch_size: int, shares: Sequence[float], name: str = "run.batch_size") -> list[int]:
    """How many of a batch each source gives: the nearest to its share, and at least one."""
    if batch_size < len(shares):
        raise InputError(f"{name} {batch_size}: expected at least one for each of {len(shares)} sources")
    counts = [max(1, int(batch_size * share)) for share in shares]
    while (lacking := batch_size - sum(counts)) != 0:
        # the source that the step brings nearest to its share
        gaps = [batch_size * share - count for share, count in zip(shares, counts, strict=True)]
        if lacking > 0:
            counts[gaps.index(max(gaps))] += 1
        else:
            counts[gaps.index(min(gap for gap, count in zip(gaps, counts, strict=True) if count > 1))] -= 1
    return counts


def class_members(labels: Tensor) -> list[Tensor]:
    """The numbers of the examples of each class that has some."""
    return [torch.nonzero(labels == label).squeeze(1) for label in labels.unique().tolist()]


def balanced_indices(members: Sequence[Tensor], batch_size: int, seed: int, step: int) -> list[int]:
    """As `batch_indices`, but every class once in each round of all classes, each in a shuffle of its own."""
    indices = []
    for slot in range(step * batch_size, (step + 1) * batch_size):
        turn, place = divmod(slot, len(members))
        chosen = members[int(_order(len(members), seed, turn)[place])]
        epoch, offset = divmod(turn, len(chosen))
        indices.append(int(chosen[_order(len(chosen), seed, epoch)[offset]]))
    return indices


def mixed_indices(
    sizes: Sequence[int],
    shares: Sequence[float],
    batch_size: int,
    seed: int,
    step: int,
    members: Sequence[Sequence[Tensor]] | None = None,
) -> list[int]:
    """`batch_indices` of several sources laid end to end, each with its share of every batch and epochs of its own.

    With the `class_members` of each source, `balanced_indices`.
    """
    indices: list[int] = []
    for place, (size, count) in enumerate(zip(sizes, apportion(batch_size, shares), strict=True)):
        first, own = sum(sizes[:place]), seed + 104_729 * place
        found = (
            batch_indices(size, count, own, step)
            if members is None
            else balanced_indices(members[place], count, own, step)
        )
        indices += [first + index for index in found]
    return indices
