"""Snapshots of power-function averages: kept through a run, and put together to an average of any length after it.

A snapshot is a folder `averages/step-N` of the form of a checkpoint, in which every process writes its own shards. Its
tensors are in float16, as in EDM2: rounding them is a relative noise of about 1.4e-4, which rebuilding leaves as it is
between the kept lengths, and multiplies by ten and more only towards the shortest within reach.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_model_state_dict

from anystep.bounds import AverageLength, check
from anystep.errors import InputError
from anystep.files import read_json
from anystep.ranks import Ranks
from anystep.training.checkpoint_files import MANIFEST, checkpoint_steps, read_saved, step_folder
from anystep.training.checkpoints import Checkpoints
from anystep.training.config import Recipe
from anystep.training.ema import fit, length_to_gamma, power_decay, snapshot_steps, update_ema

FOLDER = "averages"  # of a run
LENGTHS = "lengths"  # in a manifest
KEPT_AS = torch.float16
REACH = 0.05  # how far off a profile may be
SHOWN = 6  # of the steps, in a message


def named(place: int) -> str:
    """What the average of that place among the lengths is called in a snapshot."""
    return f"average-{place}"


class PowerAverages:
    """Those of a run that is being trained, shard by shard, and their snapshots; none where the recipe has no lengths.

    Args:
        networks: one for each of the recipe's lengths, sharded as the network is.
    """

    def __init__(self, run: Path, recipe: Recipe, networks: Sequence[nn.Module], ranks: Ranks) -> None:
        self.networks, self.lengths = networks, recipe.ema_lengths
        self._weights = [list(each.parameters()) for each in networks]
        self._gammas = [length_to_gamma(each) for each in self.lengths]
        self._steps = set(snapshot_steps(recipe.run.steps, recipe.ema_snapshots)) if self.lengths else set()
        self._folder = Checkpoints(run / FOLDER, ranks, None, recipe=recipe, what="snapshot") if self.lengths else None

    def update(self, weights: Sequence[Tensor], step: int) -> None:
        """After every step, 1 being the first, one that moved nothing too: the profile is one over steps."""
        update_ema(self._weights, weights, [power_decay(gamma, step) for gamma in self._gammas])

    def due(self, step: int) -> bool:
        """Whether a snapshot is to be kept after this step."""
        return step in self._steps

    def save(self, step: int) -> None:
        """Write a snapshot; it is whole when this returns, so that a checkpoint never stands without those before it.

        Raises:
            InputError: it could not be written.
        """
        if self._folder is not None:
            states: list[Any] = [get_model_state_dict(each) for each in self.networks]
            tensors = {
                named(place): {name: value.to(KEPT_AS) for name, value in state.items()}
                for place, state in enumerate(states)
            }
            self._folder.save(step, tensors, {LENGTHS: list(self.lengths)})
            self._folder.finish()

    def cut(self, step: int) -> None:
        """Drop snapshots of later steps: they are about to be made again."""
        if self._folder is not None:
            self._folder.cut(step)


@dataclass(frozen=True)
class Rebuilt:
    """How an average is put together.

    Attributes:
        length, step: of it.
        weights: of the kept averages, a row a snapshot and a column a length.
        misfit: of its profile, relative.
    """

    length: float
    step: int
    weights: np.ndarray
    misfit: float


class Snapshots:
    """Those of a run folder.

    Attributes:
        lengths: that were kept.
        steps: at which they were kept, in order.

    Raises:
        InputError: there are none, or the newest does not say what it holds.
    """

    def __init__(self, run: Path) -> None:
        self.run, self.steps = run, tuple(checkpoint_steps(run / FOLDER))
        if not self.steps:
            raise InputError(
                f"{str(run)!r} holds no snapshots of averages: train with ema_lengths, for example "
                "--ema_lengths '[0.05, 0.1]'"
            )
        manifest = step_folder(run / FOLDER, self.steps[-1]) / MANIFEST
        lengths = read_json(manifest).get(LENGTHS)
        if not isinstance(lengths, list) or not lengths:
            raise InputError(f"{str(manifest)!r} is damaged: it names no lengths")
        self.lengths = tuple(check(f"{manifest}: length", each, AverageLength) for each in lengths)

    def plan(self, lengths: Sequence[float], step: int | None = None) -> list[Rebuilt]:
        """The weights of averages of these lengths at a snapshot's step, the last when None.

        Raises:
            InputError: no snapshot at that step, or a length that is out of reach.
        """
        end = self.steps[-1] if step is None else step
        if end not in self.steps:
            known = [str(each) for each in self.steps]
            some = known if len(known) <= SHOWN else [*known[: SHOWN // 2], "...", *known[-SHOWN // 2 :]]
            raise InputError(f"step {end}: there is no snapshot of it; expected one of {', '.join(some)}")
        found = self._fit(lengths, end)
        for each in found:
            if each.misfit > REACH:
                raise InputError(self._out_of_reach(each))
        return found

    def _fit(self, lengths: Sequence[float], end: int) -> list[Rebuilt]:
        steps = [step for step in self.steps if step <= end]
        kept = np.tile(np.array(self.lengths, np.float64), len(steps))
        at = np.repeat(np.array(steps, np.float64), len(self.lengths))
        weights, misfits = fit(kept, at, np.array(lengths, np.float64), float(end))
        return [
            Rebuilt(length, end, rows.reshape(len(steps), -1), float(misfit))
            for length, rows, misfit in zip(lengths, weights, misfits, strict=True)
        ]

    def _out_of_reach(self, asked: Rebuilt) -> str:
        grid = [round(float(each), 4) for each in np.geomspace(0.005, 0.25, 100)]
        within = [each.length for each in self._fit(grid, asked.step) if each.misfit <= REACH]
        count = len(asked.weights)
        return (
            f"length {asked.length:g} is out of reach of {', '.join(f'{each:g}' for each in self.lengths)} in {count} "
            f"snapshot{'s' * (count > 1)} up to step {asked.step}: its profile would be {asked.misfit:.0%} off; "
            f"expected about {min(within, default=self.lengths[0]):.2g} to {max(within, default=self.lengths[-1]):.2g}"
        )

    def rebuild(self, plans: Sequence[Rebuilt], network: nn.Module) -> list[dict[str, Tensor]]:
        """The averages, in float32, by the names of the network's tensors; each snapshot is read once.

        Args:
            plans: of one step.

        Raises:
            InputError: a damaged snapshot, one of another network, or averages that are not finite.
        """
        shapes = {name: value.shape for name, value in network.state_dict().items()}
        totals = [{name: torch.zeros(shape) for name, shape in shapes.items()} for _ in plans]
        for row, step in enumerate(each for each in self.steps if each <= plans[0].step):
            read = {
                named(place): {name: torch.empty(shape, dtype=KEPT_AS) for name, shape in shapes.items()}
                for place in range(len(self.lengths))
            }
            facts = read_saved(self.run / FOLDER, step, read, "snapshot")
            if facts.get(LENGTHS) != list(self.lengths):
                raise InputError(f"the snapshots of steps {step} and {self.steps[-1]} are of different lengths")
            for plan, total in zip(plans, totals, strict=True):
                for place, weight in enumerate(plan.weights[row].tolist()):
                    for name, value in read[named(place)].items():
                        total[name].add_(value, alpha=weight)
        if not all(bool(value.isfinite().all()) for total in totals for value in total.values()):
            raise InputError(f"the averages in {str(self.run / FOLDER)!r} are not finite: nothing is made of them")
        return totals
