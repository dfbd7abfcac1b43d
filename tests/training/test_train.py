"""Training: exact resume, clean interruption, nothing lost to bad samples."""

import copy
import gzip
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import interrupted_after, losses, save_image, weights
from safetensors.torch import load_file

import anystep
from anystep.codecs import load_codec
from anystep.data.encode import make_encoders
from anystep.data.folders import ClassFolderSource
from anystep.data.prepare import prepare
from anystep.errors import InputError
from anystep.models.initialise import start_transition_branch
from anystep.models.transformer import TransitionTransformer2DModel
from anystep.training import train as module
from anystep.training.batch_samplers import FixedShapeBatchSampler, MicroBatch
from anystep.training.config import Recipe
from anystep.training.ema import length_to_gamma
from anystep.training.train import train

CPU = torch.device("cpu")


def recipe(source: Path, codec: Path | str, objective: dict[str, Any] | None = None, **run: Any) -> Recipe:
    return Recipe.model_validate(
        {
            "data": {"source": str(source), "size": 16},
            "model": {
                "preset": "t2i-test",
                "codec": str(codec),
                "options": {"guidance_embed": "guidance_condition" in (objective or {})},
            },
            "objective": {"diffusion_phase": 0.3, **(objective or {})},
            "optimizer": {"learning_rate": 1e-2, "warmup": 2},
            "run": {"steps": 6, "batch_size": 5, "checkpoint_every": 2, "sample_every": 0, "log_every": 3, **run},
            "sample_steps": [1, 2],
        }
    )


RUNNING_MEAN = {"normalise": "running_mean", "adaptive": 0}
GUIDANCE = {"guidance_condition": {"w_max": 4}}
UNCERTAINTY = {"normalise": "uncertainty", "adaptive": 0.5}


@pytest.mark.parametrize(
    ("stop", "objective", "kept"),
    [
        pytest.param(2, {}, set(), marks=pytest.mark.slow),
        (3, {}, set()),
        pytest.param(5, {}, set(), marks=pytest.mark.slow),
        (3, GUIDANCE, {"network.guidance_embedding.linear_2.weight"}),
        pytest.param(3, {"kind": "self_evaluation"}, set(), marks=pytest.mark.slow),
        pytest.param(3, RUNNING_MEAN, {"normaliser.sums", "normaliser.counts"}, marks=pytest.mark.slow),
        (3, UNCERTAINTY, {"normaliser.weight", "normaliser-optimizer.state.weight.exp_avg"}),
    ],
)
def test_an_interrupted_run_continues_exactly(
    captioned_folder: Path,
    tiny_codec: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stop: int,
    objective: dict[str, Any],
    kept: set[str],
) -> None:
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    made = recipe(captioned_folder, tiny_codec, objective=objective)
    train(made, straight)
    with interrupted_after(stop, monkeypatch):
        assert train(made, broken)["step"] == stop
    assert train(made, broken)["step"] == 6
    assert losses(broken) == losses(straight)
    expected, found = weights(straight), weights(broken)
    assert expected.keys() == found.keys() >= kept
    assert all(torch.equal(value, expected[name]) for name, value in found.items())
    assert all(expected[name].any() for name in kept)


def test_what_the_loss_has_learned_is_not_in_the_model(
    captioned_folder: Path, tiny_codec: Path, tmp_path: Path
) -> None:
    for name, objective in (("without", {}), ("with", RUNNING_MEAN)):
        train(recipe(captioned_folder, tiny_codec, objective=objective, steps=1), tmp_path / name)
    without, with_it = (
        load_file(tmp_path / name / "pipeline" / "transformer" / "diffusion_pytorch_model.safetensors").keys()
        for name in ("without", "with")
    )
    assert without == with_it


