"""The page of a model: written where it is saved and pushed, and never over somebody's own."""

import ast
import shlex
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

import anystep
from anystep import TransitionPipeline
from anystep.pipelines.model_card import model_card


def test_a_saved_model_says_what_it_is_and_how_to_draw(tiny_model: Path, pipeline: TransitionPipeline) -> None:
    card = ModelCard.load(tiny_model / "README.md")
    assert (card.data.license, card.data.library_name, card.data.pipeline_tag) == ("none", "diffusers", "text-to-image")
    assert card.data.tags == ["anystep", "diffusers:TransitionPipeline"]
    count = sum(each.numel() for each in pipeline.transformer.parameters())
    for line in (
        "pipe('a red apple', num_inference_steps=4).images[0]",
        "    anystep generate 'a red apple' --model THIS_MODEL --steps 1 2 4 8",
        f"| parameters of the transformer | {count:,} |",
        "| trained size | 16x16 |",
        "| guidance | 1.5 |",
    ):
        assert line in card.text, line


def test_words_with_quotes_and_colons_are_quoted(tiny_model: Path) -> None:
    pipeline = anystep.load(tiny_model, "cpu").pipeline
    pipeline.register_to_config(concepts=['dog\'s "house"'], license="Other: ask")
    card = ModelCard(model_card(pipeline))
    assert card.data.license == "other: ask"
    (code,) = [line for line in card.text.splitlines() if line.startswith("pipe(")]
    (command,) = [line for line in card.text.splitlines() if line.startswith("    anystep")]
    assert ast.literal_eval(code[5 : code.index(", num_")]) == 'a dog\'s "house"'
    assert shlex.split(command)[2] == 'a dog\'s "house"'


def test_a_model_of_classes_is_drawn_with_by_its_labels(tiny_classes: Path) -> None:
    card = ModelCard.load(tiny_classes / "README.md")
    assert "pipe(class_labels=[0], num_inference_steps=4)" in card.text
    assert "| classes | 3 |" in card.text
    assert card.data.license is None


def test_a_page_that_somebody_has_written_stays(pipeline: TransitionPipeline, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("mine")
    pipeline.save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() == "mine"


@pytest.mark.parametrize("own", [None, "---\nlicense: mit\n---\nmine\n"])
def test_what_is_pushed_has_the_page_too(
    own: str | None, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hub is stood in for: it has the model's page already, or none yet."""
    from huggingface_hub.errors import EntryNotFoundError

    pushed: list[str] = []

    def load(*_: Any, **__: Any) -> ModelCard:
        if own is None:
            raise EntryNotFoundError("none")
        return ModelCard(own)

    for where, name, stand_in in (
        ("diffusers.utils.hub_utils.ModelCard", "load", load),
        ("diffusers.pipelines.pipeline_utils", "create_repo", lambda repo, **_: type("Repo", (), {"repo_id": repo})),
        ("diffusers.utils.hub_utils", "upload_folder", lambda folder_path, **_: pushed.append(str(folder_path))),
    ):
        monkeypatch.setattr(f"{where}.{name}", stand_in)
    pipeline = anystep.load(tiny_model, "cpu").pipeline
    pipeline.save_pretrained(str(tmp_path / "out"), push_to_hub=True, repo_id="owner/name")
    assert pushed == [str(tmp_path / "out")]
    page = (tmp_path / "out" / "README.md").read_text()
    assert page == model_card(pipeline) if own is None else "mine" in page
