"""GenEval's rules on constructed detections, its layout, and its judges from small folders."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from PIL import Image
from torch import Tensor

from anystep import pretrained
from anystep.cli import main
from anystep.errors import InputError
from anystep.evaluation.benchmarks import geneval
from anystep.evaluation.benchmarks.detections import (
    COLOURS,
    Detection,
    by_class,
    evaluate_detections,
    evaluate_image,
    relations,
)
from anystep.evaluation.benchmarks.judges import CLIPColours, TransformersDetector, VisualQuestions


def thing(name: str, x: float, y: float, side: float = 10, score: float = 0.95, colour: str | None = None) -> Detection:
    return Detection(name, score, (x - side / 2, y - side / 2, x + side / 2, y + side / 2), colour)


def right(metadata: dict[str, Any], *things: Detection) -> bool:
    return evaluate_detections(metadata, by_class(things), {each: each.colour or "" for each in things}).correct


def test_single_object() -> None:
    asked = {"include": [{"class": "dog", "count": 1}]}
    assert right(asked, thing("dog", 0, 0))
    assert right(asked, thing("dog", 0, 0), thing("dog", 20, 0), thing("cat", 40, 0))
    assert not right(asked, thing("cat", 0, 0))
    assert not right(asked)


def test_two_objects() -> None:
    asked = {"include": [{"class": "dog", "count": 1}, {"class": "cat", "count": 1}]}
    assert right(asked, thing("dog", 0, 0), thing("cat", 0, 0))
    assert not right(asked, thing("dog", 0, 0), thing("dog", 30, 0))


def test_counting_is_exact() -> None:
    asked = {"include": [{"class": "dog", "count": 3}], "exclude": [{"class": "dog", "count": 4}]}
    dogs = [thing("dog", 20 * place, 0) for place in range(4)]
    assert [right(asked, *dogs[:count]) for count in range(5)] == [False, False, False, True, False]


def test_colours() -> None:
    asked = {"include": [{"class": "dog", "count": 1, "color": "red"}]}
    assert right(asked, thing("dog", 0, 0, colour="red"))
    assert not right(asked, thing("dog", 0, 0, colour="blue"))
    # the surest dog is the one that counts
    surer = thing("dog", 0, 0, colour="blue", score=0.99)
    assert not right(asked, thing("dog", 20, 0, colour="red"), surer)


@pytest.mark.parametrize(
    ("relation", "x", "y"), [("left of", -30, 0), ("right of", 30, 0), ("above", 0, -30), ("below", 0, 30)]
)
def test_position(relation: str, x: float, y: float) -> None:
    asked = {
        "include": [{"class": "dog", "count": 1}, {"class": "cat", "count": 1, "position": [relation, 0]}],
    }
    assert right(asked, thing("dog", 0, 0), thing("cat", x, y))
    assert not right(asked, thing("dog", 0, 0), thing("cat", -x, -y))
    assert not right(asked, thing("dog", 0, 0), thing("cat", y, x))
    assert not right(asked, thing("cat", x, y))  # nothing to be beside


def test_attribute_binding() -> None:
    asked = {
        "include": [{"class": "dog", "count": 1, "color": "red"}, {"class": "cat", "count": 1, "color": "blue"}],
    }
    assert right(asked, thing("dog", 0, 0, colour="red"), thing("cat", 20, 0, colour="blue"))
    assert not right(asked, thing("dog", 0, 0, colour="blue"), thing("cat", 20, 0, colour="red"))


def test_relations_need_a_tenth_of_both_sizes_between_the_centres() -> None:
    here = thing("a", 0, 0)
    assert relations(thing("b", 1.9, 0), here) == set()
    assert relations(here, here) == set()
    # beyond the threshold the direction still needs half of the distance
    assert relations(thing("b", 3, 0), here) == set()
    assert relations(thing("b", 5, 0), here) == {"right of"}
    assert relations(thing("b", -30, -30), here) == {"left of", "above"}


def test_a_reason_is_given() -> None:
    answer = evaluate_detections({"include": [{"class": "dog", "count": 2}]}, {"dog": [thing("dog", 0, 0)]}, {})
    assert answer.reason == "dog: expected at least 2, found 1"


def test_at_most_sixteen_of_a_class_count_the_surest_first() -> None:
    found = by_class([thing("dog", place, 0, score=place / 30) for place in range(20)])
    assert len(found["dog"]) == 16
    assert found["dog"][0].score == 19 / 30


class Fake:
    """A detector that finds a dog in dark images, the surer the darker, and names every colour red."""

    name = "fake"

    def __init__(self) -> None:
        self.asked: list[float] = []

    def __call__(self, image: Image.Image, min_score: Any) -> Any:
        if not isinstance(min_score, float):
            return ["red" for _ in min_score]
        self.asked.append(min_score)
        level = image.convert("L").getpixel((0, 0))
        assert isinstance(level, int | float)
        dog = thing("dog", 4, 4, score=1 - level / 255)
        return [dog] if dog.score >= min_score else []


ENTRIES = [
    {"tag": "single_object", "include": [{"class": "dog", "count": 1}], "prompt": "a photo of a dog"},
    {"tag": "colors", "include": [{"class": "dog", "count": 1, "color": "red"}], "prompt": "a photo of a red dog"},
    {"tag": "counting", "include": [{"class": "dog", "count": 1}], "prompt": "a photo of one dog"},
]


@pytest.fixture
def metadata(tmp_path: Path) -> Path:
    path = tmp_path / "evaluation_metadata.jsonl"
    path.write_text("\n".join(json.dumps(entry) for entry in ENTRIES) + "\n")
    return path


def test_scores_by_task_and_overall(metadata: Path, tmp_path: Path) -> None:
    entries = geneval.read_metadata(metadata)
    requests = geneval.generation_requests(entries, tmp_path / "images", samples=2)
    assert [request.path.relative_to(tmp_path / "images").as_posix() for request in requests[:3]] == [
        "00000/samples/0000.png",
        "00000/samples/0001.png",
        "00001/samples/0000.png",
    ]
    assert len({request.seed for request in requests}) == 6
    for request, level in zip(requests, [0, 255, 0, 0, 0, 100], strict=True):
        request.path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), level).save(request.path)
    detector = Fake()
    stray = tmp_path / "images" / "00009"
    stray.mkdir()
    (stray / "metadata.jsonl").write_text(json.dumps(ENTRIES[0]))  # nobody ordered this one
    geneval.write_metadata(entries, tmp_path / "images")
    placed = geneval.places(entries, tmp_path / "images")
    scores = geneval.score(placed, detector, detector, tmp_path / "results.jsonl")
    assert {name: score["value"] for name, score in scores.items()} == {
        "single_object": 0.5,
        "colors": 1.0,
        "counting": 0.5,  # of the threshold of 0.9
        "overall": pytest.approx(2 / 3),
    }
    assert detector.asked == [0.3] * 4 + [0.9] * 2
    lines = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert [line["correct"] for line in lines] == [True, False, True, True, True, False]
    assert set(lines[0]) == {"filename", "tag", "prompt", "metadata", "correct", "reason"}
    assert json.loads(lines[2]["metadata"]) == ENTRIES[1]
    with pytest.raises(InputError, match="asks for a colour, and nothing is there to name it"):
        geneval.score(placed, detector, None, tmp_path / "results.jsonl")
    with pytest.raises(InputError, match="no images in it"):
        geneval.score(geneval.read_folder(tmp_path / "images"), detector, detector, tmp_path / "results.jsonl")
    (tmp_path / "images" / "00001" / "metadata.jsonl").write_text("\n".join(map(json.dumps, ENTRIES)))
    with pytest.raises(InputError, match="3 lines, expected one"):
        geneval.read_folder(tmp_path / "images")


def test_images_are_drawn_once_in_the_layout(metadata: Path, tiny_model: Path, tmp_path: Path) -> None:
    command = ["benchmark", "geneval", "--metadata", str(metadata), "--model", str(tiny_model), "--samples", "2"]
    command += ["--steps", "1", "2", "--out", str(tmp_path / "out")]
    assert main(command) == 0
    images = sorted((tmp_path / "out").rglob("*.png"))
    assert len(images) == 12
    assert json.loads((tmp_path / "out/steps-002/00001/metadata.jsonl").read_text()) == ENTRIES[1]
    before = [path.read_bytes() for path in images]
    images[3].unlink()
    times = [path.stat().st_mtime_ns for path in images if path.exists()]
    assert main(command) == 0
    assert [path.read_bytes() for path in images] == before
    assert [path.stat().st_mtime_ns for path in images if path != images[3]] == times


@pytest.fixture(scope="module")
def yolos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random detector of transformers that knows a mouse and a cat."""
    folder = tmp_path_factory.mktemp("yolos")
    torch.manual_seed(0)
    config = transformers.YolosConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, image_size=[32, 32],
        patch_size=8, num_detection_tokens=5, id2label={0: "mouse", 1: "cat"}, label2id={"mouse": 0, "cat": 1},
    )  # fmt: skip
    transformers.YolosForObjectDetection(config).save_pretrained(folder)
    transformers.YolosImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def test_a_detector_of_transformers(yolos: Path) -> None:
    detector = TransformersDetector(str(yolos))
    found = detector(Image.new("RGB", (40, 50), "red"), 0.0)
    assert len(found) == 5
    assert {each.name for each in found} <= {"computer mouse", "cat"}  # COCO's mouse by GenEval's name
    for each in found:
        assert 0 <= each.score <= 1
        assert -1 <= each.box[0] <= each.box[2] <= 41
        assert -1 <= each.box[1] <= each.box[3] <= 51
    assert detector(Image.new("RGB", (40, 50), "red"), 1.0) == []
    assert not evaluate_image(Image.new("RGB", (40, 50)), ENTRIES[0], detector, None, 0.3).correct
    detector.check_knows({"cat", "computer mouse"})
    with pytest.raises(InputError, match="does not know dog: choose one of COCO's classes"):
        detector.check_knows(geneval.classes(ENTRIES))