def test_a_model_that_was_told_the_scale_is_guided_at_one_evaluation_a_step(
    captioned_folder: Path, tiny_codec: Path, tmp_path: Path
) -> None:
    train(recipe(captioned_folder, tiny_codec, objective=GUIDANCE, sample_every=6), tmp_path)
    model = anystep.load(tmp_path)
    plain, guided = (model.generate("colour number 3", 2, guidance=scale) for scale in (1.0, 4.0))
    assert plain.nfe == guided.nfe == 2
    assert plain.images[0].tobytes() != guided.images[0].tobytes()


def test_a_run_does_not_go_on_with_another_weighting(captioned_folder: Path, tiny_codec: Path, tmp_path: Path) -> None:
    train(recipe(captioned_folder, tiny_codec, steps=1), tmp_path)
    with pytest.raises(InputError, match=r"objective\.adaptive, objective\.normalise"):
        train(recipe(captioned_folder, tiny_codec, objective=RUNNING_MEAN), tmp_path)


def snapshots(run: Path) -> dict[str, dict[str, torch.Tensor]]:
    names = sorted(path.name for path in (run / "averages").iterdir())
    return {name: weights(run, "averages", place) for place, name in enumerate(names)}


@pytest.mark.slow
@pytest.mark.parametrize("stop", [3, 5])
def test_snapshots_of_an_interrupted_run_are_those_of_the_straight_one(
    captioned_folder: Path, tiny_codec: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: int
) -> None:
    config = recipe(captioned_folder, tiny_codec, keep=1).model_dump(mode="json")
    kept = Recipe.model_validate({**config, "ema_lengths": [0.05, 0.1], "ema_snapshots": 3})
    train(kept, tmp_path / "straight")
    with interrupted_after(stop, monkeypatch):
        train(kept, tmp_path / "broken")
    # of a run that was killed before the checkpoint after it
    later = tmp_path / "broken" / "averages" / "step-00000006"
    later.mkdir()
    (later / "junk").write_text("")
    train(kept, tmp_path / "broken")
    expected, found = snapshots(tmp_path / "straight"), snapshots(tmp_path / "broken")
    assert list(expected) == list(found) == ["step-00000002", "step-00000004", "step-00000006"]
    for step, tensors in expected.items():
        assert {name.split(".")[0] for name in tensors} == {"average-0", "average-1"}
        assert all(value.dtype == torch.float16 for value in tensors.values())
        assert all(torch.equal(value, found[step][name]) for name, value in tensors.items())
    whole, other = weights(tmp_path / "straight"), weights(tmp_path / "broken")
    assert {name.split(".")[0] for name in whole} == {"network", "optimizer", "ema-0", "ema-1", "ema-2"}
    assert all(torch.equal(value, other[name]) for name, value in whole.items())
    last = expected["step-00000006"]
    for name, value in last.items():
        assert torch.equal(value, whole[name.replace("average-0", "ema-1").replace("average-1", "ema-2")].half())


def test_lengths_that_are_kept_beside_change_nothing_else(
    captioned_folder: Path, tiny_codec: Path, tmp_path: Path
) -> None:
    plain = recipe(captioned_folder, tiny_codec, steps=3)
    train(plain, tmp_path / "plain")
    train(plain.model_copy(update={"ema_lengths": (0.1,)}), tmp_path / "beside")
    assert not (tmp_path / "plain" / "averages").exists()
    assert losses(tmp_path / "plain") == losses(tmp_path / "beside")
    whole = weights(tmp_path / "beside")
    assert all(torch.equal(value, whole[name]) for name, value in weights(tmp_path / "plain").items())
    with pytest.raises(InputError, match="holds a run that differs in ema_lengths"):
        train(plain.model_copy(update={"ema_lengths": (0.1,)}), tmp_path / "plain")


