"""What goes wrong in the middle of a run is said, ends with good weights, and loses nothing."""

import resource
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import losses

import anystep
from anystep.errors import InputError
from anystep.training import train as module
from anystep.training.checkpoint_files import checkpoint_steps
from anystep.training.config import Recipe
from anystep.training.ema import ExponentialAverages
from anystep.training.guard import Guard
from anystep.training.step_metrics import StepMetrics
from anystep.training.train import train


def recipe(source: Path, codec: Path | str, **changes: Any) -> Recipe:
    run = {"steps": 6, "batch_size": 4, "checkpoint_every": 2, "sample_every": 0, **changes.pop("run", {})}
    return Recipe.model_validate(
        {
            "data": {"source": str(source), "size": 16, **changes.pop("data", {})},
            "model": {"preset": "t2i-test", "codec": str(codec), **changes.pop("model", {})},
            "optimizer": {"learning_rate": 1e-2, "warmup": 2},
            "run": run,
            "sample_steps": [1],
            **changes,
        }
    )


def steps(run: Path) -> list[int]:
    return checkpoint_steps(run / "checkpoints")


@pytest.mark.parametrize(("poisoned", "kept"), [(5, [2, 4]), (6, [2, 4])])
def test_weights_that_are_not_finite_are_never_saved_and_end_the_run(
    captioned_folder: Path, tiny_codec: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, poisoned: int, kept: Any
) -> None:
    real, calls = ExponentialAverages.update, []

    def update(self: ExponentialAverages, weights: list[torch.Tensor], step: int) -> None:
        calls.append(1)
        if len(calls) == poisoned:
            weights[0].data.fill_(torch.nan)
        real(self, weights, step)

    monkeypatch.setattr(ExponentialAverages, "update", update)
    with pytest.raises(InputError, match=r"step 6: the weights are no longer finite: the run has diverged"):
        train(recipe(captioned_folder, tiny_codec), tmp_path)
    assert steps(tmp_path) == kept
    assert not (tmp_path / "pipeline").exists()


