"""Optimizers and the learning-rate schedule."""

from itertools import pairwise

import pytest

from anystep.training.config import OptimizerConfig
from anystep.training.optimizers import learning_rate


def test_the_learning_rate_warms_up_and_decays_to_its_share() -> None:
    config = OptimizerConfig(learning_rate=1.0, warmup=10, final=0.1)
    rates = [learning_rate(config, step, 110) for step in range(111)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == rates[10] == 1.0
    assert all(later <= earlier for earlier, later in pairwise(rates[10:]))
    assert rates[110] == pytest.approx(0.1)
