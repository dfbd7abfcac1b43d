"""`anystep recipes` and `anystep objectives`."""

import json

import pytest

from anystep.cli import main
from anystep.objective.presets import OBJECTIVES
from anystep.training.recipes import recipe_names


def test_objectives_are_listed_with_their_cost_and_source(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["objectives"]) == 0
    told = capsys.readouterr().out
    assert "flow_matching        3.00" in told
    assert "TiM, arXiv 2509.04394" in told
    assert len(told.splitlines()) == 1 + 2 * len(OBJECTIVES)


def test_both_lists_are_there_for_machines(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["objectives", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["kind"] for row in rows] == list(OBJECTIVES)
    assert rows[0]["evaluations"] > 3
    assert main(["recipes", "--json"]) == 0
    assert [row["name"] for row in json.loads(capsys.readouterr().out)] == recipe_names()
