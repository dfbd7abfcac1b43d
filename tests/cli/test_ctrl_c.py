"""Ctrl-C, also where a library makes another error of it, and before there is a command."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import NoReturn

import pytest

from anystep.cli import info, main
from anystep.cli.ctrl_c import interrupts


@pytest.fixture
def heeded() -> Iterator[None]:
    """Interrupts are heeded, also where the tests run in the background of a shell, which has them ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def disguised() -> NoReturn:
    """An interrupt in a library that reports what it was doing as wrong."""
    try:
        signal.raise_signal(signal.SIGINT)
    except KeyboardInterrupt:
        raise OSError("the file is damaged") from None
    raise AssertionError("there was no interrupt")


@pytest.mark.usefixtures("heeded")
def test_an_interrupt_that_became_another_error_is_an_interrupt(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(info, "run", lambda options: disguised())
    assert main(["info"]) == 130
    assert capsys.readouterr().err == "interrupted\n"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_other_errors_stay_what_they_are() -> None:
    with pytest.raises(OSError, match="no interrupt"), interrupts():
        raise OSError("no interrupt")


def test_an_interrupt_while_the_command_is_imported_is_one_line() -> None:
    interrupting = (
        "import builtins, sys\n"
        "real = builtins.__import__\n"
        "def heavy(name, *rest):\n"
        "    if name == 'argparse': raise KeyboardInterrupt\n"
        "    return real(name, *rest)\n"
        "from anystep.__main__ import main\n"
        "builtins.__import__ = heavy\n"
        "sys.exit(main())\n"
    )
    done = subprocess.run([sys.executable, "-c", interrupting], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted\n")
