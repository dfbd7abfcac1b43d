"""`anystep data`."""

from pathlib import Path

import pytest
from helpers import refused
from PIL import Image

from anystep.cli import main


def test_data_show(captioned_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "sheet.png"
    assert main(["data", "show", "builtin", "--count", "24", "--size", "32", "--out", str(out)]) == 0
    assert f"wrote {out}: 24 of " in capsys.readouterr().out
    assert Image.open(out).width > 10 * 32
    assert main(["data", "show", str(captioned_folder), "--out", str(out)]) == 0
    assert "12 of 12 examples" in capsys.readouterr().out
    assert "no such folder" in refused(capsys, "data", "show", "nowhere", "--out", out)
    assert "--count" in refused(capsys, "data", "show", "builtin", "--count", "0", "--out", out)
    assert "no folder" in refused(capsys, "data", "show", "builtin", "--out", "/nowhere/x.png")


def test_a_size_is_a_square_in_either_way_to_say_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number, size in enumerate(("32", "32x32")):
        out = tmp_path / f"{number}.png"
        assert main(["data", "show", "--count", "2", "--size", size, "builtin", "--out", str(out)]) == 0
    assert (tmp_path / "0.png").read_bytes() == (tmp_path / "1.png").read_bytes()
    assert "--size: '32x64': expected a square here" in refused(capsys, "data", "show", "builtin", "--size", "32x64")


def test_a_misspelt_source_is_told_what_was_meant(capsys: pytest.CaptureFixture[str]) -> None:
    assert "did you mean builtin?" in refused(capsys, "data", "show", "builtn")
