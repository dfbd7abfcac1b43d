"""Run folders: exact order, atomic checkpoints, honest logs."""

import json
import os
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml

from anystep.errors import InputError
from anystep.training.codec_config import CodecRecipe
from anystep.training.config import OptimizerConfig, Recipe, RunConfig
from anystep.training.objective_config import ObjectiveConfig
from anystep.training.run import Run, interruptible, latents_path, schedule_changes, step_generator


def test_steps_draw_differently_and_repeatably() -> None:
    one, again, other = (torch.rand(3, generator=step_generator(0, step)) for step in (5, 5, 6))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def recipe(**options: int) -> Recipe:
    return Recipe(run=RunConfig(**{"keep": 2, **options}))  # type: ignore[arg-type]


def test_the_log_is_cut_back_to_a_step(tmp_path: Path) -> None:
    with Run(tmp_path, recipe()) as run:
        for step in (1, 2, 3):
            run.log({"step": step, "loss": 0.5})
        with (tmp_path / "metrics.jsonl").open("a") as file:
            file.write('{"step": 4, "lo')  # killed while writing
        run.cut_log(2)
    assert [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [1, 2]


def test_lines_of_the_log_that_cannot_be_read_are_dropped_and_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [b'{"step": 1, "loss": NaN}', b"\xff\xfe", b"[" * 100_000, b'"step"', b"[]", b'{"loss": 1}', b'{"step": 2}']
    with Run(tmp_path, recipe()) as run:
        (tmp_path / "metrics.jsonl").write_bytes(b"\n".join([*lines, b""]))
        run.cut_log(2)
        run.log({"step": 3, "residual": float("nan"), "bins": [[float("inf"), 1.0]]})

    def constant(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    text = (tmp_path / "metrics.jsonl").read_text()
    assert [json.loads(line, parse_constant=constant) for line in text.splitlines()] == [
        {"step": 1, "loss": None},
        {"step": 2},
        {"step": 3, "residual": None, "bins": [[None, 1.0]]},
    ]
    assert "5 lines that cannot be read were dropped" in capsys.readouterr().err


def begin(folder: Path, content: Recipe) -> None:
    with Run(folder, content):
        pass


def test_a_folder_of_another_recipe_is_refused_and_harmless_changes_are_not(tmp_path: Path) -> None:
    begin(tmp_path, recipe(steps=5))
    (tmp_path / "checkpoints" / "step-00000001").mkdir()
    begin(tmp_path, recipe(steps=9, log_every=1))
    with pytest.raises(InputError, match=r"differs in run.batch_size"):
        begin(tmp_path, recipe(batch_size=3))
    drawn = {"sample_prompts": ("a whale",), "sample_steps": (3,), "guidance": 2.0, "parallel": "fsdp"}
    begin(tmp_path, recipe(steps=9).model_copy(update=drawn))


@pytest.mark.parametrize("where", ["config.yaml", "manifest"])
def test_a_recipe_of_an_older_version_is_completed_before_it_is_compared(
    tmp_path: Path, where: str, capsys: pytest.CaptureFixture[str]
) -> None:
    begin(tmp_path, recipe())
    content = recipe().model_dump(mode="json")
    del content["data"]["aspect"], content["run"]["packed"], content["guard"]
    content["run"]["swiftness"] = 3
    checkpoint = tmp_path / "checkpoints" / "step-00000001"
    checkpoint.mkdir()
    if where == "manifest":
        (checkpoint / "manifest.json").write_text(json.dumps({"recipe": content}))
        (tmp_path / "config.yaml").write_text("")
    else:
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(content))
    begin(tmp_path, recipe())
    assert "begun with run.swiftness, which this version does not have" in capsys.readouterr().err
    for changed in ({"run": {"seed": 1}}, {"data": {"aspect": 3.0}}, {"optimizer": {"learning_rate": 1e-5}}):
        (section, values), *_ = changed.items()
        ((key, _),) = values.items()
        with pytest.raises(InputError, match=rf"differs in {section}\.{key} \("):
            begin(tmp_path, Recipe.model_validate({"run": {"keep": 2}, **changed}))


@pytest.mark.parametrize("value", ["fast", 1e9, -1, None, [1], {"a": 1}])
def test_a_recipe_with_a_value_of_no_recipe_differs_in_it(tmp_path: Path, value: object) -> None:
    begin(tmp_path, recipe())
    content = recipe().model_dump(mode="json")
    content["optimizer"]["learning_rate"] = value
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(content))
    (tmp_path / "checkpoints" / "step-00000001").mkdir()
    with pytest.raises(InputError, match=r"differs in optimizer\.learning_rate"):
        begin(tmp_path, recipe())


