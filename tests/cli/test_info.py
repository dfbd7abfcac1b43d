"""`anystep info`."""

import json
from pathlib import Path

import pytest

from anystep.cli import main


def test_info_for_people_and_machines(tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "--model", str(tiny_model)]) == 0
    text = capsys.readouterr().out
    assert all(word in text for word in ("ot_fm", "16x16", "knows 3 concepts", "red apple", "torch"))
    assert main(["info", "--model", str(tiny_model), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["transport"] == "ot_fm"
    assert facts["concepts"] == ["red apple", "whale", "tractor"]
