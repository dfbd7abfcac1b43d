"""What the steps of a run log."""

import pytest
import torch

from anystep.training.step_metrics import derivative_sums, utilisation


def test_the_derivative_is_measured_over_all_micro_batches() -> None:
    from anystep.objective import LossRecord

    def part(intervals: list[float], norm: float, noise: float | None) -> LossRecord:
        t = torch.tensor(intervals)
        zero = torch.zeros(())
        return LossRecord(
            loss=zero, denoising=zero, residual=t, weighted_residual=t, t=t, r=torch.zeros_like(t),
            derivative_norm=torch.tensor(norm), alignment=zero, evaluations=1,
            derivative_noise=None if noise is None else torch.tensor(noise),
        )  # fmt: skip

    parts = [part([0.0, 0.5], 2.0, 0.5), part([0.5, 0.5, 0.5], 4.0, 0.25), part([0.0], 0.0, None)]
    assert derivative_sums(parts) == [1 * 4.0 + 3 * 16.0, 4.0, 1 * 0.5 + 3 * 0.25, 4.0]


def test_operations_of_a_step_scale_with_its_evaluations() -> None:
    # 4 samples forward, 2 of them on both sides, 4 backward at twice the price: 16 forwards in half a second
    assert utilisation(100, 8, 4, 0.5, 6400.0) == pytest.approx(16 * 100 / 0.5 / 6400)