def test_an_average_counts_steps_that_moved_nothing(
    captioned_folder: Path, tiny_codec: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = recipe(captioned_folder, tiny_codec, steps=2).model_copy(update={"ema_lengths": (0.1,)})
    train(config, tmp_path)
    before = weights(tmp_path)
    monkeypatch.setattr(module.nn.utils, "clip_grad_norm_", lambda parameters, limit: torch.tensor(torch.nan))
    train(config.model_copy(update={"run": config.run.model_copy(update={"steps": 4})}), tmp_path)
    share = (2 / 4) ** (length_to_gamma(0.1) + 1)  # of what was there after two of four steps
    for name, value in weights(tmp_path).items():
        if name.startswith("ema-1."):
            now = before[name.replace("ema-1", "network")]
            torch.testing.assert_close(value, share * before[name] + (1 - share) * now)


@pytest.mark.parametrize("stop", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_a_run_with_branches_continues_exactly_and_its_transitions_begin_as_the_velocity(
    captioned_folder: Path, tiny_codec: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: int
) -> None:
    """The first two steps of six are diffusion alone: what the velocity learns there, transitions have at the third."""
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    told = recipe(captioned_folder, tiny_codec)
    told = told.model_copy(
        update={"model": told.model.model_copy(update={"options": {"depth": 3, "branch_depth": 1, "trunk_share": 0.1}})}
    )
    begun: list[dict[str, torch.Tensor]] = []

    def noted(network: TransitionTransformer2DModel) -> None:
        start_transition_branch(network)
        if network.device.type != "meta":  # of those that are only counted
            begun.append({name: weight.detach().clone() for name, weight in network.named_parameters()})

    with monkeypatch.context() as patch:
        for module in ("anystep.models.transformer", "anystep.training.train"):
            patch.setattr(f"{module}.start_transition_branch", noted)
        train(told, straight)
    assert len(begun) == 1 + 2 + 1  # made, started with its average, and made again for export
    network = begun[1]
    assert torch.equal(network["transition_branch.final_layer.linear.weight"], network["final_layer.linear.weight"])
    assert network["final_layer.linear.weight"].any()
    assert not network["interval_embed.linear_2.weight"].any()
    with interrupted_after(stop, monkeypatch):
        assert train(told, broken)["step"] == stop
    train(told, broken)
    assert losses(broken) == losses(straight)
    expected = weights(straight)
    assert expected["network.interval_embed.linear_2.weight"].any()
    assert all(torch.equal(value, expected[name]) for name, value in weights(broken).items())


def test_a_run_folder_holds_what_is_promised_and_its_model_draws(
    captioned_folder: Path, tiny_codec: Path, tmp_path: Path
) -> None:
    train(recipe(captioned_folder, tiny_codec, sample_every=3, peak_tflops=1e-3), tmp_path)
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == [1, 2, 3, 4, 5, 6]
    assert "residual_long" not in records[0]  # the first 0.3 of the run is plain diffusion
    logged = {name for record in records for name in record}
    assert {"residual", "residual_diffusion", "derivative_norm", "gradient_norm", "data_wait", "mfu"} <= logged
    noted = [record for record in records if "derivative_noise" in record]
    assert [record["step"] for record in noted] == [3, 6]  # the steps that are shown
    assert all(0 < record["derivative_noise"] < 1 for record in noted)
    assert [record["step"] for record in records if "residual_bins" in record] == [3, 6]
    for record in (record for record in records if "residual_bins" in record):
        means, counts = np.array(record["residual_bins"], float), np.array(record["bin_counts"])
        assert counts.sum() == 5
        assert np.nansum(means * counts) / 5 == pytest.approx(record["residual"], rel=1e-4)
    assert sorted(path.name for path in (tmp_path / "samples").iterdir()) == ["step-00000003.png", "step-00000006.png"]
    model = anystep.load(tmp_path)
    assert model("colour number 3", steps=2)[0].size == (16, 16)
    assert not list(tmp_path.rglob("*.part"))


def test_a_step_whose_gradient_is_not_finite_moves_nothing(
    captioned_folder: Path, tiny_codec: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    real = torch.nn.utils.clip_grad_norm_

    def poisoned(parameters: list[torch.Tensor], limit: float) -> torch.Tensor:
        real(parameters, limit)
        return torch.tensor(torch.nan)

    train(recipe(captioned_folder, tiny_codec, steps=2), tmp_path)
    before = weights(tmp_path)
    monkeypatch.setattr(module.nn.utils, "clip_grad_norm_", poisoned)
    record = train(recipe(captioned_folder, tiny_codec, steps=4), tmp_path)
    assert record["skipped_steps"] == 2
    assert "step skipped" in capsys.readouterr().err
    assert all(torch.equal(value, before[name]) for name, value in weights(tmp_path).items())


def test_a_broken_image_is_named_skipped_and_counted(
    captioned_folder: Path, tiny_codec: Path, tmp_path: Path, capsys: Any
) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for path in captioned_folder.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "05.png").write_bytes((folder / "05.png").read_bytes()[:40])
    record = train(recipe(folder, tiny_codec, steps=3), tmp_path / "run")
    assert record["skipped_examples"] == 1
    assert "05.png" in capsys.readouterr().out


def test_sources_are_mixed_and_a_run_begins_with_the_weights_of_another(
    captioned_folder: Path, tiny_codec: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    for name in ("03.png", "03.txt"):
        (other / name).write_bytes((captioned_folder / name).read_bytes())
    config = recipe(captioned_folder, tiny_codec, steps=2).model_dump(mode="json")
    config["data"] |= {"source": {str(captioned_folder): 4, str(other): 1}}
    seen: list[list[int]] = []
    real = FixedShapeBatchSampler.step

    def step(self: FixedShapeBatchSampler, position: int) -> list[MicroBatch]:
        parts = real(self, position)
        seen.append([number for part in parts for number in part.examples])
        return parts

    monkeypatch.setattr(FixedShapeBatchSampler, "step", step)
    train(Recipe.model_validate(config), tmp_path / "first")
    assert [[index == 12 for index in indices] for indices in seen] == [[False, False, False, False, True]] * len(seen)

    config["model"] |= {"weights": str(tmp_path / "first")}
    config["optimizer"] |= {"learning_rate": 1e-30}
    train(Recipe.model_validate(config), tmp_path / "second")
    average = {name: value for name, value in weights(tmp_path / "first").items() if name.startswith("ema-0.")}
    after = weights(tmp_path / "second")
    torch.testing.assert_close({name: after[name] for name in average}, average)

    guided = copy.deepcopy(config)
    guided["model"] |= {"options": {"guidance_embed": True}}
    guided["objective"] |= {"kind": "any_step", "guidance_condition": {"w_max": 3}}
    train(Recipe.model_validate(guided), tmp_path / "guided")
    after = weights(tmp_path / "guided")
    torch.testing.assert_close({name: after[name] for name in average}, average)

    config["model"] |= {"options": {"depth": 1}}
    with pytest.raises(InputError, match=r"another architecture, its tensors differ in blocks\.1\."):
        train(Recipe.model_validate(config), tmp_path / "third")


def test_of_a_captioned_source_and_one_of_classes_the_samples_without_captions_are_named(
    captioned_folder: Path, tiny_codec: Path, tmp_path: Path
) -> None:
    for name in ("cats", "dogs"):
        (tmp_path / "classes" / name).mkdir(parents=True)
        (tmp_path / "classes" / name / "a.png").write_bytes((captioned_folder / "03.png").read_bytes())
    config = recipe(captioned_folder, tiny_codec).model_dump(mode="json")
    config["data"] |= {"source": {str(captioned_folder): 1, f"classes:{tmp_path / 'classes'}": 1}}
    with pytest.raises(InputError, match=r"is for captions, but 2 of \d+ samples have none"):
        train(Recipe.model_validate(config), tmp_path / "run")


def test_no_readable_image_is_one_line(tiny_codec: Path, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(b"nothing")
    (tmp_path / "images" / "a.txt").write_text("a thing")
    with pytest.raises(InputError, match=r"no example could be read.*a.png"):
        train(recipe(tmp_path / "images", tiny_codec), tmp_path / "run")


def test_classes_from_idx_files_train_in_pixels_and_are_drawn_by_name(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pixels, labels = rng.integers(0, 256, (20, 8, 8), np.uint8), (np.arange(20) % 10).astype(np.uint8)
    for name, array in (("images-idx3", pixels), ("labels-idx1", labels)):
        header = bytes((0, 0, 8, array.ndim)) + b"".join(side.to_bytes(4, "big") for side in array.shape)
        (tmp_path / f"train-{name}-ubyte.gz").write_bytes(gzip.compress(header + array.tobytes()))
    config = recipe(tmp_path, "identity-gray", steps=3).model_dump(mode="json")
    config["data"] |= {"source": f"idx:{tmp_path}", "size": 8}
    config["model"] |= {"preset": "c2i-test"}
    train(Recipe.model_validate(config), tmp_path / "run")
    model = anystep.load(tmp_path / "run")
    assert model(["7", "0"], steps=1)[0].size == (8, 8)
    with pytest.raises(InputError, match="unknown class 'cat'"):
        model("cat")


def test_other_classes_are_not_gone_on_with_and_other_examples_are_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def folder(*classes: str, level: int = 0) -> Path:
        out = tmp_path / "-".join((*classes, str(level)))
        for place, name in enumerate(classes):
            for number in range(4):
                save_image(out / "p" / name / f"{number}.png", size=(8, 8), colour=(60 * number, 99 * place, level))
        prepare(ClassFolderSource(out / "p", 8), out / "shards", make_encoders(load_codec("identity"), 8, CPU))
        return out / "shards"

    def go_on(made: Path, steps: int) -> None:
        shutil.rmtree(tmp_path / "shards", ignore_errors=True)
        shutil.copytree(made, tmp_path / "shards")
        config = recipe(tmp_path / "shards", "identity", steps=steps).model_dump(mode="json")
        config["data"] |= {"source": f"shards:{tmp_path / 'shards'}", "size": 8}
        config["model"] |= {"preset": "c2i-test"}
        train(Recipe.model_validate(config), tmp_path / "run")

    first = folder("ant", "bee")
    go_on(first, 1)
    with pytest.raises(InputError, match="class 1 of the data is 'cat', but 'bee' in the run's checkpoints"):
        go_on(folder("ant", "cat"), 2)
    with pytest.raises(InputError, match="class 2 of the data is 'cat', but None in"):
        go_on(folder("ant", "bee", "cat"), 2)
    told = capsys.readouterr().err
    assert "ends in the warm-up of 2" in told
    assert "has changed" not in told
    go_on(folder("ant", "bee", level=5), 2)
    assert "the data has changed since the last checkpoint: 8 examples now, 8 then" in capsys.readouterr().err
    manifest = tmp_path / "run" / "checkpoints" / "step-00000002" / "manifest.json"
    content = json.loads(manifest.read_text())
    assert content.pop("data")["class_names"] == ["ant", "bee"]
    manifest.write_text(json.dumps(content))  # as earlier versions wrote it
    go_on(first, 3)
    assert "has changed" not in capsys.readouterr().err


def test_captioned_classes_train_a_class_model_whose_grid_is_drawn_by_name(tmp_path: Path, monkeypatch: Any) -> None:
    from anystep.data.art import ArtSource

    monkeypatch.setattr(ArtSource, "__len__", lambda self: 40)
    config = recipe(tmp_path, "identity", steps=2, sample_every=2).model_dump(mode="json")
    config["data"] |= {"source": "builtin", "size": 16, "vocabulary": "everyday"}
    config["model"] |= {"preset": "c2i-test"}
    train(Recipe.model_validate(config), tmp_path / "run")
    assert (tmp_path / "run" / "samples" / "step-00000002.png").exists()
