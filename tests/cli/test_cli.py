"""The command line: what it writes and prints, and that bad input is one line and exit code 2."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from PIL import Image

from anystep import __version__
from anystep.cli import main
from anystep.objective.presets import OBJECTIVES


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory, tiny_codec: Path, captioned_folder: Path) -> Path:
    """A recipe of seconds on twelve images."""
    path = tmp_path_factory.mktemp("recipe") / "tiny.yaml"
    content = {
        "data": {"source": str(captioned_folder), "size": 16},
        "model": {"preset": "t2i-test", "codec": str(tiny_codec)},
        "run": {"steps": 4, "batch_size": 4, "checkpoint_every": 2, "sample_every": 4, "log_every": 2},
        "sample_steps": [1, 2],
        "debug": {"run": {"steps": 2}},
    }
    path.write_text(yaml.safe_dump(content))
    return path


def refused(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    """The one line that a command refused with."""
    try:
        code: object = main([str(argument) for argument in arguments])
    except SystemExit as stop:  # argparse
        code = stop.code
    captured = capsys.readouterr()
    assert code == 2, captured.out
    assert captured.err.count("\n") == 1, captured.err
    assert "Traceback" not in captured.err
    return captured.err


def test_generate_writes_a_sheet_and_prints_a_table(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, folder = tmp_path / "sheet.png", tmp_path / "each"
    arguments = ["generate", "a whale", "a red apple", "--steps", "1", "2", "--model", str(tiny_model)]
    assert main([*arguments, "--size", "24x16", "--out", str(out), "--separate", str(folder)]) == 0
    printed = capsys.readouterr().out
    assert "NFE" in printed
    assert f"wrote {out}" in printed
    assert Image.open(out).width > 2 * 160
    names = ["00-steps-001.png", "00-steps-002.png", "01-steps-001.png", "01-steps-002.png"]
    assert sorted(path.name for path in folder.iterdir()) == names
    assert Image.open(folder / names[0]).size == (24, 16)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["each", "sheet.png"]


def test_generate_takes_a_seed_and_guidance(tiny_model: Path, tmp_path: Path) -> None:
    def pixels(*options: str) -> bytes:
        arguments = ["generate", "a whale", "--steps", "1", "--model", str(tiny_model), *options]
        assert main([*arguments, "--out", str(tmp_path / "sheet.png"), "--separate", str(tmp_path)]) == 0
        return Image.open(tmp_path / "00-steps-001.png").tobytes()

    assert pixels("--seed", "3") == pixels("--seed", "3")
    assert len({pixels("--seed", "3"), pixels("--seed", "4"), pixels("--seed", "3", "--guidance", "4")}) == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a whale", "--model", "nowhere"], "unknown model 'nowhere'"),
        ([""], "empty prompt"),
        (["a whale", "  "], "empty prompt"),
        (["xyzzy qwrt"], "does not know 'xyzzy qwrt': nearest are"),
        (["a whale", "--steps", "0"], "--steps: '0': expected a whole number from 1"),
        (["a whale", "--steps", "4", "-1"], "--steps: '-1'"),
        (["a whale", "--steps", "ten"], "--steps: 'ten': expected a whole number"),
        (["a whale", "--steps", "2.5"], "'2.5': expected a whole number"),
        (["a whale", "--size", "18x16"], "size 18x16: both sides must be multiples of 4"),
        (["a whale", "--size", "0x16"], "'0x16': expected WIDTHxHEIGHT"),
        (["a whale", "--size", "large"], "'large': expected WIDTHxHEIGHT"),
        (["a whale", "--seed", "x"], "--seed: 'x': expected a whole number from 0"),
        (["a whale", "--guidance", "nan"], "--guidance: 'nan': expected a number"),
        (["a whale", "--stochasticity", "2"], "--stochasticity: '2': expected a number from 0 to 1"),
        (["a whale", "--guidance-interval", "1", "0"], "expected the lower time first"),
        (["a whale", "--device", "abacus"], "device 'abacus' is not available"),
        (["a whale", "--out", "/nowhere/x.png"], "there is no folder /nowhere"),
        (["a whale", "--out", "x.txt"], "'.txt' is no image format"),
        (["a whale", "--colour", "red"], "unknown arguments: --colour red"),
        ([], "required: PROMPT"),
    ],
)
def test_bad_generation_is_one_line(
    tiny_model: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    model = [] if "--model" in arguments else ["--model", str(tiny_model)]
    out = [] if "--out" in arguments else ["--out", "/dev/shm/never.png"]
    assert message in refused(capsys, "generate", *arguments, *model, *out)


def test_a_file_in_the_place_of_a_folder_is_one_line(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "taken").write_text("")
    for option, path in (("--separate", tmp_path / "taken"), ("--out", tmp_path / "taken" / "x.png")):
        assert "cannot write" in refused(capsys, "generate", "a whale", "--model", tiny_model, option, path)


@pytest.mark.parametrize("damage", [lambda content: content[:-500], lambda content: b"\0" * len(content)])
def test_damaged_weights_are_one_line(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: object
) -> None:
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    weights = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(damage(weights.read_bytes()))  # type: ignore[operator]
    assert f"cannot load model '{folder}'" in refused(capsys, "generate", "a whale", "--model", folder)
    assert str(folder) in refused(capsys, "info", "--model", folder)


def test_train_trains_resumes_and_its_run_folder_is_a_model(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert main(["train", str(recipe), "--out", str(run), "--debug"]) == 0
    assert "finished at step 2 of 2" in capsys.readouterr().out
    assert main(["train", str(recipe), "--out", str(run)]) == 0
    assert "finished at step 4 of 4" in capsys.readouterr().out
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4]
    assert {"config.yaml", "metrics.jsonl", "checkpoints", "samples", "pipeline"} <= {p.name for p in run.iterdir()}
    sheet = tmp_path / "sheet.png"
    assert main(["generate", "colour number 3", "--model", str(run), "--out", str(sheet), "--steps", "1"]) == 0
    assert sheet.exists()


def test_overrides_are_checked_like_the_recipe(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def line(*words: str) -> str:
        return refused(capsys, "train", recipe, "--out", tmp_path / "run", *words)

    assert "unknown key run.step, did you mean steps?" in line("--run.step", "3")
    assert "run.steps" in line("--run.steps", "many")
    assert "run.steps" in line("--run.steps", "0")
    assert "transport.name" in line("--transport.name", "teleport")
    assert "no such folder" in line("--data.source", "nowhere")
    assert "size" in line("--data.size", "18")
    assert "t2i-test" in line("--model.preset", "t2i-huge")
    assert "pairs" in line("--run.steps")
    assert not (tmp_path / "run" / "checkpoints").exists() or not list((tmp_path / "run" / "checkpoints").iterdir())


def test_a_bad_recipe_is_one_line(recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for content, message in (
        ("run: {stepz: 3}", "unknown key"),
        ("run: {steps: soon}", "run.steps"),
        ("- 1", "must be a mapping"),
        ("a: [", "is not YAML"),
    ):
        (tmp_path / "bad.yaml").write_text(content)
        for command in ("train", "train-codec"):
            assert message in refused(capsys, command, tmp_path / "bad.yaml", "--out", tmp_path / "run")
    assert "cannot read recipe" in refused(capsys, "train", tmp_path / "none.yaml", "--out", tmp_path / "run")
    assert "has no debug section" in refused(
        capsys, "train", _without_debug(recipe, tmp_path), "--out", tmp_path, "--debug"
    )


def _without_debug(recipe: Path, tmp_path: Path) -> Path:
    content = yaml.safe_load(recipe.read_text())
    del content["debug"]
    (tmp_path / "plain.yaml").write_text(yaml.safe_dump(content))
    return tmp_path / "plain.yaml"


def test_broken_images_are_named_and_counted_and_missing_captions_are_refused(
    recipe: Path, captioned_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(captioned_folder, tmp_path / "images")
    (folder / "03.png").write_bytes((folder / "03.png").read_bytes()[:20])
    run = tmp_path / "run"
    assert main(["train", str(recipe), "--out", str(run), "--data.source", str(folder), "--run.steps", "2"]) == 0
    printed = capsys.readouterr().out
    assert "skipped 1 unreadable examples" in printed
    assert "03.png" in printed
    assert json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])["skipped_examples"] == 1

    (folder / "05.txt").unlink()
    line = refused(capsys, "train", recipe, "--out", tmp_path / "other", "--data.source", folder)
    assert "05.png" in line
    assert ".txt" in line


def test_a_run_of_another_recipe_is_refused(recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    assert main(["train", str(recipe), "--out", str(run), "--debug"]) == 0
    capsys.readouterr()
    assert "differs in run.seed" in refused(capsys, "train", recipe, "--out", run, "--debug", "--run.seed", "1")


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


def test_info_for_people_and_machines(tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "--model", str(tiny_model)]) == 0
    text = capsys.readouterr().out
    assert all(word in text for word in ("ot_fm", "16x16", "knows 3 concepts", "red apple", "torch"))
    assert main(["info", "--model", str(tiny_model), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["transport"] == "ot_fm"
    assert facts["concepts"] == ["red apple", "whale", "tractor"]


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


@pytest.mark.parametrize("arguments", [[], ["paint"], ["data"], ["data", "paint"], ["train"], ["info", "--x"]])
def test_bad_usage_is_one_line(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    assert "error: " in refused(capsys, *arguments)


@pytest.mark.parametrize(
    ("arguments", "meant"),
    [
        (["generate", "a whale", "--num-inference-steps", "3"], "--steps"),
        (["generate", "a whale", "--step", "3"], "--steps"),
        (["generate", "a whale", "-o", "x.png"], "--out"),
        (["generate", "a whale", "--width", "64"], "--size"),
        (["generate", "a whale", "--guidance-scale", "3"], "--guidance"),
        (["data", "prepare", "x", "--size", "32", "--outt", "y"], "--out"),
        (["benchmark", "scenes", "--out", "x", "--num-inference-steps", "3"], "--steps"),
        (["evaluate", "--output", "x"], "--out"),
        (["train", "emoji", "--dryrun", "1"], "--dry-run"),
        (["genrate", "a whale"], "generate"),
        (["plan", "--on", "H10"], "H100"),
    ],
)
def test_a_near_miss_is_told_what_was_meant(
    capsys: pytest.CaptureFixture[str], arguments: list[str], meant: str
) -> None:
    assert f"did you mean {meant}?" in refused(capsys, *arguments)


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


def test_objectives_are_listed_with_their_cost_and_source(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["objectives"]) == 0
    told = capsys.readouterr().out
    assert "flow_matching        3.00" in told
    assert "TiM, arXiv 2509.04394" in told
    assert len(told.splitlines()) == 1 + 2 * len(OBJECTIVES)


def test_output_that_cannot_be_written_is_an_error() -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "anystep", "info"], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert (done.returncode, done.stderr) == (2, "anystep: error: No space left on device\n")
