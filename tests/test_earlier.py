"""What an earlier version wrote is read, gone on with and drawn with the same numbers: `data/earlier/README.md`.

On the machine where the files were made all numbers are the same bit for bit; elsewhere sums of floats may differ in
their last digits, which is all that the tolerances are for.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import anystep
from anystep.cli import main
from anystep.compare import Comparison
from anystep.data.latents import LatentShards
from anystep.objective.presets import OBJECTIVES
from anystep.plain_yaml import read_yaml
from anystep.training.codec_config import CodecRecipe
from anystep.training.config import Recipe
from anystep.training.old_names import current_recipe
from anystep.training.recipe_files import load_recipe

EARLIER = Path(__file__).parent / "data" / "earlier"
LOSSES = json.loads((EARLIER / "losses.json").read_text())
CALLS = json.loads((EARLIER / "pipeline" / "calls.json").read_text())
VALUES = json.loads((EARLIER / "recipes" / "values.json").read_text())
RELATIVE = 1e-5


@pytest.fixture
def earlier(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the files, as the folder that commands run in: all paths in them are relative to it."""
    shutil.copytree(EARLIER, tmp_path / "earlier", copy_function=shutil.copy)  # other times, as in a fresh clone
    monkeypatch.chdir(tmp_path / "earlier")
    return tmp_path / "earlier"


def run(*words: str) -> None:
    assert main(list(words)) == 0


def records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def assert_same(found: Any, expected: Any, where: str = "", relative: float = RELATIVE) -> None:
    """All that is expected is found; more may be. Numbers may differ in their last digits."""
    if isinstance(expected, dict):
        assert isinstance(found, dict), where
        for name, value in expected.items():
            assert name in found, f"{where}: no {name}"
            assert_same(found[name], value, f"{where}.{name}", relative)
    elif isinstance(expected, list):
        assert len(found) == len(expected), where
        for place, pair in enumerate(zip(found, expected, strict=True)):
            assert_same(*pair, f"{where}[{place}]", relative)
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, rel=relative, abs=1e-7), where
    else:
        assert found == expected, where


def assert_sums(model: Path, expected: dict[str, list[float]]) -> None:
    """Every tensor of a model's network has the sums of its values and of their squares, in float64."""
    tensors = load_file(model / "transformer" / "diffusion_pytorch_model.safetensors")
    assert tensors.keys() == expected.keys()
    for name, (plain, squares) in expected.items():
        values = tensors[name].double()
        assert values.square().sum().item() == pytest.approx(squares, rel=RELATIVE), name
        room = RELATIVE * (squares * values.numel()) ** 0.5  # values of both signs nearly cancel
        assert values.sum().item() == pytest.approx(plain, abs=room), name


def assert_holds(found: Any, written: Any, where: str) -> None:
    if isinstance(written, dict):
        for key, value in written.items():
            assert_holds(found[key], value, f"{where}.{key}")
    else:
        assert found == written, where


@pytest.mark.parametrize("name", VALUES)
def test_a_recipe_that_was_written_earlier_says_what_it_said(name: str) -> None:
    kind = {"codec": CodecRecipe, "comparison": Comparison}.get(name, Recipe)
    found = load_recipe(EARLIER / "recipes" / f"{name}.yaml", kind).model_dump(mode="json")
    assert_holds(found, current_recipe(VALUES[name]), name)


def test_a_run_that_was_stopped_earlier_goes_on_to_the_same_weights(earlier: Path) -> None:
    expected = json.loads((earlier / "run" / "expected.json").read_text())
    encoded = {path: path.read_bytes() for path in (earlier / "run" / "latents-0").glob("0*")}
    kept = records(earlier / "run")[: expected["after"][0]["step"] - 1]
    run("train", "run.yaml", "--out", "run")
    found = records(earlier / "run")
    assert found[: len(kept)] == kept
    assert_same(found[len(kept) :], expected["after"])
    assert_sums(earlier / "run" / "pipeline", expected["sums"])
    assert {path: path.read_bytes() for path in encoded} == encoded
    run("average", "run", "--length", expected["length"], "--out", "average")
    assert_sums(earlier / "average", expected["average"])


