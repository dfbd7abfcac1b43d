"""`anystep`: that it says what it does, and that bad input is one line and exit code 2."""

import json
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from helpers import refused

from anystep import __version__
from anystep.cli import main, prepare_libraries


@pytest.mark.parametrize("damage", [lambda content: content[:-500], lambda content: b"\0" * len(content)])
def test_damaged_weights_are_one_line(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: object
) -> None:
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    weights = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(damage(weights.read_bytes()))  # type: ignore[operator]
    assert f"cannot load model '{folder}'" in refused(capsys, "generate", "a whale", "--model", folder)
    assert str(folder) in refused(capsys, "info", "--model", folder)


def test_help_and_version_need_no_torch() -> None:
    code = "import sys, anystep.cli as cli; cli.build_parser().format_help(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
    said = subprocess.run([sys.executable, "-m", "anystep", "--version"], capture_output=True, text=True, check=True)
    assert said.stdout == f"anystep {__version__}\n"


def test_a_process_exits_with_2_and_one_line() -> None:
    process = subprocess.run(
        [sys.executable, "-m", "anystep", "generate", "", "--out", "/dev/shm/never.png"],
        capture_output=True,
        text=True,
    )
    assert (process.returncode, process.stdout) == (2, "")
    assert process.stderr == 'anystep: error: empty prompt: say what to draw, for example "a red apple"\n'


def test_dir_shows_the_public_names() -> None:
    import anystep

    assert dir(anystep) == sorted(anystep.__all__)
    assert {"load", "TransitionPipeline", "__version__"} <= set(dir(anystep))
    assert all(getattr(anystep, name) is not None for name in dir(anystep))
    assert (Path(anystep.__file__).parent / "py.typed").exists()


def test_it_runs_as_a_module() -> None:
    said = subprocess.run([sys.executable, "-m", "anystep", "--version"], capture_output=True, text=True, check=True)
    assert said.stdout == f"anystep {__version__}\n"


LONG = [
    "generate x", "info", "train emoji --out r", "train-codec codec-emoji --out r", "evaluate --out r", "plan",
    "benchmark scenes --out r", "compare emoji --out r", "data show builtin", "data prepare x --out r --size 32",
    "train-alignment --out a.safetensors", "train-classifier x --out a.safetensors",
    "train-scene-detector --out a.safetensors",
]  # fmt: skip


@pytest.mark.parametrize("words", LONG)
def test_every_long_command_says_that_it_has_begun_before_it_imports_anything_heavy(
    words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What comes first of all that is heavy ends the command here, and by then something has been said."""
    monkeypatch.chdir(tmp_path)

    def heavy(name: str, *rest: object) -> object:
        if name.split(".")[0] in ("torch", "diffusers", "transformers", "PIL", "numpy"):
            raise KeyboardInterrupt
        return real(name, *rest)

    import builtins

    real = builtins.__import__
    kept = {name: module for name, module in sys.modules.items() if name.startswith("anystep.")}
    for name in kept.keys() - {"anystep.cli"}:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(builtins, "__import__", heavy)
    code = main(words.split())
    monkeypatch.undo()
    for name, module in kept.items():  # packages named the modules that came in between
        package, _, child = name.rpartition(".")
        setattr(sys.modules[package], child, module)
    assert capsys.readouterr().out == f"anystep {words.split()[0]}: loading\n"
    assert code == 130


def test_nothing_is_said_to_machines_or_by_other_processes(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["info", "--json", "--model", str(tiny_model)]) == 0
    json.loads(capsys.readouterr().out)
    monkeypatch.setenv("RANK", "1")
    assert main(["info", "--model", str(tiny_model)]) == 0
    assert "loading" not in capsys.readouterr().out


def test_a_terminal_is_told_on_a_line_that_is_written_over(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    assert main(["info", "--model", "nowhere"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("loading...\ranystep: error: unknown model")


def test_a_word_that_is_no_argument_is_named_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "mdl"]) == 2
    assert "error: unknown arguments: mdl: a model is named by --model" in capsys.readouterr().err
    assert main(["completion", "bash", "mdl"]) == 2
    assert capsys.readouterr().err.endswith("unknown arguments: mdl\n")


def test_output_that_cannot_be_written_is_an_error() -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "anystep", "info"], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert (done.returncode, done.stderr) == (2, "anystep: error: No space left on device\n")


def test_verbose_says_where_an_error_came_from(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes", "show", "nothing"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert main(["recipes", "show", "nothing", "--verbose"]) == 2
    told = capsys.readouterr().err
    assert "Traceback" in told
    assert told.splitlines()[-1].startswith("anystep: error: cannot read recipe 'nothing'")


@pytest.mark.parametrize("verbose", [False, True])
def test_warnings_of_libraries_are_for_who_asks_for_them(verbose: bool) -> None:
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        prepare_libraries(verbose)
        for module in ("huggingface_hub.utils._validators", "somebody.elses"):
            warnings.warn_explicit(module, UserWarning, "a.py", 1, module=module)
    assert [str(each.message)[:4] for each in told] == ["hugg", "some"][not verbose :]
