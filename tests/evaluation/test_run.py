"""Evaluations: the same bits from one process and two, from one go and two, and every bad input in one line."""

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from processes import run_ranks
from torch import Tensor, nn

from anystep.cli import main
from anystep.evaluation import collect as collecting
from anystep.evaluation.run import Request, evaluate_models
from anystep.files import claimed
from anystep.pipelines.load import Model, load
from anystep.sampling import StepPlan

SMALL = ["--steps", "1", "2", "--samples", "60", "--metrics", "kernel_distance", "precision"]


@pytest.fixture(scope="module")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A hundred and thirty captioned images of random blocks."""
    folder = tmp_path_factory.mktemp("colours")
    generator = np.random.default_rng(0)
    for number in range(130):
        blocks = generator.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(blocks.repeat(4, 0).repeat(4, 1)).save(folder / f"{number:03d}.png")
        (folder / f"{number:03d}.txt").write_text(f"blocks number {number}")
    return folder


@pytest.fixture(scope="module")
def command(tiny_model: Path, pooled: Path, colours: Path) -> list[str]:
    return [
        "evaluate",
        "--model",
        str(tiny_model),
        "--extractor",
        str(pooled),
        "--allow-code",
        "--data",
        str(colours),
        *SMALL,
    ]


def read(folder: Path) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((folder / "report.json").read_text())
    return report


def without_clock(report: dict[str, Any]) -> dict[str, Any]:
    for model in report["models"]:
        for point in model["points"]:
            for name in ("seconds_per_image", "images_per_second", "peak_megabytes"):
                point.pop(name)
    return report


@pytest.fixture(scope="module")
def finished(command: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("report")
    assert main([*command, "--out", str(out), "--keep-images"]) == 0
    return out


def test_a_report_has_the_fields_that_other_programs_read(finished: Path, tiny_model: Path) -> None:
    report = read(finished)
    assert (report["samples"], report["real_images"], report["seed"]) == (60, 60, 0)
    assert "torch" in report["versions"]
    (model,) = report["models"]
    assert model["name"] == str(tiny_model)
    assert [(point["steps"], point["nfe"]) for point in model["points"]] == [(1, 2), (2, 4)]
    for point in model["points"]:
        assert point["seconds_per_image"] > 0
        assert point["peak_megabytes"] > 0
        assert set(point["metrics"]) == {"kernel_distance_pooled", "precision_pooled"}
        for figure in point["metrics"].values():
            assert figure["low"] <= figure["value"] <= figure["high"]
    monotone = model["monotone"]["kernel_distance_pooled"]
    assert len(monotone["probability"]) == 1
    assert 0 <= monotone["probability"][0] <= 1
    assert "steps" in monotone["verdict"] or "difference" in monotone["verdict"]


def test_the_controls_are_real_images_and_the_same_degraded(finished: Path) -> None:
    same, *degraded = (figures["kernel_distance_pooled"] for figures in read(finished)["controls"].values())
    assert same["low"] < 0 < same["high"]
    assert len(degraded) == 2
    assert len({figure["value"] for figure in (same, *degraded)}) == 3


def test_there_are_pictures_and_a_page_to_read(finished: Path) -> None:
    assert Image.open(finished / "curve.png").width > 400
    assert Image.open(finished / "sheet.png").width > 2 * 160
    page = (finished / "report.md").read_text()
    for word in ("| steps | NFE |", "kernel_distance_pooled ↓", "precision_pooled ↑", "Controls", "biased"):
        assert word in page
    kept = [path for path in finished.rglob("*.png") if path.parent.name == "images"]
    assert len(kept) == 60 * (2 + 4)  # two step counts, the real images and three controls


def test_an_interrupted_evaluation_goes_on_where_it_was(
    command: list[str], finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, made = collecting.extract, []

    def failing(*arguments: Any) -> Any:
        made.append(1)
        if len(made) == 10:
            raise KeyboardInterrupt
        return real(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(collecting, "extract", failing)
        assert main([*command, "--out", str(tmp_path)]) == 130
    done = len(list(tmp_path.rglob("*.safetensors")))
    assert done == 9
    monkeypatch.setattr(collecting, "extract", lambda *arguments: (made.append(1), real(*arguments))[1])
    assert main([*command, "--out", str(tmp_path)]) == 0
    assert len(made) == 10 + (12 - done)
    assert without_clock(read(tmp_path)) == without_clock(read(finished))


@pytest.mark.slow
def test_what_images_cost_is_measured_anew_with_other_threads(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, made = collecting.extract, []
    monkeypatch.setattr(collecting, "extract", lambda *arguments: (made.append(1), real(*arguments))[1])
    for threads, chunks in (("1", 12), ("2", 4)):  # two of each number of steps; real images stay
        made.clear()
        assert main([*command, "--threads", threads, "--out", str(tmp_path)]) == 0
        assert len(made) == chunks
        assert read(tmp_path)["settings"]["threads"] == int(threads)


def test_two_processes_write_the_same_report_bit_for_bit(command: list[str], finished: Path, tmp_path: Path) -> None:
    shown = run_ranks(2, [*command, "--out", str(tmp_path / "out")], tmp_path)
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.count("wrote") == 1
    assert without_clock(read(tmp_path / "out")) == without_clock(read(finished))


def measuring(extractor: Path, data: Path, out: Path) -> list[str]:
    """The words of a command that measures images, which it lacks."""
    return [*f"evaluate --extractor {extractor} --allow-code --data {data} --out {out}".split(), *SMALL]


def test_images_of_others_are_measured_like_our_own(
    finished: Path, pooled: Path, colours: Path, tmp_path: Path
) -> None:
    made = [folder for folder in finished.rglob("images") if folder.is_dir()]
    mine = {point["metrics"]["kernel_distance_pooled"]["value"] for point in read(finished)["models"][0]["points"]}
    arguments = measuring(pooled, colours, tmp_path)
    assert main([*arguments, "--images", *(f"{n + 1}:{2 * n + 1}={folder}" for n, folder in enumerate(made))]) == 0
    points = read(tmp_path)["models"][0]["points"]
    assert [point["nfe"] for point in points] == [2 * n + 1 for n in range(len(made))]
    assert mine <= {point["metrics"]["kernel_distance_pooled"]["value"] for point in points}
    assert all(point["images_per_second"] is None for point in points)


def test_reference_statistics_are_written_and_used(command: list[str], tmp_path: Path) -> None:
    both = [*command, "--metrics", "frechet_distance", "--out", str(tmp_path / "report")]
    assert main([*both, "--save-reference", str(tmp_path / "real.npz")]) == 0
    first = without_clock(read(tmp_path / "report"))
    assert set(np.load(tmp_path / "real.npz")) == {"mu", "sigma"}
    assert main([*both, "--reference", str(tmp_path / "real.npz")]) == 0
    again = without_clock(read(tmp_path / "report"))
    name = "frechet_distance_pooled"
    for one, other in zip(first["models"][0]["points"], again["models"][0]["points"], strict=True):
        assert one["metrics"][name]["value"] == pytest.approx(other["metrics"][name]["value"], rel=1e-9)


class Doubled(nn.Module):
    """Without weights, as the one it takes the name of."""

    def forward(self, images: Tensor) -> Tensor:
        return nn.functional.adaptive_avg_pool2d(images.float() / 128, (4, 4)).flatten(1)


def test_what_was_made_is_not_taken_for_something_else(
    command: list[str], finished: Path, tiny_model: Path, pooled: Path, colours: Path, tmp_path: Path
) -> None:
    """Another extractor of the same name, other images of the same names, another way to sample the same weights."""

    def figure(*changes: str) -> float:
        assert main([*command, "--metrics", "kernel_distance", "--out", str(out), *changes]) == 0
        return float(read(out)["models"][0]["points"][0]["metrics"]["kernel_distance_pooled"]["value"])

    out = shutil.copytree(finished, tmp_path / "out")
    before = figure()
    (tmp_path / "other").mkdir()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(Doubled()).save(str(tmp_path / "other" / pooled.name))
    data = tmp_path / "data"
    shutil.copytree(colours, data)
    for path in data.glob("*.png"):
        Image.eval(Image.open(path), lambda level: 255 - level).save(path)
    model = shutil.copytree(tiny_model, tmp_path / "model")
    settings = json.loads((model / "scheduler" / "scheduler_config.json").read_text())
    settings["transport"] = "trigflow"
    (model / "scheduler" / "scheduler_config.json").write_text(json.dumps(settings))
    assert figure("--data", str(data)) != before
    assert figure("--model", str(model)) != before
    assert figure("--extractor", str(tmp_path / "other" / pooled.name)) != before
    assert figure() == before


def test_folders_of_several_models_make_a_line_each(
    finished: Path, pooled: Path, colours: Path, tmp_path: Path
) -> None:
    one, two, *_ = (folder for folder in finished.rglob("images") if folder.is_dir())
    arguments = measuring(pooled, colours, tmp_path)
    assert main([*arguments, "--images", f"ours@1={one}", f"theirs@1:2={two}", f"theirs@2:4={two}"]) == 0
    ours, theirs = read(tmp_path)["models"]
    assert (ours["name"], [point["nfe"] for point in ours["points"]]) == ("ours", [1])
    assert [point["nfe"] for point in theirs["points"]] == [2, 4]
    assert [(moved["from"], moved["to"], moved["features"]["value"]) for moved in theirs["movement"]] == [(1, 2, 0)]
    # the same images twice are no gain
    assert all("gets better" not in monotone["verdict"] for monotone in theirs["monotone"].values())
    assert not (tmp_path / "sheet.png").exists()


def test_bad_evaluations_are_one_line(
    command: list[str], colours: Path, pooled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def line(*options: str) -> str:
        try:
            code = main([*command, "--out", str(tmp_path / "report"), *options])
        except SystemExit as error:
            code = error.code  # type: ignore[assignment]
        assert code == 2
        captured = capsys.readouterr().err
        assert captured.count("\n") == 1, captured
        return captured

    few = tmp_path / "few"
    few.mkdir()
    for number in range(70):
        for kind in ("png", "txt"):
            shutil.copy(colours / f"{number:03d}.{kind}", few)
    assert "kernel_distance needs at least 50 images" in line("--samples", "20")
    assert "unknown metric fid" in line("--metrics", "fid")
    assert "--steps: '0'" in line("--steps", "0")
    assert "no such folder" in line("--data", "nowhere")
    assert "unknown feature extractor 'vgg'" in line("--extractor", "vgg")
    assert "no such file" in line("--extractor", "none.onnx")
    assert "put pt_inception" in line("--extractor", f"inception:{tmp_path}")
    assert "expected STEPS=FOLDER" in line("--images", "four=x")
    assert "expected STEPS=FOLDER" in line("--images", "1:0=x")
    assert "both sides must be multiples" in line("--size", "33x16")
    assert "there is no folder" in line("--save-reference", str(tmp_path / "none" / "x.npz"))
    assert "half for each side: samples 35: kernel_distance needs at least 50 images; 100 images are enough" in line(
        "--samples", "70", "--data", str(few)
    )
    assert "have no captions" in line("--images", f"4={colours}", "--clip-score", "x")
    assert "were given twice" in line("--images", f"4={colours}", f"4={colours}")
    assert "no such folder" in line("--images", "4=nowhere")
    assert "model 'x' was given twice" in line("--model", "x", "y", "x")
    assert "model 'x' was given twice" in line("--model", "x", "--images", f"x@4={colours}")
    assert "no alignment heads" in line("--alignment", "none.safetensors")
    assert "no CLIP model at 'nowhere'" in line("--clip-score", "nowhere")
    assert "size 18x16" in line("--size", "18x16")
    assert "there is no such file" in line("--metrics", "frechet_distance", "--reference", "none.npz")
    np.savez(tmp_path / "any.npz", mu=np.zeros(48), sigma=np.eye(48))
    assert "serve frechet_distance only" in line("--reference", str(tmp_path / "any.npz"))
    assert "inception_score needs a classifier" in line("--metrics", "inception_score")
    np.savez(tmp_path / "other.npz", mu=np.zeros(7), sigma=np.eye(7))
    other = line("--metrics", "frechet_distance", "--reference", str(tmp_path / "other.npz"))
    assert "reference statistics of 7 features" in other
    assert "48" in other

    (tmp_path / "empty").mkdir()
    assert "no image in it" in line("--images", f"4={tmp_path / 'empty'}")
    mixed = shutil.copytree(colours, tmp_path / "mixed")
    Image.new("RGB", (20, 16)).save(mixed / "005.png")
    assert "005.png: 20x16, but the first image is 16x16" in line("--images", f"4={mixed}")
    assert "130 images, but --samples 200" in line("--images", f"4={colours}", "--samples", "200")
    (mixed / "005.png").write_bytes(b"broken")
    assert "005.png: not an image" in line("--images", f"4={mixed}")
    command = [word for word in command if word != "--allow-code"]
    assert "--allow-code" in line()
    assert not (tmp_path / "report").exists()


def test_a_report_is_not_written_among_what_others_have_made(
    command: list[str], finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "report.json").write_text("mine")
    assert main([*command, "--out", str(tmp_path)]) == 2
    assert "holds report.json, which this command has not made" in capsys.readouterr().err
    assert (tmp_path / "report.json").read_text() == "mine"
    unmarked = shutil.copytree(finished, tmp_path / "unmarked")  # as made before folders were marked
    for name in (".anystep.json", ".lock"):
        (unmarked / name).unlink()
    assert main([*command, "--out", str(unmarked), "--keep-images"]) == 0
    with claimed(unmarked, "evaluation report"):
        assert main([*command, "--out", str(unmarked)]) == 2
    assert "is in use by process" in capsys.readouterr().err


def test_baselines_stand_beside_a_transition_model(
    tiny_model: Path, baselines: dict[str, Path], colours: Path, pooled: Path, tmp_path: Path
) -> None:
    uniform = f"{baselines['flux']}?plan=uniform&guidance_scale=0"
    models = [str(tiny_model), str(baselines["lcm"]), uniform]
    command = [
        "evaluate",
        "--model",
        *models,
        "--extractor",
        str(pooled),
        "--allow-code",
        "--data",
        str(colours),
        *SMALL,
    ]
    assert main([*command, "--size", "32", "--out", str(tmp_path)]) == 0
    report = read(tmp_path)
    points = {model["name"]: model["points"] for model in report["models"]}
    assert [[point["nfe"] for point in points[name]] for name in models] == [[2, 4], [1, 2], [1, 2]]
    distances = [point["metrics"]["kernel_distance_pooled"]["value"] for each in points.values() for point in each]
    assert len(set(distances)) == len(distances)  # no two have drawn the same
    told = report["settings"]["models"]
    assert [told[name]["guidance"] for name in models] == [1.5, 8.5, 0.0]
    assert told[uniform]["options"] == {"plan": "uniform", "guidance_scale": 0}
    assert "counted" in (tmp_path / "report.md").read_text()


@pytest.mark.parametrize("plan", [None, "model", "uniform", StepPlan(4, tail=0.25)])
def test_whatever_a_request_takes_can_be_written_down(
    tiny_classes: Path, classes: Path, tmp_path: Path, plan: Any
) -> None:
    asked: dict[str, Any] = {"model": [load(tiny_classes)], "images": [], "steps": [4], "metrics": ["kernel_distance"]}
    asked |= {"data": f"classes:{classes}", "samples": 50, "guidance": 2.0, "size": (8, 8), "extractor": Doubled()}
    expected = plan.plain() if isinstance(plan, StepPlan) else plan
    report = evaluate_models(Request(out=tmp_path, plan=plan, batch=25, **asked))
    assert read(tmp_path) == json.loads(json.dumps(report))
    assert report["settings"]["plan"] == expected
    (dry,) = evaluate_models(Request(out=tmp_path, plan=plan, dry_run=True, **asked))["dry_run"]
    assert dry["plan"] == expected


def test_images_of_another_precision_are_drawn_again(
    tiny_classes: Path, classes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where all weights are numbers that both can say, so that their digests are the same."""
    exact, draw, drawn = load(tiny_classes, "cpu"), Model.draw, list[tuple[int, torch.dtype]]()
    with torch.no_grad():
        for weight in exact.pipeline.transformer.parameters():
            weight.copy_(weight.bfloat16())
    exact.pipeline.save_pretrained(tmp_path / "exact")

    def drawing(model: Model, prompts: list[int], *arguments: Any, **options: Any) -> Any:
        drawn.append((len(prompts), model.dtype))
        return draw(model, prompts, *arguments, **options)

    monkeypatch.setattr(Model, "draw", drawing)
    asked: dict[str, Any] = {"images": [], "steps": [1], "metrics": ["kernel_distance"], "data": f"classes:{classes}"}
    for dtype in (torch.float32, torch.bfloat16):
        model = load(tmp_path / "exact", "cpu", dtype)
        evaluate_models(Request(out=tmp_path / "out", model=[model], samples=50, extractor=Doubled(), **asked))
        assert (50, dtype) in drawn
