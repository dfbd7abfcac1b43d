"""DPG-Bench: questions that hang on others, squares of four, and the published files."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from PIL import Image

from anystep.cli import main
from anystep.errors import InputError
from anystep.evaluation.benchmarks import dpg
from anystep.evaluation.benchmarks.dpg import Question

HEADER = "item_id,text,keywords,proposition_id,dependency,category_broad,category_detailed,tuple"
CSV = f"""{HEADER},question_natural_language
whale,a whale,,1,0,entity,whole,entity (whale),Is there a whale?
whale,a whale,,2,1,attribute,color,attribute (blue),Is the whale blue?
whale,a whale,,3,"1,2",relation,spatial,relation (left),Is the blue whale on the left?
apple,an apple,,1,0,entity,whole,entity (apple),Is there an apple?
"""


@pytest.fixture
def published(tmp_path: Path) -> tuple[Path, Path]:
    prompts, questions = tmp_path / "prompts", tmp_path / "dpg_bench.csv"
    prompts.mkdir()
    (prompts / "whale.txt").write_text("a whale\n")
    (prompts / "apple.txt").write_text("an apple")
    questions.write_text(CSV)
    return prompts, questions


@pytest.mark.parametrize(
    ("yes", "expected"),
    [
        ([True, True, True], [1, 1, 1]),
        ([True, False, True], [1, 0, 0]),
        ([False, True, True], [0, 0, 0]),  # without a whale nothing about it counts
    ],
)
def test_a_question_counts_only_where_its_parents_hold(yes: list[bool], expected: list[float]) -> None:
    questions = [Question(1, (), "entity", ""), Question(2, (1,), "attribute", ""), Question(3, (1, 2), "relation", "")]
    assert list(dpg.count_answers(questions, yes).values()) == expected


def test_a_no_travels_down_the_chain() -> None:
    chain = [Question(1, (), "entity", ""), Question(2, (1,), "attribute", ""), Question(3, (2,), "relation", "")]
    assert list(dpg.count_answers(chain, [False, True, True]).values()) == [0, 0, 0]


def test_what_rests_on_a_later_question_sees_its_plain_answer() -> None:
    later = [Question(1, (2,), "attribute", ""), Question(2, (3,), "entity", ""), Question(3, (), "entity", "")]
    assert list(dpg.count_answers(later, [True, True, False]).values()) == [1, 0, 0]


def test_categories_take_each_answer_as_it_was_given(published: tuple[Path, Path], tmp_path: Path) -> None:
    """Without a whale its colour counts for nothing overall, but a yes about it is a yes of its category."""
    questions = dpg.read_questions(published[1])
    Image.new("RGB", (16, 16)).save(tmp_path / "whale.png")
    scores = dpg.score(tmp_path, {"whale": ""}, questions, lambda image, asked: ["there" not in text for text in asked])
    assert {name: score["value"] for name, score in scores.items()} == {
        "attribute": 1, "entity": 0, "relation": 1, "overall": 0,
    }  # fmt: skip


def test_questions_are_known_to_fit_before_anything_is_drawn(
    published: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (published[0] / "dog.txt").write_text("a dog")
    command = ["benchmark", "dpg", "--prompts", str(published[0]), "--questions", str(published[1]), "--vqa", "x"]
    assert main([*command, "--out", str(tmp_path / "out")]) == 2
    assert "no questions about prompt 'dog'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_scores_of_squares(published: tuple[Path, Path], tmp_path: Path) -> None:
    """An answerer that sees a whale, blue, on the left in bright images, and apples everywhere."""
    prompts, questions = dpg.read_prompts(published[0]), dpg.read_questions(published[1])
    assert list(prompts.items()) == [("apple", "an apple"), ("whale", "a whale")]
    assert questions["whale"][2].parents == (1, 2)
    folder = tmp_path / "images"
    requests = dpg.generation_requests(prompts, folder)
    assert len({request.seed for request in requests}) == 8
    for request, level in zip(requests, [0, 0, 0, 0, 0, 255, 255, 255], strict=True):
        request.path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), level).save(request.path)
    dpg.assemble(prompts, folder)
    with Image.open(folder / "whale.png") as square:
        assert square.size == (16, 16)
        assert [square.convert("L").getpixel(at) for at in [(0, 0), (8, 0), (0, 8), (8, 8)]] == [0, 255, 255, 255]

    def answer(image: Image.Image, asked: Sequence[str]) -> list[bool]:
        bright = image.convert("L").getpixel((0, 0)) == 255
        return ["apple" in text or bright for text in asked]

    scores = {name: score["value"] for name, score in dpg.score(folder, prompts, questions, answer).items()}
    assert scores == {"attribute": 0.75, "entity": 7 / 8, "relation": 0.75, "overall": (1 + 0.75) / 2}


def test_images_are_drawn_in_the_layout(published: tuple[Path, Path], tiny_model: Path, tmp_path: Path) -> None:
    command = ["benchmark", "dpg", "--prompts", str(published[0]), "--model", str(tiny_model), "--steps", "1"]
    assert main([*command, "--out", str(tmp_path / "out")]) == 0
    with Image.open(tmp_path / "out" / "steps-001" / "whale.png") as square:
        assert square.size == (32, 32)


def test_bad_files_are_one_line(published: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"expected a folder of ID\.txt"):
        dpg.read_prompts(tmp_path / "none")
    with pytest.raises(InputError, match="No such file"):
        dpg.read_questions(tmp_path / "none.csv")
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(InputError, match="no column item_id, proposition_id"):
        dpg.read_questions(tmp_path / "other.csv")
    (tmp_path / "text.csv").write_text(CSV.replace(",3,", ",three,"))
    with pytest.raises(InputError, match="line 4"):
        dpg.read_questions(tmp_path / "text.csv")
    (tmp_path / "short.csv").write_text(CSV + "apple,an apple\n")
    with pytest.raises(InputError, match=r"short\.csv, line 6: fewer fields than columns"):
        dpg.read_questions(tmp_path / "short.csv")
    with pytest.raises(InputError, match="no questions about prompt 'dog'"):
        dpg.score(tmp_path, {"dog": "a dog"}, {}, lambda image, asked: [])
    with pytest.raises(InputError, match="no image"):
        dpg.score(tmp_path, {"whale": "a whale"}, dpg.read_questions(published[1]), lambda image, asked: [])


def test_prompts_and_questions_are_read_without_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfa red apple\r\n")
    (tmp_path / "questions.csv").write_bytes(b"\xef\xbb\xbf" + CSV.encode())
    assert dpg.read_prompts(tmp_path) == {"a": "a red apple"}
    assert dpg.read_questions(tmp_path / "questions.csv")
    (tmp_path / "A.txt").write_text("an apple")
    with pytest.raises(InputError, match="would be one file"):
        dpg.read_prompts(tmp_path)
    (tmp_path / "A.txt").unlink()
    (tmp_path / "b.txt").write_text(" \n")
    with pytest.raises(InputError, match=r"b\.txt: no prompt in it"):
        dpg.read_prompts(tmp_path)
