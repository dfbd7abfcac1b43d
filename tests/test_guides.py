"""The guides' own commands train."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from helpers import save_image

from anystep.cli import main

GUIDES = Path(__file__).parent.parent / "docs" / "guides"
MODELS = {  # what stands here for the models of others
    "stabilityai/stable-diffusion-3.5-medium": "sd3",
    "black-forest-labs/FLUX.1-dev": "flux",
    "Efficient-Large-Model/Sana_1600M_1024px_diffusers": "sana",
    "tim-t2i": "builtin",
}
SMALL = ["--run.steps=1", "--run.threads=1", "--run.batch_size=2", "--run.sample_every=0", "--data.limit=2"]
SMALL_PIPELINE = ["--data.size=32", "--lora.rank=2"]


def commands() -> list[list[str]]:
    """The lines of all guides that train, in words; those on shards are for a folder that another command has made."""
    texts = [path.read_text("utf-8").replace("\\\n", " ") for path in sorted(GUIDES.glob("*.md"))]
    lines = [line for text in texts for line in re.findall(r"^    anystep (train .*)", text, re.MULTILINE)]
    return [shlex.split(line, comments=True) for line in lines if "shards:" not in line]


def cases() -> list[Any]:
    """The commands; those of other models take seconds each."""
    slow = [words for words in commands() if words[1].startswith("adapt-") or "--dry-run" in words]
    return [pytest.param(words, marks=[pytest.mark.slow] * (words in slow), id=words[1]) for words in commands()]


def test_the_lines_that_train_are_found() -> None:
    assert {"emoji-guided", "lora", "adapt-sd3", "adapt-flux", "adapt-sana"} <= {words[1] for words in commands()}


@pytest.mark.parametrize("words", cases())
def test_every_line_of_the_guides_that_trains_takes_a_step(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("my/pictures", "chalk"):
        for name in ("one", "two"):
            save_image(tmp_path / folder / f"{name}.png", f"a picture, number {name}", (80, 64))
    adapts = words[1].startswith("adapt-")
    pipelines = request.getfixturevalue("baselines") if adapts else {}
    words = [str(pipelines.get(MODELS.get(word, word), MODELS.get(word, word))) for word in words]
    dry = "--dry-run" in words
    assert main([*words, *([] if dry else SMALL), *(SMALL_PIPELINE if adapts else [])]) == 0
    if not dry:
        out = Path(words[words.index("--out") + 1])
        assert len((out / "metrics.jsonl").read_text().splitlines()) == 1
