"""Scenes hold what their captions say, and nothing overlaps."""

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anystep.data.art import BACKGROUNDS, PLAIN
from anystep.data.scenes import (
    CANVASES,
    COLOURS,
    TASKS,
    Scene,
    SceneSource,
    concepts,
    draw_scene,
    plural,
    tint,
)
from anystep.data.sizing import ResolutionLimits
from anystep.data.sources import open_source
from anystep.errors import InputError
from anystep.evaluation.benchmarks.detections import Detection, by_class, evaluate_detections


def seen(scene: Scene) -> list[Detection]:
    """What a perfect detector finds."""
    return [Detection(thing.concept, 1.0, tuple(map(float, thing.box)), thing.colour) for thing in scene.things]


@given(task=st.sampled_from(TASKS), seed=st.integers(0, 10_000), canvas=st.sampled_from(CANVASES))
def test_a_perfect_detector_finds_every_scene_right(task: str, seed: int, canvas: tuple[float, float]) -> None:
    scene = draw_scene(task, random.Random(seed), 64, canvas)  # type: ignore[arg-type]
    assert (scene.width, scene.height) == (canvas[0] * 64, canvas[1] * 64)
    found = seen(scene)
    assert evaluate_detections(scene.metadata, by_class(found), {each: each.colour or "" for each in found}).correct
    for place, thing in enumerate(scene.things):
        left, top, right, bottom = thing.box
        assert 0 <= left < right <= scene.width
        assert 0 <= top < bottom <= scene.height
        for other in scene.things[:place]:
            assert left >= other.box[2] or right <= other.box[0] or top >= other.box[3] or bottom <= other.box[1]


@given(seed=st.integers(0, 10_000))
def test_one_drawing_less_or_another_colour_is_wrong(seed: int) -> None:
    rng = random.Random(seed)
    counting = draw_scene("counting", rng)
    found = seen(counting)[1:]
    assert not evaluate_detections(counting.metadata, by_class(found), {}).correct
    coloured = draw_scene("color_attr", rng)
    found = seen(coloured)
    swapped = {each: (found[0].colour if each is found[1] else found[1].colour) or "" for each in found}
    assert not evaluate_detections(coloured.metadata, by_class(found), swapped).correct


def test_a_seed_means_one_picture() -> None:
    one, two = (draw_scene("two_object", random.Random("a")) for _ in range(2))
    assert one == two
    assert one.picture().tobytes() == two.picture().tobytes()
    assert one.picture().size == (one.width, one.height)


def test_a_tint_has_the_hue_it_is_named_for() -> None:
    from anystep.data.art import drawings, render

    whale = next(drawing for drawing in drawings() if drawing.name == "whale")
    art = render(whale, 64)
    for colour in COLOURS.values():
        tinted = tint(art, colour)
        assert tinted.getchannel("A").tobytes() == art.getchannel("A").tobytes()
        pixels = np.asarray(tinted, dtype=float)
        mean = pixels[..., :3][pixels[..., 3] > 200].mean(0)
        hue = mean / np.linalg.norm(mean)
        nearest = max(COLOURS.values(), key=lambda other: float(hue @ other / np.linalg.norm(other)))
        assert nearest == colour


def test_captions() -> None:
    assert plural("owl") == "owls"
    assert plural("cactus") == "cactuses"
    prompts = {task: draw_scene(task, random.Random(3)).prompt for task in TASKS}
    assert prompts["counting"].split()[0] in ("one", "two", "three", "four")
    assert " and " in prompts["two_object"]
    assert any(relation in prompts["position"] for relation in ("left of", "right of", "above", "below"))


def test_they_are_a_source_to_train_on() -> None:
    source = open_source("scenes", 64)
    assert isinstance(source, SceneSource)
    assert source[5].image.size == (64, 64)
    assert source[5] == source[5]
    assert [source.scene(number).task for number in range(5)] == list(TASKS[1:])
    assert len(concepts()) >= 40
    scenes = [source.scene(number) for number in range(200)]
    for scene in scenes:
        assert all(edge % 8 == 0 for thing in scene.things for edge in thing.box)
        ground = scene.prompt.partition(" on a")[2].removeprefix("n").removesuffix(" background").strip()
        assert scene.paper == (BACKGROUNDS[ground] if ground else PLAIN)
    assert 20 < sum(scene.paper != PLAIN for scene in scenes) < 80
    native = SceneSource(ResolutionLimits.within(8, 96, None, 2.0))
    for scene in map(native.scene, range(100)):
        assert all(edge % 8 == 0 for thing in scene.things for edge in thing.box)
    with pytest.raises(InputError, match="expected at least 32"):
        open_source("scenes", 16)
    with pytest.raises(IndexError):
        source[len(source)]
    for count in (0, -3):
        with pytest.raises(InputError, match=f"count {count}: expected a whole number"):
            open_source("scenes", 64, count=count)
