"""Power-function averages: their lengths, their recursion, and averages of other lengths put together from them."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anystep.training.ema import dot, fit, length_to_gamma, power_decay, snapshot_steps

LENGTHS = st.floats(0.005, 0.25)


def averages(trajectory: np.ndarray, length: float) -> np.ndarray:
    """The power-function average after every step, by its recursion."""
    gamma, average, found = length_to_gamma(length), 0.0, []
    for step, value in enumerate(trajectory, 1):
        beta = power_decay(gamma, step)
        average = beta * average + (1 - beta) * value
        found.append(average)
    return np.array(found)


def profile(tau: np.ndarray, length: float, end: float = 1.0) -> np.ndarray:
    gamma = length_to_gamma(length)
    return np.where(tau <= end, (gamma + 1) * (tau / end) ** gamma / end, 0.0)


@given(LENGTHS)
def test_a_length_has_one_gamma_and_is_the_deviation_of_its_profile(length: float) -> None:
    gamma = length_to_gamma(length)
    assert gamma > 0
    assert (gamma + 1) ** 0.5 / ((gamma + 2) * (gamma + 3) ** 0.5) == pytest.approx(length, rel=1e-9)
    mean, square = (gamma + 1) / (gamma + 2), (gamma + 1) / (gamma + 3)  # moments of (gamma + 1) tau^gamma on [0, 1]
    assert np.sqrt(square - mean**2) == pytest.approx(length, rel=1e-6)


def test_known_lengths_have_their_gammas() -> None:
    # of the paper: 5 % and 10 % are 16.97 and 6.94
    assert length_to_gamma(0.05) == pytest.approx(16.97, abs=0.005)
    assert length_to_gamma(0.10) == pytest.approx(6.94, abs=0.005)


@given(LENGTHS, st.integers(1, 300))
def test_the_recursion_gives_every_step_its_share_of_the_profile(length: float, steps: int) -> None:
    gamma = length_to_gamma(length)
    edges = (np.arange(steps + 1) / steps) ** (gamma + 1)  # the integral of the profile
    trajectory = np.random.default_rng(steps).standard_normal(steps)
    assert averages(trajectory, length)[-1] == pytest.approx(np.diff(edges) @ trajectory, rel=1e-9, abs=1e-12)


def test_the_first_average_is_the_weights_and_what_does_not_move_stays() -> None:
    assert power_decay(length_to_gamma(0.1), 1) == 0.0
    np.testing.assert_allclose(averages(np.full(50, 3.0), 0.07), 3.0, rtol=1e-14)


@given(LENGTHS, LENGTHS, st.floats(0.05, 1), st.floats(0.05, 1))
def test_products_of_profiles_are_their_integrals(one: float, two: float, end: float, other_end: float) -> None:
    nodes, weights = np.polynomial.legendre.leggauss(200)
    upto = min(end, other_end)
    tau, weight = (nodes + 1) * upto / 2, weights * upto / 2
    integral = weight @ (profile(tau, one, end) * profile(tau, two, other_end))
    gammas = [np.array([length_to_gamma(each)]) for each in (one, two)]
    product = dot(gammas[0], np.array([end]), gammas[1], np.array([other_end]))
    assert product == pytest.approx(integral, rel=1e-6, abs=1e-12)
    assert product == pytest.approx(dot(gammas[1], np.array([other_end]), gammas[0], np.array([end])), rel=1e-12)


STEPS, KEPT = 4000, (0.05, 0.10)


def kept(trajectory: np.ndarray, count: int, lengths: tuple[float, ...] = KEPT) -> tuple[np.ndarray, ...]:
    """Lengths, steps and values of the averages in the snapshots of a run."""
    steps = snapshot_steps(len(trajectory), count)
    values = np.stack([averages(trajectory, each)[np.array(steps) - 1] for each in lengths], 1)
    return np.tile(lengths, len(steps)), np.repeat(np.array(steps, float), len(lengths)), values.ravel()


TAU = np.arange(1, STEPS + 1) / STEPS
TRAJECTORIES = {
    "a line": TAU,
    "a polynomial": 1 - 3 * TAU + 5 * TAU**2 - 2 * TAU**4,
    "a decay": np.exp(-6 * TAU),
    "an oscillation": np.sin(25 * TAU),
}


@pytest.mark.parametrize("what", TRAJECTORIES)
@pytest.mark.parametrize("length", [0.03, 0.04, 0.06, 0.075, 0.09, 0.12, 0.16, 0.2])
def test_an_average_of_any_length_is_rebuilt_from_two(what: str, length: float) -> None:
    trajectory = TRAJECTORIES[what]
    lengths, steps, values = kept(trajectory, 32)
    weights, misfit = fit(lengths, steps, np.array([length]), float(STEPS))
    truth = averages(trajectory, length)[-1]
    between = KEPT[0] < length < KEPT[1]
    assert misfit[0] < (1e-3 if between else 0.015)
    assert weights[0] @ values == pytest.approx(truth, abs=(1e-5 if between else 3e-4) * np.ptp(trajectory))


def test_a_kept_average_is_itself() -> None:
    values = np.random.default_rng(0).standard_normal(STEPS).cumsum()
    lengths, steps, found = kept(values, 32)
    weights, misfit = fit(lengths, steps, np.array(KEPT), float(STEPS))
    np.testing.assert_allclose(weights @ found, found[-2:], rtol=1e-9)
    assert misfit.max() < 1e-6


def test_an_average_of_an_earlier_end_is_that_of_the_run_until_then() -> None:
    trajectory = TRAJECTORIES["a polynomial"]
    lengths, steps, values = kept(trajectory, 32)
    early = steps <= STEPS // 2
    weights, misfit = fit(lengths[early], steps[early], np.array([0.07]), STEPS / 2)
    assert weights[0] @ values[early] == pytest.approx(averages(trajectory[: STEPS // 2], 0.07)[-1], abs=1e-4)
    assert misfit[0] < 4e-3


@given(LENGTHS, st.integers(1, 40))
def test_weights_sum_to_one_however_far_off(length: float, count: int) -> None:
    steps = np.repeat(np.arange(1.0, count + 1), 2)
    weights, misfit = fit(np.tile(KEPT, count), steps, np.array([length]), float(count))
    assert weights.sum() == pytest.approx(1, abs=1e-8)
    assert 0 <= misfit[0] < 10


def test_more_snapshots_reach_further() -> None:
    wanted = np.array([0.02, 0.03, 0.2])
    misfits = [
        fit(np.tile(KEPT, count), np.repeat(np.arange(1.0, count + 1), 2), wanted, float(count))[1]
        for count in (4, 8, 16, 32, 64)
    ]
    assert all((more < fewer).all() for fewer, more in pairwise(misfits))


def test_snapshots_are_even_end_the_run_and_are_no_more_than_its_steps() -> None:
    assert snapshot_steps(100, 4) == [25, 50, 75, 100]
    assert snapshot_steps(10, 4) == [3, 5, 8, 10]
    assert snapshot_steps(3, 32) == [1, 2, 3]
    assert snapshot_steps(7, 1) == [7]
