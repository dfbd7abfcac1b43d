"""Run folders: exact order, atomic checkpoints, honest logs."""

import json
import os
import signal
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from anystep.errors import InputError
from anystep.training.config import OptimizerConfig, Recipe, RunConfig
from anystep.training.run import (
    Run,
    apportion,
    batch_indices,
    interruptible,
    latents_path,
    learning_rate,
    mixed_indices,
    step_generator,
)


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


def test_steps_draw_differently_and_repeatably() -> None:
    one, again, other = (torch.rand(3, generator=step_generator(0, step)) for step in (5, 5, 6))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_the_learning_rate_warms_up_and_decays_to_its_share() -> None:
    config = OptimizerConfig(learning_rate=1.0, warmup=10, final=0.1)
    rates = [learning_rate(config, step, 110) for step in range(111)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == rates[10] == 1.0
    assert all(later <= earlier for earlier, later in pairwise(rates[10:]))
    assert rates[110] == pytest.approx(0.1)


def recipe(**options: int) -> Recipe:
    return Recipe(run=RunConfig(**{"keep": 2, **options}))  # type: ignore[arg-type]


def test_the_log_is_cut_back_to_a_step(tmp_path: Path) -> None:
    run = Run(tmp_path, recipe())
    for step in (1, 2, 3):
        run.log({"step": step, "loss": 0.5})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')  # killed while writing
    run.cut_log(2)
    assert [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [1, 2]


def test_a_folder_of_another_recipe_is_refused_and_harmless_changes_are_not(tmp_path: Path) -> None:
    Run(tmp_path, recipe(steps=5))
    (tmp_path / "checkpoints" / "step-00000001").mkdir()
    Run(tmp_path, recipe(steps=9, log_every=1))
    with pytest.raises(InputError, match=r"differs in run.batch_size"):
        Run(tmp_path, recipe(batch_size=3))


def test_a_folder_in_which_nothing_was_saved_binds_nobody(tmp_path: Path) -> None:
    Run(tmp_path, recipe())
    latents_path(tmp_path, 0).mkdir()
    Run(tmp_path, recipe(batch_size=3))
    assert not latents_path(tmp_path, 0).exists()


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write run folder"):
        Run(tmp_path / "file" / "run", recipe())


def test_a_second_interrupt_stops_at_once_and_a_second_termination_does_not() -> None:
    before = signal.getsignal(signal.SIGINT)
    with interruptible() as caught:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        assert caught == [signal.SIGTERM] * 2
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before
