"""Shares with intervals that hold at their ends, and tables that show them."""

from statistics import NormalDist

import pytest

from anystep.evaluation.benchmarks.scores import over_groups, share, table


def test_a_share_of_all_or_nothing_is_not_certain() -> None:
    assert share([1.0] * 20) == {"value": 1.0, "low": pytest.approx(0.8389, abs=1e-4), "high": 1.0}
    assert share([0.0] * 20) == {"value": 0.0, "low": 0.0, "high": pytest.approx(0.1611, abs=1e-4)}
    assert share([1.0])["low"] < 0.25


@pytest.mark.parametrize("right", [1, 5, 19])
def test_ends_are_the_shares_that_are_just_not_refuted(right: int) -> None:
    """What defines Wilson's interval (1927): the observed share lies 1.96 standard errors of each end away from it."""
    score, count = share([1.0] * right + [0.0] * (20 - right)), 20
    for end in (score["low"], score["high"]):
        error = (end * (1 - end) / count) ** 0.5
        assert abs(score["value"] - end) / error == pytest.approx(NormalDist().inv_cdf(0.975), abs=1e-3)


def test_overall_is_as_unsure_as_its_groups() -> None:
    perfect = over_groups({"one": [1.0] * 20, "two": [1.0] * 20})["overall"]
    assert perfect["value"] == perfect["high"] == 1
    assert share([1.0] * 20)["low"] < perfect["low"] < 0.9
    half = over_groups({"one": [1.0, 0.0] * 10, "two": [1.0, 0.0] * 10})["overall"]
    assert half["value"] - half["low"] == pytest.approx((0.5 - share([1.0, 0.0] * 10)["low"]) / 2**0.5)


def test_the_table_shows_both_ends_and_what_the_judge_makes_of_truth() -> None:
    scores = {"one": share([1.0] * 20)}
    points = [{"steps": 1, "nfe": 2, "scores": scores}, {"steps": 4, "nfe": 8, "scores": scores}]
    report = {"benchmark": "B", "model": "m", "points": points, "notes": ["n"], "truth": scores}
    lines = table(report).splitlines()
    assert lines[2] == "| | 1 step | 4 steps | true pictures |"
    assert lines[4] == "| NFE | 2 | 8 |  |"
    assert lines[5] == "| one |" + " 1.000 (0.839 to 1.000) |" * 3
