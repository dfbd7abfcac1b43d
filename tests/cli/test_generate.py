"""`anystep generate`: prompts and seeds in, images that can be drawn again out."""

import io
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from helpers import refused
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from anystep import __version__
from anystep.cli import main
from anystep.pipelines.load import load


@pytest.fixture(autouse=True)
def inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def generate(tiny_model: Path) -> Any:
    """`generate(words, ...)` with the small model: the exit code."""

    def run(*words: str, model: bool = True) -> int:
        return main(["generate", *words, *(["--model", str(tiny_model)] if model else [])])

    return run


def settings(path: str | Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(Image.open(path).info["anystep"])
    return content


def pixels(path: str | Path) -> bytes:
    return Image.open(path).tobytes()


def names(folder: str) -> list[str]:
    return sorted(path.name for path in Path(folder).iterdir())


def test_a_count_or_seeds_draw_several_images_of_each_prompt(generate: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert generate("a whale", "a tractor", "--steps", "1", "--seed", "3", "--count", "2", "--separate", "x") == 0
    assert names("x") == [f"{row:02d}-seed-{seed}-steps-001.png" for row in (0, 1) for seed in (3, 4)]
    assert "wrote anystep.png (seeds 3 4)" in capsys.readouterr().out
    assert generate("a whale", "--steps", "1", "2", "--seeds", "4", "9", "--separate", "y") == 0
    assert pixels("y/00-seed-4-steps-001.png") == pixels("x/00-seed-4-steps-001.png")
    assert len(names("y")) == 4
    assert settings("anystep-1.png")["seeds"] == [4, 9]


def test_many_seeds_are_a_sheet_of_several_rows(generate: Any) -> None:
    assert generate("a whale", "--steps", "1", "--count", "10", "--out", "many.png") == 0
    assert generate("a whale", "--steps", "1", "--count", "8", "--out", "few.png") == 0
    many, few = Image.open("many.png"), Image.open("few.png")
    assert many.width < few.width + 250
    assert many.height > few.height + 100


def test_prompts_come_from_a_file_or_standard_input(
    generate: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("prompts.txt").write_bytes(b"\xef\xbb\xbfa whale\r\n\r\n  a tractor \n")
    assert generate("a red apple", "--prompts-file", "prompts.txt", "--steps", "1", "--out", "a.png") == 0
    assert settings("a.png")["prompts"] == ["a red apple", "a whale", "a tractor"]
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"a whale\n\na tractor\n")))
    assert generate("-", "--steps", "1", "--out", "b.png") == 0
    assert settings("b.png")["prompts"] == ["a whale", "a tractor"]
    capsys.readouterr()
    for content, message in ((b"\n\n", "there is no prompt"), (b"caf\xe9", "not UTF-8 text"), (b"a\0b", "control")):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content)))
        assert generate("-", "--out", "c.png") == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        ["--steps", "1", "2", "a whale"],
        ["--steps", "1", "2", "--seed", "3", "a whale"],
        ["--seeds", "3", "--steps", "1", "2", "a whale"],
        ["a whale", "--steps", "1", "2", "--seed", "3"],
    ],
)
def test_a_prompt_may_come_after_the_options(generate: Any, words: list[str]) -> None:
    assert generate(*words, "--out", "a.png") == 0
    assert (settings("a.png")["prompts"], settings("a.png")["steps"]) == (["a whale"], [1, 2])
    assert generate("a whale", "--steps", "1", "a tractor", "--guidance", "2", "a red whale", "--out", "b.png") == 0
    assert settings("b.png")["prompts"] == ["a whale", "a tractor", "a red whale"]


def test_a_random_seed_is_told_and_another_each_time(generate: Any, capsys: pytest.CaptureFixture[str]) -> None:
    for out in ("a.png", "b.png"):
        assert generate("a whale", "--steps", "1", "--seed", "random", "--out", out) == 0
        assert f"wrote {out} (seed {settings(out)['seeds'][0]})" in capsys.readouterr().out
    assert settings("a.png")["seeds"] != settings("b.png")["seeds"]


