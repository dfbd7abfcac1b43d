"""What the page is told of a model is what the model can be asked for."""

from typing import Any

from anystep.pipelines.load import Model
from anystep.studio.model_card import model_card
from anystep.studio.request import ImageRequest, Limits, checked


def card(served: dict[str, Model], name: str) -> Any:
    return model_card(name, served[name], Limits(pixels=64 * 64))


def test_every_example_and_size_can_be_drawn(served: dict[str, Model]) -> None:
    for name in served:
        told = card(served, name)
        assert told["examples"]
        for prompt in told["examples"]:
            checked(ImageRequest(prompt, name), served[name], Limits())
        for size in told["sizes"]:
            checked(
                ImageRequest(told["examples"][0], name, size=(size["width"], size["height"])), served[name], Limits()
            )


def test_trained_shapes_are_marked_and_come_first(served: dict[str, Model]) -> None:
    sizes = card(served, "tiny")["sizes"]
    assert [(each["width"], each["height"], each["aspect"]) for each in sizes if each["trained"]] == [(16, 16, "1:1")]
    assert sizes[0]["trained"]
    shapes = [(each["width"], each["height"]) for each in sizes]
    assert len(set(shapes)) == len(shapes)
    assert (32, 32) in shapes  # twice the side
    assert all(width % 4 == height % 4 == 0 and width * height <= 64 * 64 for width, height in shapes)


def test_a_model_of_classes_shows_its_classes(served: dict[str, Model]) -> None:
    told = card(served, "classes")
    assert (told["reads_text"], told["examples"], told["concepts"]) == (
        False,
        ["ant", "bee", "cat"],
        ["ant", "bee", "cat"],
    )
    text = card(served, "tiny")
    assert text["reads_text"]
    assert text["examples"][0] == "a red apple"
    assert (text["guidance"], text["times"]) == (1.5, [0.0, 1.0])