def test_classes_of_other_data_sets_have_their_names_here(yolos: Path, tmp_path: Path) -> None:
    names = ["aeroplane", "motorbike", "sofa", "tvmonitor", "pottedplant", "diningtable"]
    for file in yolos.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = transformers.YolosConfig.from_pretrained(yolos, id2label=dict(enumerate(names)))
    transformers.YolosForObjectDetection(config).save_pretrained(tmp_path)
    detector = TransformersDetector(str(tmp_path))
    assert detector.classes == {"airplane", "motorcycle", "couch", "tv", "potted plant", "dining table"}
    assert {each.name for each in detector(Image.new("RGB", (32, 32)), 0.0)} <= detector.classes


def test_prompts_of_a_folder_are_those_that_lie_in_it(
    metadata: Path, yolos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not those of --metadata, which ask for dogs and colours."""
    place = tmp_path / "theirs" / "00000"
    (place / "samples").mkdir(parents=True)
    Image.new("RGB", (16, 16)).save(place / "samples" / "0000.png")
    command = ["benchmark", "geneval", "--metadata", str(metadata), "--detector", str(yolos)]
    command += ["--images", str(tmp_path / "theirs"), "--out", str(tmp_path / "out")]
    cat: dict[str, Any] = {"tag": "single_object", "include": [{"class": "cat", "count": 1}], "prompt": "a cat"}
    (place / "metadata.jsonl").write_text(json.dumps(cat))
    assert main(command) == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert set(report["points"][0]["scores"]) == {"single_object", "overall"}
    assert (tmp_path / "out" / "results.jsonl").exists()
    assert not (tmp_path / "theirs" / "results.jsonl").exists()
    cat["include"][0]["color"] = "red"
    (place / "metadata.jsonl").write_text(json.dumps(cat))
    assert main(command) == 2
    assert "--clip needs a CLIP model" in capsys.readouterr().err


def test_colours_by_clip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The nearest of ten colours, three phrases each; a stand-in for CLIP has a direction for each colour."""
    crops: list[Image.Image] = []
    asked: list[str] = []

    class Answer(torch.nn.Module):
        device = torch.device("cpu")
        config = transformers.CLIPConfig()

        def get_text_features(self, colours: Tensor) -> Tensor:
            return torch.eye(10)[colours]

        def get_image_features(self, colours: Tensor) -> Any:
            return transformers.utils.ModelOutput(pooler_output=torch.eye(10)[colours])

    def process(text: Sequence[str] = (), images: Sequence[Image.Image] = (), **options: Any) -> Any:
        assert not text or options["max_length"] == 77
        crops.extend(images)
        asked.extend(text)
        seen = [3 if image.getpixel((0, 0)) == (0, 255, 0) else 0 for image in images]
        named = [next(place for place, colour in enumerate(COLOURS) if colour in phrase) for phrase in text]
        return transformers.BatchEncoding({"colours": torch.tensor([*seen, *named])})

    monkeypatch.setattr(transformers.AutoModel, "from_pretrained", lambda name, **options: Answer())
    monkeypatch.setattr(transformers.AutoProcessor, "from_pretrained", lambda name, **options: process)
    image = Image.new("RGB", (40, 40), "red")
    image.paste((0, 255, 0), (0, 0, 20, 20))
    named = CLIPColours("clip")(image, [thing("dog", 10, 10), thing("dog", 30, 30)])
    assert named == ["green", "red"]
    assert asked[9:12] == ["a photo of a green dog", "a photo of a green-colored dog", "a photo of a green object"]
    assert len(asked) == 30  # of one class once
    assert [crop.size for crop in crops] == [(10, 10), (10, 10)]


def test_questions_by_a_model_of_transformers(tmp_path: Path, tiny_text_models: dict[str, Path]) -> None:
    torch.manual_seed(0)
    config = transformers.ViltConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, image_size=32, patch_size=8,
        vocab_size=16, id2label={0: "yes", 1: "no"}, label2id={"yes": 0, "no": 1},
    )  # fmt: skip
    model = transformers.ViltForQuestionAnswering(config)
    torch.nn.init.zeros_(model.classifier[-1].weight)
    with torch.no_grad():
        model.classifier[-1].bias.copy_(torch.tensor([1.0, 0.0]))
    model.save_pretrained(tmp_path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_text_models["bert"])
    images = transformers.ViltImageProcessorPil(size={"shortest_edge": 32})
    transformers.ViltProcessor(images, tokenizer).save_pretrained(tmp_path)
    assert VisualQuestions(str(tmp_path))(Image.new("RGB", (32, 32)), ["a whale", "a red apple"]) == [True, True]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 1"),
        ('{"tag": "colors", "prompt": "a dog"}', "expected tag, prompt and include"),
        ('{"tag": "colors", "prompt": "a dog", "include": [{"class": "dog"}]}', "needs class and count"),
        ('{"tag": "a", "prompt": "b", "include": [{"class": "dog", "count": "two"}]}', "count 'two': expected a whole"),
        ('{"tag": "a", "prompt": "b", "include": [], "exclude": [{"class": "dog"}]}', "needs class and count"),
        (
            '{"tag": "a", "prompt": "b", "include": [{"class": "dog", "count": 1, "position": ["above", 4]}]}',
            "expected the number of an object before it",
        ),
        ('{"tag": "a", "prompt": "b", "include": [{"class": "dog", "count": true}]}', "count True: expected a whole"),
        ('{"tag": "a", "prompt": "b", "include": [{"class": ["dog"], "count": 1}]}', "needs class and count"),
        ('{"tag": "a", "prompt": "b", "include": [{"class": "dog", "count": 1, "color": "mauve"}]}', "color 'mauve'"),
        ('{"tag": "a", "prompt": " ", "include": []}', "must be text"),
        ('{"tag": ["a"], "prompt": "b", "include": []}', "must be text"),
        ('{"tag": "a", "prompt": "b", "include": "dog"}', "must be lists"),
        ("[" * 100_000, "nested too deeply"),
        ("7", "expected a JSON dict"),
        ("", "no prompts"),
    ],
)
def test_bad_metadata_is_one_line(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "m.jsonl").write_text(line)
    with pytest.raises(InputError, match=message):
        geneval.read_metadata(tmp_path / "m.jsonl")


