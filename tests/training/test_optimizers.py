"""Optimizers and the learning-rate schedule."""

from itertools import pairwise

import pytest

from anystep.training.config import OptimizerConfig
from anystep.training.optimizers import learning_rate, unfinished_warmup


def test_the_learning_rate_warms_up_and_decays_to_its_share() -> None:
    config = OptimizerConfig(learning_rate=1.0, warmup=10, final=0.1)
    rates = [learning_rate(config, step, 110) for step in range(111)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == rates[10] == 1.0
    assert all(later <= earlier for earlier, later in pairwise(rates[10:]))
    assert rates[110] == pytest.approx(0.1)


def test_a_run_that_ends_in_its_warm_up_is_told() -> None:
    config = OptimizerConfig(learning_rate=2.0, warmup=100)
    assert unfinished_warmup(config, 100) == ""
    told = unfinished_warmup(config, 25)
    assert told.startswith("the run of 25 steps ends in the warm-up of 100 (optimizer.warmup)")
    assert told.endswith("the learning rate comes to 0.5, not to 2")