@pytest.mark.parametrize("content", [b"", b"[1, 2]", b"run: {steps: 4", b"\xff", b"a: !!python/object:os.system {}"])
def test_a_damaged_recipe_beside_checkpoints_is_said_and_the_run_goes_on(
    tmp_path: Path, content: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    begin(tmp_path, recipe())
    (tmp_path / "checkpoints" / "step-00000001").mkdir()
    (tmp_path / "config.yaml").write_bytes(content)
    begin(tmp_path, recipe())
    assert "it goes on with the recipe given" in capsys.readouterr().err


def test_a_recipe_nested_without_end_is_one_line(tmp_path: Path) -> None:
    begin(tmp_path, recipe())
    checkpoint = tmp_path / "checkpoints" / "step-00000001"
    checkpoint.mkdir()
    (checkpoint / "manifest.json").write_text('{"recipe": ' + '{"data":' * 900 + "1" + "}" * 901)
    with pytest.raises(InputError, match=r"nested too deeply|differs in data"):
        begin(tmp_path, recipe())


def test_a_folder_in_which_nothing_was_saved_binds_nobody_and_loses_nothing(tmp_path: Path) -> None:
    begin(tmp_path, recipe())
    latents_path(tmp_path, 0).mkdir()
    (tmp_path / ".mine.part").write_text("mine")
    (tmp_path / "checkpoints" / "step-abc").mkdir()
    (tmp_path / "checkpoints" / ".x.part").write_text("")
    begin(tmp_path, recipe(batch_size=3))
    assert latents_path(tmp_path, 0).exists()
    assert (tmp_path / ".mine.part").read_text() == "mine"


def test_a_folder_of_somebody_else_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "latents-mine").mkdir()
    (tmp_path / "latents-mine" / "0.tar").write_text("x")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(recipe(batch_size=3).model_dump(mode="json")))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(InputError, match="which this command has not made"):
        begin(tmp_path, recipe())
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_run_begun_before_folders_were_marked_goes_on(tmp_path: Path) -> None:
    begin(tmp_path, recipe())
    (tmp_path / ".anystep.json").unlink()
    begin(tmp_path, recipe())
    assert json.loads((tmp_path / ".anystep.json").read_text())["kind"] == "training run"
    with (
        pytest.raises(InputError, match="holds a training run, not a codec training run"),
        Run(tmp_path, CodecRecipe()),
    ):
        pass


def test_an_unmarked_codec_run_stays_one(tmp_path: Path) -> None:
    with Run(tmp_path, CodecRecipe()):
        (tmp_path / "checkpoints" / "step-00000001").mkdir()
    (tmp_path / ".anystep.json").unlink()
    with pytest.raises(InputError, match="differs in"):
        begin(tmp_path, recipe())
    with Run(tmp_path, CodecRecipe()):
        pass


def test_a_run_folder_in_use_names_who_uses_it(tmp_path: Path) -> None:
    with (
        Run(tmp_path, recipe()),
        pytest.raises(InputError, match=rf"in use by process {os.getpid()} on "),
        Run(tmp_path, recipe()),
    ):
        pass
    begin(tmp_path, recipe())


def test_a_log_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    begin(tmp_path / "run", recipe())
    (tmp_path / "run" / "metrics.jsonl").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="is a link"):
        begin(tmp_path / "run", recipe())
    assert not (tmp_path / "elsewhere").exists()


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write to folder"):
        begin(tmp_path / "file" / "run", recipe())


def test_more_steps_say_what_they_do_to_the_schedules() -> None:
    optimizer = OptimizerConfig(learning_rate=1.0, warmup=0, final=0.1)
    short, long = (
        Recipe(run=RunConfig(steps=steps), optimizer=optimizer, objective=ObjectiveConfig(diffusion_phase=0.5))
        for steps in (20, 40)
    )
    told = schedule_changes(short, long, 15)
    assert told == (
        "run.steps 40 instead of 20: the learning rate goes on at 0.722 instead of 0.232, "
        "plain diffusion ends at step 20 instead of 10"
    )
    assert "plain diffusion" not in schedule_changes(short, long, 20)
    assert schedule_changes(short, short, 15) == schedule_changes(None, long, 15) == ""
    steady = OptimizerConfig(warmup=0)
    one, two = (Recipe(run=RunConfig(steps=steps), optimizer=steady) for steps in (20, 40))
    assert schedule_changes(one, two, 15) == ""


def test_no_seed_repeats_another_and_the_largest_is_taken() -> None:
    assert torch.rand(1, generator=step_generator(0, 1_000_003)) != torch.rand(1, generator=step_generator(1, 0))
    assert torch.rand(1, generator=step_generator(2**62 - 1, 0)) != torch.rand(
        1, generator=step_generator(2**62 - 1, 1)
    )
    # what was drawn before is drawn again
    before = torch.Generator().manual_seed(3 * 1_000_003 + 7)
    assert torch.equal(torch.rand(3, generator=step_generator(3, 7)), torch.rand(3, generator=before))


def test_a_hangup_is_noted_like_a_termination_unless_it_is_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests themselves may run under nohup
    try:
        with interruptible() as caught:
            os.kill(os.getpid(), signal.SIGHUP)
            assert caught == [signal.SIGHUP]
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        with interruptible() as caught:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not caught
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_second_interrupt_stops_at_once_and_one_that_a_launcher_passes_on_or_a_second_termination_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before, now = signal.getsignal(signal.SIGINT), [100.0]
    monkeypatch.setattr("anystep.training.run.time", SimpleNamespace(monotonic=lambda: now[0]))
    with interruptible() as caught:
        os.kill(os.getpid(), signal.SIGINT)
        now[0] += 1.0
        os.kill(os.getpid(), signal.SIGINT)
        now[0] += 60.0
        os.kill(os.getpid(), signal.SIGTERM)
        assert caught == [signal.SIGINT] * 2 + [signal.SIGTERM]
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before
