"""Where figures go beside the log of a run."""

from pathlib import Path

from anystep.training.trackers import tracking


def test_steps_that_are_made_again_replace_what_tensorboard_shows_of_them(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for steps in ((10, 20, 30), (20, 30, 40, 30, 40)):  # a run that is resumed, and goes back once more
        with tracking(["tensorboard"], tmp_path, {}) as log:
            for number, step in enumerate(steps):
                log(step, {"loss": float(number)})
    shown = EventAccumulator(str(tmp_path / "tensorboard"))
    shown.Reload()
    assert [(each.step, each.value) for each in shown.Scalars("loss")] == [(10, 0), (20, 0), (30, 3), (40, 4)]