def test_a_run_goes_on_by_the_recipe_in_its_own_folder(earlier: Path) -> None:
    last = json.loads((earlier / "run" / "expected.json").read_text())["after"][0]
    shutil.copy("run/config.yaml", "same.yaml")
    run("train", "same.yaml", "--out", "run", "--run.steps", str(last["step"]))
    found = records(earlier / "run")[-1]
    assert found["step"] == last["step"]


def test_a_folder_that_was_prepared_earlier_holds_the_same_rows(earlier: Path) -> None:
    data, expected = LatentShards("prepared"), json.loads((earlier / "prepared" / "expected.json").read_text())
    rows = [data[number] for number in range(len(data))]
    found = [
        {
            "captions": list(row.captions),
            "latent": [list(row.latent.shape), row.latent.double().sum().item(), squares(row.latent)],
            "mirrored": squares(row.mirrored),
            "text": [[*each.shape, squares(each)] for each in row.text or ()],
        }
        for row in rows
    ]
    assert_same({"channels": data.channels, "captioned": data.stats.captioned, "rows": found}, expected)


def test_a_folder_that_was_prepared_earlier_is_not_made_again(
    earlier: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in (earlier / "prepared").glob("0*")}
    run("data", "prepare", "images", "--out", "prepared", "--size", "16", "--codec", "codec", "--text-encoder", "text",
        "--mirror", "--shard-size", "12")  # fmt: skip
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in before} == before
    assert "made again" not in "".join(capsys.readouterr())


def squares(values: Any) -> float:
    return float(values.double().square().sum())


@pytest.fixture(scope="module")
def model() -> Any:
    return anystep.load(EARLIER / "pipeline")


@pytest.mark.parametrize("name", CALLS)
def test_a_model_that_was_saved_earlier_draws_the_same_images(model: Any, name: str) -> None:
    call = {"output_type": "latent", **CALLS[name]}
    if "guidance_interval" in call:
        call["guidance_interval"] = tuple(call["guidance_interval"])
    if "image" in call:
        call["image"] = Image.open(EARLIER / call["image"])
    images = model.pipeline(**call).images
    expected = load_file(EARLIER / "pipeline" / "expected.safetensors")[name]
    room = 1e-5 if call["output_type"] == "latent" else 1.01 / 255  # a level, where a last digit decides the rounding
    torch.testing.assert_close(images, expected, atol=room, rtol=1e-5)
    assert (images == expected).float().mean() > 0.98 or call["output_type"] == "latent"


def test_an_image_says_how_it_was_drawn_and_is_drawn_again(earlier: Path) -> None:
    run("generate", "--like", "drawn.png", "--model", "pipeline", "--out", "again.png")
    with Image.open("drawn.png") as one, Image.open("again.png") as again:
        assert again.size == one.size
        levels = torch.tensor(list(one.tobytes())) - torch.tensor(list(again.tobytes()))
    assert levels.abs().max() <= 1


# between them they have the parts of all others
OFTEN = ("transition", "any_step", "flow_matching", "mean_flow", "self_evaluation", "told guidance", "branches")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in OFTEN else pytest.mark.slow) for name in LOSSES]
)
def test_training_loses_what_it_lost(earlier: Path, name: str) -> None:
    run("train", "captions.yaml", "--out", "trained", *LOSSES[name]["overrides"])
    assert_same(records(earlier / "trained"), LOSSES[name]["steps"], name)


def test_losses_of_every_objective_are_held() -> None:
    assert set(OBJECTIVES) <= set(LOSSES)


def test_reports_have_the_same_figures_and_a_comparison_that_was_begun_earlier_goes_on(earlier: Path) -> None:
    expected = json.loads((earlier / "report.json").read_text())
    expected, commands = expected["figures"], expected["commands"]
    done = earlier / "compare" / "runs" / "ours-0"
    plan = done / "planned.yaml"  # is written anew, with what recipes have gained since
    before = (done / "metrics.jsonl").read_bytes(), Recipe.model_validate(current_recipe(read_yaml(plan)))
    for words in commands:
        run(*words)
    for name, figures in expected.items():
        assert_same(json.loads((earlier / name / "report.json").read_text()), figures, name, relative=1e-3)
    assert ((done / "metrics.jsonl").read_bytes(), Recipe.model_validate(read_yaml(plan))) == before
