"""Settings travel as one record, from which seeds and folders follow."""

from pathlib import Path

import pytest
import torch

from anystep.errors import InputError
from anystep.evaluation.settings import VALIDATION_SEED, Evaluation, MeasurementSettings, step_counts


def test_validation_has_seeds_and_images_of_its_own(tmp_path: Path) -> None:
    plain = MeasurementSettings(out=tmp_path, samples=50, seed=3)
    validation = MeasurementSettings(out=tmp_path, samples=50, seed=3, validation=True)
    assert (plain.first_seed, plain.data_seed) == (3, 3)
    assert (validation.first_seed, validation.data_seed) == (VALIDATION_SEED + 3, 0)


@pytest.mark.parametrize("field", ["seed", "batch", "threads", "samples"])
def test_a_number_out_of_bounds_is_told_with_its_name(tmp_path: Path, field: str) -> None:
    with pytest.raises(InputError, match=f"^{field} -1: expected"):
        MeasurementSettings(**{"out": tmp_path, "samples": 50, field: -1}).begin()


def test_step_counts_are_rising_and_some() -> None:
    assert step_counts([4, 1, 4]) == [1, 4]
    with pytest.raises(InputError, match="no budgets: expected at least one number of steps"):
        step_counts([], "budgets")


def test_metrics_are_all_that_the_extractor_serves(tmp_path: Path, pooled: Path) -> None:
    settings = MeasurementSettings(out=tmp_path, samples=50, extractor=str(pooled), allow_code=True)
    evaluation = Evaluation.open(settings, torch.device("cpu"))
    names = list(evaluation.named_metrics())
    assert "inception_score_pooled" not in names
    assert {"frechet_distance_pooled", "pixel_frechet_distance", "sharpness"} <= set(names)
    one, other = (evaluation.chunk_folder("a model", seed) for seed in (0, 1))
    assert one != other
    assert one == evaluation.chunk_folder("a model", 0)
