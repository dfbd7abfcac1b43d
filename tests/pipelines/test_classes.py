"""The pipeline of class-conditional models."""

from pathlib import Path

import pytest
import torch
from helpers import draw_latents as draw

import anystep
from anystep import TransitionClassPipeline, TransitionPipeline
from anystep.errors import InputError


@pytest.fixture(scope="module")
def classes(tiny_classes: Path) -> TransitionClassPipeline:
    loaded: TransitionClassPipeline = TransitionClassPipeline.from_pretrained(tiny_classes)
    loaded.set_progress_bar_config(disable=True)
    return loaded


def test_classes_are_drawn_by_label_and_by_name(classes: TransitionClassPipeline, tiny_classes: Path) -> None:
    assert classes.labels == {"ant": 0, "bee": 1, "cat": 2}
    assert classes.get_label_ids(["cat", "ant"]) == [2, 0]
    by_label = classes(class_labels=[2, 0], num_inference_steps=2, seeds=[0, 1], output_type="latent").images
    assert torch.equal(by_label, draw(classes, ["cat", "ant"]))
    assert torch.equal(by_label, draw(classes, torch.tensor([2, 0]), seeds=[0, 1]))
    general = TransitionPipeline.from_pipe(classes)
    general.set_progress_bar_config(disable=True)
    assert torch.equal(draw(general, ["cat", "ant"]), by_label)
    for name in ("cow", ["ant", "cow"]):
        with pytest.raises(InputError, match="unknown class 'cow'"):
            classes.get_label_ids(name)


def test_a_folder_names_its_class(classes: TransitionClassPipeline, tmp_path: Path) -> None:
    classes.save_pretrained(tmp_path)
    for loaded in (TransitionPipeline.from_pretrained(tmp_path), anystep.load(tmp_path, "cpu").pipeline):
        assert type(loaded) is TransitionClassPipeline
    assert anystep.load(tmp_path, "cpu")("cat", steps=1)[0].size == (8, 8)


def test_a_network_of_captions_is_none_of_classes(pipeline: TransitionPipeline) -> None:
    with pytest.raises(InputError, match="reads captions and no classes"):
        TransitionClassPipeline.from_pipe(pipeline)(3, seeds=[0])