def test_an_image_holds_its_settings(generate: Any, tiny_model: Path) -> None:
    assert (
        generate("a whale", "--steps", "2", "--seed", "5", "--size", "24x16", "--guidance", "0", "--out", "a.png") == 0
    )
    said = settings("a.png")
    digest = said.pop("model_digest")
    assert said == {
        "format": 1, "version": __version__, "model": str(tiny_model), "prompts": ["a whale"], "seeds": [5],
        "steps": [2], "nfe": [2], "guidance": 1.0, "size": [24, 16],
    }  # fmt: skip
    people = Image.open("a.png").info["parameters"]
    assert people.splitlines()[0] == "a whale"
    assert all(word in people for word in ("Steps: 2,", "Seed: 5", "CFG scale: 1", f"Model hash: {digest}"))
    assert generate("красный 🐳 whale", "--steps", "1", "--out", "b.png") == 0
    assert settings("b.png")["prompts"] == ["красный 🐳 whale"]
    for name in ("c.jpg", "c.webp"):
        assert generate("a whale", "--steps", "1", "--seed", "7", "--out", name) == 0
        assert generate("--like", name, "--out", "d.png", model=False) == 0
        assert settings("d.png")["seeds"] == [7]


@pytest.mark.parametrize(
    "words",
    [
        ["--steps", "2", "--seed", "5", "--size", "24x16", "--guidance", "3", "--guidance-interval", "0.2", "0.9"],
        ["--steps", "3", "--stochasticity", "0.5", "--rope-scaling", "ntk", "--key-grid", "2"],
        ["--steps", "8", "--finish-after", "3"],
    ],
)
def test_an_image_is_drawn_again_to_the_bit_from_itself(generate: Any, words: list[str]) -> None:
    assert generate("a whale", *words, "--out", "a.png") == 0
    assert generate("--like", "a.png", "--out", "b.png", model=False) == 0
    assert pixels("b.png") == pixels("a.png")
    assert settings("b.png") == settings("a.png")
    assert generate("--like", "a.png", "--seed", "6", "--out", "c.png", model=False) == 0
    assert pixels("c.png") != pixels("a.png")
    assert settings("c.png") == {**settings("a.png"), "seeds": [6]}


