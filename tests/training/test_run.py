"""Run folders: exact order, atomic checkpoints, honest logs."""

import json
import os
import signal
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from anystep.errors import InputError
from anystep.training.config import OptimizerConfig, Recipe, RunConfig
from anystep.training.run import Run, interruptible, latents_path, learning_rate, step_generator


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
