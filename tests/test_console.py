"""Streams that are closed, or cannot say every letter, stop no command."""

import subprocess
import sys
from io import BytesIO, TextIOWrapper

import pytest

from anystep.console import prepare_streams, progress_bar, say


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_command_whose_streams_are_closed_does_its_work(closed: str) -> None:
    command = f'exec "$0" -m anystep recipes {closed}'
    assert subprocess.run(["sh", "-c", command, sys.executable], capture_output=True).returncode == 0


def test_streams_that_are_not_there_take_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("stdin", "stdout", "stderr"):
        monkeypatch.setattr(sys, name, None)
    say("nobody hears")
    with progress_bar() as bar:
        bar.add_task("unseen")
    prepare_streams()
    print("nobody hears", file=sys.stdout, flush=True)
    assert sys.stdin.read() == ""
    assert not sys.stderr.isatty()
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        stream.close()


def test_letters_that_the_output_has_not_are_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    written = BytesIO()
    monkeypatch.setattr(sys, "stdout", TextIOWrapper(written, encoding="ascii"))
    prepare_streams()
    print("wrote café.png", flush=True)
    assert written.getvalue() == b"wrote caf\\xe9.png\n"