def test_a_run_whose_last_steps_were_skipped_is_not_finished_and_is_not_when_it_is_asked_again(
    captioned_folder: Path, tiny_codec: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = module.nn.utils.clip_grad_norm_, []

    def clip(parameters: Any, limit: float) -> torch.Tensor:
        calls.append(1)
        return torch.tensor(torch.nan) if len(calls) > 3 else real(parameters, limit)

    monkeypatch.setattr(module.nn.utils, "clip_grad_norm_", clip)
    for _ in range(2):
        with pytest.raises(InputError, match=r"step 7: loss and gradient are no longer finite"):
            train(recipe(captioned_folder, tiny_codec, run={"steps": 7, "checkpoint_every": 1}), tmp_path)
    assert len(calls) == 7
    assert steps(tmp_path) == [5, 6, 7]  # the newest two, and the newest that had not diverged
    assert not (tmp_path / "pipeline").exists()


def test_a_residual_that_is_not_finite_at_the_end_is_no_finish_and_null_in_the_log(
    captioned_folder: Path, tiny_codec: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = StepMetrics._record

    def record(self: StepMetrics, step: Any, samples: Any, *others: Any) -> Any:
        residual, *times = samples
        return real(self, step, (torch.full_like(residual, torch.inf), *times), *others)

    monkeypatch.setattr(StepMetrics, "_record", record)
    with pytest.raises(InputError, match="the run has diverged"):
        train(recipe(captioned_folder, tiny_codec, run={"steps": 1}), tmp_path)
    assert '"residual": null' in (tmp_path / "metrics.jsonl").read_text()


def test_what_cannot_be_drawn_is_said_before_the_first_step_and_may_be_mended(
    captioned_folder: Path, tiny_codec: Path, tmp_path: Path
) -> None:
    run = {"steps": 2, "sample_every": 2}
    with pytest.raises(InputError, match="sample_prompts: empty prompt"):
        train(recipe(captioned_folder, tiny_codec, run=run, sample_prompts=[""]), tmp_path)
    assert not (tmp_path / "metrics.jsonl").exists()
    train(recipe(captioned_folder, tiny_codec, run=run, sample_prompts=["a cat"]), tmp_path)
    train(recipe(captioned_folder, tiny_codec, run={**run, "steps": 3}, sample_prompts=["a dog"]), tmp_path)
    assert steps(tmp_path) == [2, 3]


def test_whatever_ends_the_loop_what_was_saved_keeps_its_name(
    captioned_folder: Path, tiny_codec: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:

        def failing(*_: Any) -> Any:
            raise OSError(28, "No space left on device")

        patched.setattr(module, "save_image", failing)
        with pytest.raises(OSError, match="No space left"):
            train(recipe(captioned_folder, tiny_codec, run={"sample_every": 4}), tmp_path / "broken")
        assert steps(tmp_path / "broken") == [2, 4]
    for name in ("broken", "straight"):
        train(recipe(captioned_folder, tiny_codec, run={"sample_every": 4}), tmp_path / name)
    assert losses(tmp_path / "broken") == losses(tmp_path / "straight")


def test_three_examples_are_drawn_as_three(captioned_folder: Path, tiny_codec: Path, tmp_path: Path) -> None:
    run = {"steps": 1, "batch_size": 2, "sample_every": 1}
    train(recipe(captioned_folder, tiny_codec, data={"limit": 3}, run=run), tmp_path)
    assert (tmp_path / "samples" / "step-00000001.png").exists()


class Gone:
    """An output whose reader has gone."""

    def write(self, text: str) -> int:
        raise BrokenPipeError(32, "Broken pipe")

    def flush(self) -> None:
        raise BrokenPipeError(32, "Broken pipe")

    def fileno(self) -> int:
        raise OSError("no file")

    def isatty(self) -> bool:
        return False


def test_outputs_that_are_gone_stop_no_run(
    captioned_folder: Path, tiny_codec: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdout", Gone())
    monkeypatch.setattr(sys, "stderr", Gone())
    monkeypatch.setattr(Guard, "spiked", lambda self, norm: True)  # something is said on the error stream
    assert train(recipe(captioned_folder, tiny_codec, run={"steps": 2, "log_every": 1}), tmp_path)["step"] == 2


def test_a_spike_before_the_first_checkpoint_says_that_there_is_none(
    captioned_folder: Path, tiny_codec: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(Guard, "spiked", lambda self, norm: True)
    train(recipe(captioned_folder, tiny_codec, run={"steps": 1}, guard={"rollbacks": 1}), tmp_path)
    assert "there is no checkpoint to go back to" in capsys.readouterr().err


def test_a_text_encoder_of_this_machine_goes_with_the_model(
    captioned_folder: Path, tiny_codec: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import BertConfig, BertModel, BertTokenizerFast

    monkeypatch.chdir(tmp_path)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "colour", "number", *map(str, range(12))]
    (tmp_path / "enc").mkdir()
    (tmp_path / "enc" / "vocab.txt").write_text("\n".join(words))
    BertTokenizerFast("enc/vocab.txt").save_pretrained("enc")
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    BertModel(BertConfig(vocab_size=len(words), **sizes)).save_pretrained("enc")
    train(recipe(captioned_folder, tiny_codec, run={"steps": 1}, model={"text_encoder": "enc"}), tmp_path / "run")
    here = anystep.load(tmp_path / "run")("colour number 3", steps=1)[0].tobytes()
    shutil.move(tmp_path / "run" / "pipeline", tmp_path / "moved")
    shutil.rmtree(tmp_path / "enc")
    assert anystep.load(tmp_path / "moved")("colour number 3", steps=1)[0].tobytes() == here


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """As on a full disk, writing fails: here where a file would be longer."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_disk_that_is_full_is_one_line_and_the_same_command_goes_on(
    captioned_folder: Path, tiny_codec: Path, tmp_path: Path
) -> None:
    straight, full = tmp_path / "straight", tmp_path / "full"
    config = recipe(captioned_folder, tiny_codec, run={"steps": 3})
    train(config, straight)
    for size in (50, 5_000, 100_000):  # the marker, the log, a checkpoint
        with pytest.raises((InputError, OSError)) as caught, files_of_at_most(size):
            train(config, full)
        assert "\n" not in str(caught.value)
        assert not (full / "pipeline").exists()
    train(config, full)
    assert losses(full) == losses(straight)
    weights = "pipeline/transformer/diffusion_pytorch_model.safetensors"
    assert (full / weights).read_bytes() == (straight / weights).read_bytes()
    shutil.rmtree(full / "pipeline")
    with pytest.raises((InputError, OSError)), files_of_at_most(5_000):
        train(config, full)
    assert not list(full.glob("*pipeline*"))
    assert not list(full.glob(".*.part"))
    train(config, full)
    assert (full / weights).read_bytes() == (straight / weights).read_bytes()
