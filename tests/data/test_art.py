"""The built-in vector art: what the archive holds, how it is split, described and drawn."""

import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import resvg_py
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import ImageOps

from anystep.data import art
from anystep.data.art import (
    BACKGROUNDS,
    GROUNDS,
    PLAIN,
    STYLES,
    ArtSource,
    Drawing,
    Placement,
    caption,
    drawings,
    everyday_concepts,
    is_held_out,
)
from anystep.data.sizing import ResolutionLimits
from anystep.errors import InputError


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ANYSTEP_CACHE", str(tmp_path))
    art.render.cache_clear()
    return tmp_path


def find(style: str, name: str) -> Drawing:
    return next(drawing for drawing in drawings() if (drawing.style, drawing.name) == (style, name))


def test_archive_has_two_large_styles_and_unique_keys() -> None:
    counts = Counter(drawing.style for drawing in drawings())
    assert set(counts) == set(STYLES)
    assert min(counts.values()) > 1500
    assert len({drawing.key for drawing in drawings()}) == len(drawings())
    assert list(drawings()) == sorted(drawings(), key=lambda drawing: (drawing.style, drawing.name))


def test_archive_has_no_skin_tones_nor_flags() -> None:
    assert not [drawing.name for drawing in drawings() if "skin tone" in drawing.name]
    assert not {"component", "flags"} & {drawing.category for drawing in drawings()}


def test_everyday_concepts_are_a_few_hundred_of_the_archive() -> None:
    everyday = everyday_concepts()
    assert 200 < len(everyday) < 500
    assert len(set(everyday)) == len(everyday)
    assert set(everyday) <= {drawing.name for drawing in drawings()}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("red apple", "blue", "flat"), "a red apple on a blue background, flat style"),
        (("red apple", "orange"), "a red apple on an orange background"),
        (("octopus", None, "noto"), "an octopus, noto style"),
        (("bus",), "a bus"),
        (("socks",), "socks"),
        (("Christmas tree",), "a Christmas tree"),
    ],
)
def test_caption(arguments: tuple[str, ...], expected: str) -> None:
    assert caption(*arguments) == expected


def test_held_out_split_is_fixed_and_about_five_percent() -> None:
    names = {drawing.name for drawing in drawings()}
    assert 0.04 < sum(map(is_held_out, names)) / len(names) < 0.07
    # changing the split would make every published number incomparable
    assert [name for name in ("alien", "balloon", "bus", "snail", "sunflower") if is_held_out(name)] == [
        "alien", "balloon", "bus", "snail", "sunflower",
    ]  # fmt: skip
    assert not any(map(is_held_out, ("red apple", "rocket", "octopus", "cactus", "dog face")))


def test_no_held_out_concept_is_in_train_in_any_style() -> None:
    train, held_out, both = (ArtSource(split=split) for split in ("train", "held_out", "both"))
    assert not set(train.class_names) & set(held_out.class_names)
    assert not any(map(is_held_out, train.class_names))
    assert all(map(is_held_out, held_out.class_names))
    assert len(train) + len(held_out) == len(both) == len(drawings()) * len(GROUNDS)


def test_source_draws_every_background_and_names_it() -> None:
    source = ArtSource(32, "everyday", "train", ("flat",))
    examples = [source[index] for index in range(len(GROUNDS))]
    assert len({example.key for example in examples}) == len(GROUNDS)
    for example, background in zip(examples, GROUNDS, strict=True):
        colour = PLAIN if background is None else BACKGROUNDS[background]
        name = source.class_names[example.label]
        assert example.image.size == (32, 32)
        assert example.image.getpixel((0, 0)) == colour
        assert len(example.image.getcolors(1024)) > 1, "nothing but the background"
        assert example.captions == (caption(name, background, "flat"), caption(name, background))


