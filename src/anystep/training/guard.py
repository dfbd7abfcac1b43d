"""What watches a run: steps that are not finite, and spikes of the gradient."""

import math
from collections import deque
from collections.abc import Sequence
from statistics import median

from torch import nn

from anystep.errors import InputError
from anystep.ranks import Ranks
from anystep.training.config import GuardConfig
from anystep.training.parallel import all_finite
from anystep.training.trainer_state import TrainerState

MAX_NORMS = 100  # gradient norms that a new one is compared with
MIN_NORMS = 20  # of them, before anything counts as a spike


class Guard:
    """It is given the gradient norm of every step, the same in every process, so that all decide alike.

    Args:
        state: of the run, in which skipped steps and spikes are counted.
    """

    def __init__(self, config: GuardConfig, state: TrainerState) -> None:
        self.config, self.state = config, state
        self._norms: deque[float] = deque(maxlen=MAX_NORMS)

    def accepts(self, step: int, norm: float, samples: Sequence[int]) -> bool:
        """Whether the step may be taken.

        Raises:
            InputError: `patience` steps in a row may not; says which samples the last of them had.
        """
        if math.isfinite(norm):
            self.state.skipped_in_a_row = 0
            return True
        self.state.skipped += 1
        self.state.skipped_in_a_row += 1
        if (row := self.state.skipped_in_a_row) >= self.config.patience:
            raise InputError(
                f"{row} steps in a row, the last of them step {step}, had a loss or gradient that is not finite; "
                f"the weights are those of the last good one. Samples of this step: {listed(samples)}. "
                "Try a lower learning rate, or float32"
            )
        return False

    def spiked(self, norm: float) -> bool:
        """Whether a finite gradient norm stands out from those before it, with which it is then remembered.

        So a lasting rise is no spike any more once half of what is remembered has it.
        """
        usual = median(self._norms) if len(self._norms) >= MIN_NORMS else math.inf
        self._norms.append(norm)
        if norm <= self.config.spike * usual:
            return False
        self.state.spikes += 1
        return True

    def forget(self) -> None:
        """After going back to a checkpoint."""
        self._norms.clear()


def diverged(step: int, what: str, rate: float) -> InputError:
    """What ends a run whose `what` is not finite after `step`, and keeps its weights from being used."""
    return InputError(
        f"step {step}: {what} no longer finite: the run has diverged, and exports nothing. Checkpoints of good steps "
        f"are kept. Try a lower optimizer.learning_rate (it was {rate:.3g}) in another --out"
    )


def check_finite(networks: Sequence[nn.Module], ranks: Ranks, step: int, rate: float) -> None:
    """Raises `InputError` in all processes where a weight of these networks is not finite after `step`."""
    if not all_finite(networks, ranks):
        raise diverged(step, "the weights are", rate)


def listed(samples: Sequence[int], shown: int = 8) -> str:
    """Numbers of samples, the first of many."""
    more = f" and {len(samples) - shown} more" if len(samples) > shown else ""
    return f"{list(samples[:shown])}{more}"