def test_what_is_in_the_cache_but_does_not_fit_is_not_called_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(name: str, **options: Any) -> Any:
        raise ValueError("a whale is\nno detector")

    monkeypatch.setattr(transformers.AutoModelForObjectDetection, "from_pretrained", wrong)
    monkeypatch.setattr(pretrained, "try_to_load_from_cache", lambda name, file: "/cache/config.json")
    with pytest.raises(InputError, match="no object detector at 'owner/whale': a whale is no detector"):
        TransformersDetector("owner/whale")


def test_missing_judges_say_which_file_and_where(
    metadata: Path, yolos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "config.json").write_text((yolos / "config.json").read_text())
    (tmp_path / "most").mkdir()
    for name in ("config.json", "model.safetensors"):
        (tmp_path / "most" / name).write_bytes((yolos / name).read_bytes())
    base = ["benchmark", "geneval", "--metadata", str(metadata), "--out", str(tmp_path / "out")]
    for extra, message in [
        (["--detector", str(tmp_path / "half"), "--clip", "x"], "config.json and no model.safetensors in"),
        (["--detector", str(tmp_path / "most"), "--clip", "x"], "there is no preprocessor_config.json in"),
        (["--detector", str(yolos)], "--clip needs a CLIP model"),
        (["--detector", "/nowhere/det", "--clip", "x"], "no such folder; it should hold config.json, preproc"),
        (["--detector", "owner/name", "--clip", "x"], "not in the cache and not to be had; download it, or"),
        (["--images", str(tmp_path)], "nothing was given to score with"),
        (["--metadata", "none.jsonl"], "'none.jsonl': there is no such file"),
        (["--model", "nowhere"], "unknown model 'nowhere'"),
    ]:
        assert main([*base, *extra]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
