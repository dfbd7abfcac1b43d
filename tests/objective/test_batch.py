"""Batches: rows and samples, and what is left out of a mean."""

from dataclasses import replace

import torch
from helpers import latent_batch

from anystep.objective import TrainingBatch
from anystep.objective.batch import ValidMean
from anystep.packing import pack


def packed_batch() -> TrainingBatch:
    """Images of 4 and 2 tokens."""
    x, packing = pack([torch.ones(1, 2, 2), 2 * torch.ones(1, 1, 2)], 1)
    t = torch.tensor([0.5, 0.9])
    return TrainingBatch(x, torch.zeros_like(x), t, t / 2, torch.zeros(2), packing=packing)


def test_values_of_a_sample_are_those_of_all_its_rows() -> None:
    assert packed_batch().by_row(torch.tensor([7, 8])).tolist() == [7, 7, 7, 7, 8, 8]
    x, z, t, r, y = latent_batch(3)
    assert torch.equal(TrainingBatch(x, z, t, r, y).by_row(t), t)


def test_a_sample_is_finite_where_all_its_rows_are() -> None:
    batch = packed_batch()
    x = batch.x.clone()
    x[4] = torch.nan
    cleaned, finite = replace(batch, x=x).without_nonfinite()
    assert finite.tolist() == [True, False]
    assert cleaned.x.flatten().tolist() == [1, 1, 1, 1, 0, 0]


def test_a_mean_weighs_samples_by_their_tokens_and_leaves_out_the_invalid() -> None:
    layout, values = packed_batch().layout, torch.tensor([3.0, 6.0])
    assert ValidMean(layout, torch.tensor([True, True]), torch.float32)(values) == 4
    values[1] = torch.nan
    assert ValidMean(layout, torch.tensor([True, False]), torch.float32)(values) == 3
    assert ValidMean(layout, torch.tensor([False, False]), torch.float32)(values) == 0


def test_all_tensors_of_a_batch_are_moved() -> None:
    moved = packed_batch().to(torch.device("meta"))
    assert {each.device.type for each in (moved.x, moved.z, moved.t, moved.r, moved.condition)} == {"meta"}
    assert moved.packing == packed_batch().packing
    assert moved.features is None
