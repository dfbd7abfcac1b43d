"""Where files are kept that can be made again."""

from pathlib import Path

import pytest

from anystep.data import cache


def test_the_cache_has_a_place_without_a_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("ANYSTEP_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, "")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache.cache_folder() == tmp_path / ".cache" / "anystep"

    def nobody() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", nobody)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    cache._temporary_folder.cache_clear()
    assert cache.cache_folder().parent == tmp_path
    assert cache.cache_folder().stat().st_mode & 0o77 == 0  # nobody else writes what we read
    cache._temporary_folder.cache_clear()