def test_a_caption_determines_the_ground_and_the_number_of_an_example_how_the_drawing_stands() -> None:
    source = ArtSource(ResolutionLimits.within(8, 96, None, 2.0), "everyday", "train")
    examples = [source[index] for index in range(0, len(source), 7)]
    grounds: dict[str, set[Any]] = {}
    for example in examples:
        for text in example.captions:
            grounds.setdefault(text.partition(" on ")[2].partition(",")[0], set()).add(example.image.getpixel((0, 0)))
    assert all(len(colours) == 1 for colours in grounds.values())
    sizes = Counter(example.image.size for example in examples)
    assert set(sizes) == {(64, 64), (96, 64), (64, 96), (128, 64), (64, 128), (96, 96)}
    assert [size for size, _ in sizes.most_common(2)] == [(64, 64), (96, 96)]
    assert sizes[64, 64] + sizes[96, 96] > len(examples) / 2
    drawing = find("noto", "rocket")
    placements = [Placement.draw(drawing, random.Random(seed)) for seed in range(40)]
    assert 20 < sum(each == Placement() for each in placements) < 40
    assert not any(each.mirrored for each in placements)  # a rocket is no animal
    fox = find("noto", "fox")
    assert any(Placement.draw(fox, random.Random(seed)).mirrored for seed in range(40))
    whole, turned = (art.compose(fox, None, 64, 64, Placement(mirrored=mirrored)) for mirrored in (False, True))
    assert ImageOps.mirror(whole).tobytes() == turned.tobytes()
    assert whole.tobytes() != turned.tobytes()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(style=st.sampled_from(STYLES), seed=st.integers(0, 10_000))
def test_drawings_are_whole_on_every_canvas(style: str, seed: int) -> None:
    drawing = find(style, "red apple")
    for width, height in ((64, 64), (128, 64), (64, 96)):
        image = np.asarray(art.compose(drawing, None, width, height, Placement.draw(drawing, random.Random(seed))))
        for edge in (image[0], image[-1], image[:, 0], image[:, -1]):
            assert (edge == PLAIN).all()


def test_source_limits_vocabulary_and_styles() -> None:
    source = ArtSource(32, "everyday", styles=("noto",))
    assert set(source.class_names) <= set(everyday_concepts())
    assert {drawing.style for drawing in source.drawings} == {"noto"}
    with pytest.raises(IndexError):
        source[len(source)]
    with pytest.raises(InputError, match="styles are"):
        ArtSource(styles=("oil",))


def test_canvas_need_not_be_square() -> None:
    image = art.compose(find("flat", "red apple"), "green", 48, 24)
    assert image.size == (48, 24)
    assert image.getpixel((4, 12)) == BACKGROUNDS["green"]
    assert image.getpixel((24, 14)) != BACKGROUNDS["green"]


def test_rendering_happens_once_and_is_then_read_from_disk(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    rasterise = resvg_py.svg_to_bytes
    monkeypatch.setattr(resvg_py, "svg_to_bytes", lambda **options: calls.append(options) or rasterise(**options))
    first = art.render(find("noto", "rocket"), 24)
    art.render.cache_clear()  # as a new process would start
    second = art.render(find("noto", "rocket"), 24)
    assert len(calls) == 1
    assert first.mode == "RGBA"
    assert first.size == (24, 24)
    assert first.tobytes() == second.tobytes()
    assert [path.suffix for path in cache.rglob("*") if path.is_file()] == [".png"]


def test_a_damaged_cache_is_rendered_again_and_one_that_cannot_be_written_is_done_without(
    cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    drawing = find("noto", "rocket")
    expected = art.render(drawing, 24)
    (path,) = [path for path in cache.rglob("*.png") if path.stem == drawing.key]
    for content in (b"", path.read_bytes()[:100]):
        path.write_bytes(content)
        art.render.cache_clear()
        assert art.render(drawing, 24).tobytes() == expected.tobytes()
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("ANYSTEP_CACHE", str(tmp_path / "file" / "below"))
    art.render.cache_clear()
    assert art.render(drawing, 24).tobytes() == expected.tobytes()