def test_an_image_may_be_finished_after_some_of_its_steps(generate: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert generate("a whale", "--steps", "8", "--guidance", "1", "--finish-after", "3", "--out", "a.png") == 0
    assert (settings("a.png")["nfe"], settings("a.png")["finish_after"]) == ([4], 3)
    assert "finish_after 3: expected fewer than the 3 transitions" in refused(
        capsys, "generate", "--like", "a.png", "--steps", "3", "--out", "b.png"
    )


def test_an_image_is_drawn_again_in_the_precision_it_was_drawn_in(
    generate: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert generate("a whale", "--steps", "1", "--precision", "bfloat16", "--out", "a.png") == 0
    assert settings("a.png")["precision"] == "bfloat16"
    assert generate("--like", "a.png", "--out", "b.png", model=False) == 0
    assert (pixels("b.png"), settings("b.png")) == (pixels("a.png"), settings("a.png"))
    capsys.readouterr()
    assert generate("--like", "a.png", "--precision", "float32", "--out", "c.png", model=False) == 0
    assert "was drawn by another model than" in capsys.readouterr().err
    assert "precision" not in settings("c.png")
    assert pixels("c.png") != pixels("a.png")


def test_a_planned_image_is_drawn_again_whatever_becomes_of_the_plans(
    generate: Any, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(tiny_model, "planned")
    config = Path("planned/scheduler/scheduler_config.json")
    before = config.read_text()
    plans = {"2": {"steps": 2, "tail": 0.2}, "8": {"steps": 2, "tail": 0.2}}
    config.write_text(json.dumps({**json.loads(before), "plans": plans}))

    def draw(out: str, *words: str) -> dict[str, Any]:
        assert main(["generate", *words, "--model", "planned", "--out", out]) == 0
        return settings(out)

    made = draw("a.png", "a whale", "--steps", "8", "--guidance", "1")
    assert (made["steps"], made["nfe"], made["plans"]) == ([8], [2], {"8": {"steps": 2, "tail": 0.2}})
    assert "8, 2 made" in capsys.readouterr().out
    even = draw("b.png", "a whale", "--steps", "8", "--guidance", "1", "--plan", "uniform")
    assert (even["nfe"], even.get("plans")) == ([8], None)
    shifted = draw("c.png", "a whale", "--steps", "2", "--shift", "3")
    assert shifted["plans"] == {"2": {"steps": 2, "shift": 3.0, "tail": 0.2}}
    assert draw("again.png", "--like", "b.png") == even
    assert pixels("again.png") == pixels("b.png")
    draw("d.png", "a whale", "--steps", "2", "--shift", "3", "--plan", "uniform")
    for like, *words in (  # other steps are planned as those were
        ("a.png", "--guidance", "1"),
        ("b.png", "--guidance", "1", "--plan", "uniform"),
        ("c.png", "--shift", "3"),
        ("d.png", "--shift", "3", "--plan", "uniform"),
    ):
        other = draw("other.png", "a whale", "--steps", "3", *words)
        assert draw("again.png", "--like", like, "--steps", "3") == other
        assert pixels("again.png") == pixels("other.png")
    config.write_text(before)
    for name, told in (("a.png", made), ("c.png", shifted)):
        assert draw("again.png", "--like", name) == told
        assert pixels("again.png") == pixels(name)
    assert main(["generate", "--like", "a.png", "--model", "planned", "--steps", "3", "--out", "no.png"]) == 2
    assert "a.png' was drawn by plans of its own, which say nothing of 3 steps: choose" in capsys.readouterr().err
    draw("again.png", "--like", "a.png", "--plan", "uniform")
    assert pixels("again.png") == pixels("b.png")


def test_every_separate_image_is_drawn_again_to_the_bit(generate: Any) -> None:
    assert generate("a whale", "a tractor", "--steps", "1", "2", "--seeds", "3", "4", "--separate", "x") == 0
    assert len(names("x")) == 8
    for name in ("00-seed-3-steps-002.png", "01-seed-4-steps-001.png"):
        assert generate("--like", f"x/{name}", "--out", "again.png", model=False) == 0
        assert pixels("again.png") == pixels(f"x/{name}")


def test_an_image_that_was_started_from_is_asked_for_again(generate: Any, capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("RGB", (16, 16), "red").save("red.png")
    Image.new("RGB", (16, 16), "blue").save("blue.png")
    start = ["--image", "red.png", "--strength", "0.4"]
    assert generate("a whale", "--steps", "2", *start, "--out", "a.png") == 0
    assert settings("a.png")["image"] == "red.png"
    capsys.readouterr()
    assert generate("--like", "a.png", model=False) == 2
    assert "was begun with the image 'red.png': give it with --image" in capsys.readouterr().err
    assert generate("--like", "a.png", "--image", "red.png", "--out", "b.png", model=False) == 0
    assert pixels("b.png") == pixels("a.png")
    assert capsys.readouterr().err == ""
    assert generate("--like", "a.png", "--image", "blue.png", "--out", "c.png", model=False) == 0
    assert "is not the image" in capsys.readouterr().err


def test_another_or_a_missing_model_is_told(
    generate: Any, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert generate("a whale", "--steps", "1", "--out", "a.png") == 0
    moved = shutil.copytree(tiny_model, "moved")
    assert main(["generate", "--like", "a.png", "--model", str(moved), "--out", "b.png"]) == 0
    assert pixels("b.png") == pixels("a.png")
    assert capsys.readouterr().err == ""  # the same model somewhere else
    index = json.loads(Path("moved/model_index.json").read_text())
    Path("moved/model_index.json").write_text(json.dumps({**index, "guidance_scale": 3.0}))
    assert main(["generate", "--like", "a.png", "--model", "moved", "--out", "c.png"]) == 0
    assert "was drawn by another model" in capsys.readouterr().err
    rewrite("b.png", {**settings("b.png"), "model": "moved"})
    assert generate("--like", "b.png", "--out", "d.png", model=False) == 2
    assert "was drawn by another model" in capsys.readouterr().err
    assert not Path("d.png").exists()
    assert generate("--like", "b.png", "--out", "d.png", "--precision", "float32", model=False) == 2
    assert generate("--like", "b.png", "--out", "d.png", "--force", model=False) == 0
    for name in ("gone", "nobody/nothing", "/nowhere/x"):  # nothing is fetched because a file says so
        rewrite("b.png", {**settings("b.png"), "model": name})
        capsys.readouterr()
        assert generate("--like", "b.png", model=False) == 2
        assert f"model '{name}', which is not here" in capsys.readouterr().err


def rewrite(path: str, content: Any) -> None:
    info = PngInfo()
    info.add_text("anystep", content if isinstance(content, str) else json.dumps(content))
    image = Image.open(path).copy()
    image.info = {}
    image.save(path, pnginfo=info)


GOOD = {
    "version": "1", "model": "builtin", "model_digest": "x", "prompts": ["a whale"], "seeds": [0], "steps": [1],
    "nfe": [1], "guidance": 1.0, "size": [16, 16],
}  # fmt: skip


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[1]", "does not say how it was made"),
        ("{", "not JSON"),
        ('{"a":' * 100_000, "nested too deeply"),
        ({}, "version: field required"),
        ({**GOOD, "format": 2}, "format: input should be 1, got 2"),
        ({**GOOD, "steps": [0]}, "steps.0"),
        ({**GOOD, "steps": ["many"]}, "steps.0"),
        ({**GOOD, "steps": []}, "steps"),
        ({**GOOD, "seeds": [2**70]}, "seeds.0"),
        ({**GOOD, "guidance": -1}, "guidance"),
        ({**GOOD, "size": [16]}, "size"),
        ({**GOOD, "size": [10**9, 16]}, "size.0"),
        ({**GOOD, "prompts": [5]}, "prompts.0"),
        ({**GOOD, "rope_scaling": "x"}, "rope_scaling"),
        ({**GOOD, "seeds": list(range(2000))}, "2,000 images: expected at most 1,000"),
        (json.dumps(GOOD).replace("1.0", "NaN"), "guidance"),
    ],
)
def test_settings_that_cannot_be_are_one_line(
    generate: Any, capsys: pytest.CaptureFixture[str], content: Any, message: str
) -> None:
    Image.new("RGB", (4, 4)).save("a.png")
    rewrite("a.png", content)
    assert generate("--like", "a.png", "--out", "b.png") == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert not Path("b.png").exists()


def test_files_that_are_no_images_of_ours_are_one_line(generate: Any, capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("RGB", (4, 4)).save("plain.png")
    Image.new("RGB", (4, 4)).save("plain.gif")
    Path("text.png").write_text("no image")
    Path("cut.png").write_bytes(Path("plain.png").read_bytes()[:20])
    for name in ("plain.png", "plain.gif", "text.png", "cut.png", "gone.png", "."):
        assert generate("--like", name) == 2
        said = capsys.readouterr().err
        assert name in said
        assert said.count("\n") == 1


def test_one_bad_prompt_does_not_end_the_others(generate: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert generate("a whale", "xyzzy qwrt", "  ", "a tractor", "--steps", "1", "--out", "a.png") == 2
    captured = capsys.readouterr()
    assert settings("a.png")["prompts"] == ["a whale", "a tractor"]
    first, second = captured.err.splitlines()
    assert "does not know 'xyzzy qwrt': nearest are" in first
    assert "empty prompt" in second
    assert generate("xyzzy qwrt", "jurisprudence", "--steps", "1", "--out", "b.png") == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not Path("b.png").exists()


def test_force_draws_what_the_model_does_not_know(generate: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert generate("xyzzy qwrt", "--force", "--steps", "1", "--out", "a.png") == 0
    assert "warning: this model does not know 'xyzzy qwrt'" in capsys.readouterr().err
    assert settings("a.png")["prompts"] == ["xyzzy qwrt"]


def test_no_name_is_taken_twice_unless_it_is_given(generate: Any, capsys: pytest.CaptureFixture[str]) -> None:
    Path("anystep.png").write_text("mine")
    for number in (1, 2):
        assert generate("a whale", "--steps", "1") == 0
        assert f"wrote anystep-{number}.png" in capsys.readouterr().out
    assert Path("anystep.png").read_text() == "mine"
    assert generate("a whale", "--steps", "1", "--out", "anystep.png") == 0
    assert settings("anystep.png")["seeds"] == [0]


def test_separate_images_replace_our_own_only(generate: Any, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        assert generate("a whale", "--steps", "1", "--separate", "x") == 0
    Image.new("RGB", (4, 4)).save("x/00-steps-001.png")
    before = Path("x/00-steps-001.png").read_bytes()
    assert generate("a whale", "--steps", "1", "--separate", "x", "--out", "never.png") == 2
    assert "would be overwritten" in capsys.readouterr().err
    assert Path("x/00-steps-001.png").read_bytes() == before
    assert not Path("never.png").exists()


def test_a_model_is_sampled_as_it_was_trained(tiny_model: Path) -> None:
    shutil.copytree(tiny_model, "consistent")
    index = json.loads(Path("consistent/model_index.json").read_text())
    Path("consistent/model_index.json").write_text(json.dumps({**index, "sampling": "consistency"}))
    assert main(["generate", "a whale", "--model", "consistent", "--steps", "4", "--out", "a.png"]) == 0
    drawn = load("consistent").generate("a whale", 4, seed=0)
    assert pixels("a.png") == drawn.images[0].tobytes()
    assert main(["generate", "a whale", "--model", "consistent", "--steps", "4", "--stochasticity", "0"]) == 0
    assert pixels("anystep.png") != pixels("a.png")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["a whale", "--seeds", "1", "--seed", "2"], "--seed 2: --seeds names them all"),
        (["a whale", "--seeds", "1", "--count", "2"], "--count 2: --seeds names them all"),
        (["a whale", "--count", "0"], "--count: '0': expected a whole number from 1"),
        (["a whale", "--count", "1001"], "1,001 images: expected at most 1,000"),
        (["a whale", "--seed", "rand"], "'rand': expected a whole number from 0"),
        (["a whale", "--seed", str(2**62 - 1), "--count", "2"], "--seed 4611686018427387904: expected"),
        (["a whale", "--strength", "0.5"], "--strength 0.5: goes with --image only"),
        (["a whale", "--prompts-file", "gone.txt"], "no such file"),
        (["--steps", "1"], "required: PROMPT"),
    ],
)
def test_what_does_not_go_together_is_one_line(
    generate: Any, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert generate(*words, "--out", "never.png") == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert not Path("never.png").exists()


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
        (["a whale", "--out", "x.txt"], "suffix '.txt': expected .png, .jpg, .jpeg, .webp"),
        (["a whale", "--out", "x.ico"], "suffix '.ico': expected .png"),
        (["a whale", "--out", "x" * 240 + ".png"], "File name too long"),
        (["a whale", "--size", "16384x3280", "--steps", "1", "--out", "x.webp"], "more than the 16383 along a side"),
        (["a whale", "--steps", *map(str, range(1, 100)), "--out", "x.webp"], "more than the 16383 along a side"),
        (["a whale", "--steps", *map(str, range(1, 420)), "--out", "x.jpg"], "more than the 65500 along a side"),
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


def test_a_summary_for_machines(generate: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert generate("a whale", "xyzzy qwrt", "--steps", "1", "2", "--separate", "x", "--json") == 2
    told = json.loads(capsys.readouterr().out)
    assert told["out"] == "anystep.png"
    assert told["separate"] == ["x/00-steps-001.png", "x/00-steps-002.png"]
    assert [(row["steps"], row["nfe"]) for row in told["steps"]] == [(1, 2), (2, 4)]
    assert "xyzzy" in told["refused"][0]


def test_a_reader_that_has_gone_is_told_by_the_exit_code(generate: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for words in ([], ["--json"]):
        reading, writing = os.pipe()
        os.close(reading)
        with monkeypatch.context() as patched:
            patched.setattr("sys.stdout", os.fdopen(writing, "w"))
            assert generate("a whale", "--steps", "1", "--out", "a.png", *words) == 141


def test_a_prompts_file_may_be_standard_input(generate: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"a whale\n\na tractor\n")))
    assert generate("a red apple", "--prompts-file", "-", "--steps", "1", "--out", "a.png") == 0
    assert settings("a.png")["prompts"] == ["a red apple", "a whale", "a tractor"]


@pytest.fixture(scope="module")
def adapter(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an adapter of the small model."""
    from anystep.models.lora import LORA_FILE, adapter_parameters, add_lora, lora_of, write_lora

    network, folder = load(tiny_model, "cpu").pipeline.transformer, tmp_path_factory.mktemp("adapter")
    add_lora(network, 2, 4.0, ["to_q", "mlp.up"])
    for value in adapter_parameters(network).values():
        value.data.fill_(0.3)
    write_lora(lora_of(network), folder / LORA_FILE)
    return folder


def test_adapters_are_drawn_with_and_told(generate: Any, adapter: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("a whale", "--steps", "1")
    assert generate(*words, "--out", "plain.png") == 0
    assert generate(*words, "--out", "none.png", "--lora", f"{adapter}:0") == 0
    assert generate(*words, "--out", "half.png", "--lora", f"{adapter}:0.5") == 0
    assert generate(*words, "--out", "twice.png", "--lora", f"{adapter}:0.25", f"{adapter}:0.25") == 0
    assert pixels("none.png") == pixels("plain.png")
    assert pixels("half.png") == pixels("twice.png") != pixels("plain.png")
    told = settings("half.png")
    assert told["model_digest"] == settings("plain.png")["model_digest"]
    assert [(each["name"], each["scale"]) for each in told["lora"]] == [(str(adapter), 0.5)]
    assert "Lora: " in Image.open("half.png").info["parameters"]
    again = refused(capsys, "generate", "--like", "half.png", "--out", "again.png")
    assert "was drawn with --lora" in again
    assert generate("--like", "half.png", "--lora", f"{adapter}:0.5", "--out", "again.png", model=False) == 0
    assert pixels("again.png") == pixels("half.png")
    assert "--lora: '9e9': expected a number" in refused(capsys, "generate", *words, "--lora", f"{adapter}:9e9")
    assert "no LoRA at 'nowhere'" in refused(capsys, "generate", *words, "--lora", "nowhere:2")
