"""The guard: what it lets pass, what it counts, what ends a run."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from anystep.errors import InputError
from anystep.training import train as module
from anystep.training.config import GuardConfig, Recipe
from anystep.training.guard import MIN_NORMS, Guard
from anystep.training.train import train
from anystep.training.trainer_state import TrainerState


def test_steps_that_are_not_finite_are_counted_and_some_in_a_row_end_the_run() -> None:
    guard = Guard(GuardConfig(patience=3), TrainerState())
    assert guard.accepts(1, 1.0, [])
    for norm in (math.nan, math.inf):
        assert not guard.accepts(2, norm, [5])
    assert guard.accepts(4, 0.5, [])  # the row is broken
    assert not guard.accepts(5, math.nan, [])
    assert not guard.accepts(6, math.nan, [])
    with pytest.raises(
        InputError, match=r"3 steps in a row, the last of them step 7, .* Samples of this step: \[8, 9\]"
    ):
        guard.accepts(7, math.nan, [8, 9])
    assert guard.state.skipped == 5


def test_a_norm_that_stands_out_is_a_spike_and_a_lasting_rise_is_not() -> None:
    guard = Guard(GuardConfig(spike=10.0), TrainerState())
    assert not guard.spiked(1e6)  # nothing to compare with yet
    for _ in range(2 * MIN_NORMS):
        assert not guard.spiked(1.0)
    assert not guard.spiked(9.0)
    for _ in range(2 * MIN_NORMS):
        assert guard.spiked(11.0)
        assert not guard.spiked(1.0)
    risen = [guard.spiked(11.0) for _ in range(300)]
    assert risen[0]
    assert not any(risen[100:])
    assert guard.state.spikes == 2 * MIN_NORMS + sum(risen)
    guard.forget()
    assert not guard.spiked(11.0)


def recipe(source: Path, codec: Path, **guard: Any) -> Recipe:
    return Recipe.model_validate(
        {
            "data": {"source": str(source), "size": 16},
            "model": {"preset": "t2i-test", "codec": str(codec)},
            "optimizer": {"learning_rate": 1e-2, "warmup": 2},
            "run": {"steps": 8, "batch_size": 4, "checkpoint_every": 2, "sample_every": 0},
            "guard": guard,
        }
    )


def test_a_spike_turns_the_run_back_and_on_with_other_samples(
    captioned_folder: Path, tiny_codec: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    seen: list[int] = []
    real = module.PrefetchingLoader.take
    monkeypatch.setattr(
        module.PrefetchingLoader, "take", lambda self, position: seen.append(position) or real(self, position)
    )
    # the sixth step that is looked at stands out
    monkeypatch.setattr(Guard, "spiked", lambda self, norm: len(seen) == 6)
    record = train(recipe(captioned_folder, tiny_codec, rollbacks=1), tmp_path)
    assert record["step"] == 8
    assert seen == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]  # back to step 4, on with what nobody has seen
    steps = [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4, 5, 6, 7, 8]
    assert "is a spike, back to the last checkpoint" in capsys.readouterr().err


def test_a_run_that_loses_its_way_ends_with_good_weights(
    captioned_folder: Path, tiny_codec: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    monkeypatch.setattr(module.nn.utils, "clip_grad_norm_", lambda parameters, limit: torch.tensor(torch.nan))
    with pytest.raises(InputError, match="2 steps in a row, the last of them step 2"):
        train(recipe(captioned_folder, tiny_codec, patience=2), tmp_path)
