"""Memory of the machine and of the process, on systems that tell it in different ways."""

import sys
from pathlib import Path
from typing import Any

import pytest

from anystep.environment import machine_memory, peak_megabytes, resident_bytes


def test_a_process_holds_less_than_it_has_held_and_than_there_is() -> None:
    assert 2**20 < resident_bytes() <= peak_megabytes() * 2**20 * 1.01 < machine_memory()


@pytest.mark.parametrize("missing", [[], ["resource"]])
def test_memory_is_told_without_proc_and_as_on_windows(monkeypatch: pytest.MonkeyPatch, missing: list[str]) -> None:
    def nowhere(*_: Any) -> str:
        raise FileNotFoundError

    for name in missing:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr(Path, "read_text", nowhere)
    assert peak_megabytes() * 2**20 * 1.1 > resident_bytes()
