"""MJHQ-30K: distances over all and in each category, from the published layout."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import frechet_distance
from PIL import Image

from anystep.cli import main
from anystep.errors import InputError
from anystep.evaluation.benchmarks import mjhq
from anystep.evaluation.extractors.registry import extract, load_extractor
from anystep.evaluation.settings import Evaluation, MeasurementSettings


@pytest.fixture
def published(tmp_path: Path) -> tuple[Path, Path]:
    """A hundred and ten landscape images of blocks in two categories, one of them too small for a distance."""
    generator = np.random.default_rng(0)
    entries = {}
    for number in range(110):
        category = "people" if number < 20 else "animals"
        entries[f"id{number:03d}"] = {"category": category, "prompt": f"number {number}"}
        path = tmp_path / "real" / category / f"id{number:03d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        blocks = generator.integers(0, 256, (4, 6, 3), dtype=np.uint8)
        Image.fromarray(blocks.repeat(6, 0).repeat(6, 1)).save(path)
    (tmp_path / "meta_data.json").write_text(json.dumps(entries))
    return tmp_path / "meta_data.json", tmp_path / "real"


def test_scores_by_category_and_overall(
    published: tuple[Path, Path], tiny_model: Path, pooled: Path, tmp_path: Path
) -> None:
    metadata, real = published
    command = ["benchmark", "mjhq", "--metadata", str(metadata), "--real", str(real), "--model", str(tiny_model)]
    command += ["--extractor", str(pooled), "--allow-code", "--steps", "1", "2", "--out", str(tmp_path / "out")]
    assert main(command) == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert [point["nfe"] for point in report["points"]] == [2, 4]
    assert set(report["points"][0]["scores"]) == {"frechet_distance_pooled overall", "frechet_distance_pooled animals"}
    entries = mjhq.read_metadata(metadata)
    made = [Image.open(mjhq.image_path(tmp_path / "out/steps-002", name, e, ".png")) for name, e in entries.items()]
    extractor = load_extractor(str(pooled), allow_code=True)
    features = extract(extractor, [torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)[None] for image in made])
    reals = []
    for name, entry in entries.items():
        with Image.open(mjhq.image_path(real, name, entry)) as image:
            box = (6, 0, 30, 24)  # the middle square
            reals.append(np.asarray(image.resize((16, 16), Image.Resampling.LANCZOS, box)).copy())
    real_features = extract(extractor, [torch.from_numpy(image).permute(2, 0, 1)[None] for image in reals])
    expected = frechet_distance(real_features, features)
    value = report["points"][1]["scores"]["frechet_distance_pooled overall"]["value"]
    assert value == pytest.approx(expected, rel=1e-6)


def test_other_real_images_are_other_features_and_published_names_are_read(
    published: tuple[Path, Path], pooled: Path, tmp_path: Path
) -> None:
    metadata, real = published
    entries = mjhq.read_metadata(metadata)
    settings = MeasurementSettings(out=tmp_path / "work", samples=60, extractor=str(pooled), allow_code=True)
    other, evaluation = tmp_path / "other", Evaluation.open(settings, torch.device("cpu"), ["frechet_distance"])
    for name, entry in entries.items():
        path = mjhq.image_path(other, name, entry)
        path.parent.mkdir(parents=True, exist_ok=True)
        with Image.open(mjhq.image_path(real, name, entry)) as image:
            Image.eval(image, lambda level: level // 2).save(path)
    same, darker = (mjhq.score(real, place, entries, evaluation) for place in (real, other))
    name = "frechet_distance_pooled overall"
    assert same[name]["value"] == pytest.approx(0, abs=1e-6)
    assert darker[name]["value"] > 1
    assert not (real / "work").exists()


def test_bad_input_is_one_line(
    published: tuple[Path, Path], tiny_model: Path, pooled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    metadata, real = published
    (tmp_path / "list.json").write_text("[1]")
    (real / "people" / "id003.jpg").write_bytes(b"broken")
    base = ["benchmark", "mjhq", "--model", str(tiny_model), "--extractor", str(pooled), "--allow-code", "--steps", "1"]
    base += ["--out", str(tmp_path / "out"), "--metadata", str(metadata)]
    for extra, message in [
        (["--metadata", str(tmp_path / "list.json")], "expected a JSON dict, got list"),
        (["--real", str(tmp_path / "none")], "no such folder"),
        (["--real", str(real), "--count", "3"], "needs at least 50"),
        (["--real", str(real / "people")], "110 of 110 real images are missing"),
        (["--real", str(real)], "id003.jpg: not an image that can be read"),
    ]:
        assert main([*base, *extra]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "category", "prompt", "message"),
    [
        ("a", "../../escaped", "a red apple", "cannot name a file"),
        ("../a", "people", "a red apple", "cannot name a file"),
        ("/a", "people", "a red apple", "cannot name a file"),
        ("a", "", "a red apple", "cannot name a file"),
        ("A", "people", "a red apple", "would be one file"),
        ("b", ["people"], "a red apple", "expected a category and a prompt"),
        ("b", "people", "", "expected a category and a prompt"),
    ],
)
def test_metadata_that_would_write_elsewhere_are_refused(
    tmp_path: Path, name: str, category: object, prompt: str, message: str
) -> None:
    entries = {"a": {"category": "people", "prompt": "one"}} | {name: {"category": category, "prompt": prompt}}
    (tmp_path / "m.json").write_bytes(b"\xef\xbb\xbf" + json.dumps(entries).encode())
    with pytest.raises(InputError, match=message):
        mjhq.read_metadata(tmp_path / "m.json")


def test_a_baseline_is_scored_with_its_counted_evaluations(
    published: tuple[Path, Path], baselines: dict[str, Path], pooled: Path, tmp_path: Path
) -> None:
    metadata, real = published
    command = [
        "benchmark",
        "mjhq",
        "--metadata",
        str(metadata),
        "--real",
        str(real),
        "--size",
        "32",
        "--steps",
        "1",
        "3",
    ]
    command += ["--extractor", str(pooled), "--allow-code", "--count", "60", "--batch", "20"]
    command += ["--model", str(baselines["flux"]), "--out", str(tmp_path / "out")]
    reports = []
    for _ in range(2):  # the second time all images are there
        assert main(command) == 0
        reports.append(json.loads((tmp_path / "out" / "report.json").read_text()))
    assert [point["nfe"] for point in reports[0]["points"]] == [1, 3]
    assert (reports[0]["pipeline"], reports[0]["guidance"]) == ("FluxPipeline", 3.5)
    assert reports[0] == reports[1]
