"""A source encoded once, and its contact sheet."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from anystep.data.example import BrokenExample, Example
from anystep.data.latents import encode_source
from anystep.data.overview import overview
from anystep.errors import InputError


class Colours(Sequence[Example]):
    """Forty plain images; every tenth is broken."""

    class_names = ["even", "odd"]

    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> Example:  # type: ignore[override]
        if index % 10 == 9:
            raise BrokenExample(f"{index}.png: broken")
        captions = () if index == 4 else (f"number {index}", f"{index}, a comma\tand a tab")
        return Example(str(index), Image.new("RGB", (4, 4), (index, 0, 255)), captions, index % 2)


def encode(images: Tensor) -> Tensor:
    return images[:, :2, ::2, ::2]


def test_latents_captions_and_labels_stay_together(tmp_path: Path) -> None:
    heard: list[tuple[int, int]] = []
    made = encode_source(Colours(), encode, tmp_path / "latents.safetensors", lambda *place: heard.append(place))
    kept = [index for index in range(40) if index % 10 != 9]
    assert len(made) == len(kept) == 36
    torch.testing.assert_close(made.latents[:, 0, 0, 0], torch.tensor(kept) / 127.5 - 1)
    assert made.labels == [index % 2 for index in kept]
    assert made.captions[0] == ("number 0", "0, a comma\tand a tab")
    assert made.captions[4] == ()
    assert made.class_names == ["even", "odd"]
    assert made.broken == [f"{index}.png: broken" for index in (9, 19, 29, 39)]
    assert heard[-1][1] == 40


def test_they_are_encoded_once_and_left_whole(tmp_path: Path) -> None:
    path = tmp_path / "latents.safetensors"
    made = encode_source(Colours(), encode, path)
    again = encode_source(Colours(), lambda images: pytest.fail("encoded twice"), path)
    assert torch.equal(again.latents, made.latents)
    assert (again.captions, again.labels, again.broken) == (made.captions, made.labels, made.broken)
    assert [file.name for file in tmp_path.iterdir()] == ["latents.safetensors"]


def test_an_interrupted_encoding_leaves_nothing_half(tmp_path: Path) -> None:
    def interrupted(images: Tensor) -> Tensor:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        encode_source(Colours(), interrupted, tmp_path / "latents.safetensors")
    assert not (tmp_path / "latents.safetensors").exists()


def test_broken_examples_at_the_end_do_not_swallow_those_before(tmp_path: Path) -> None:
    class Tail(Colours):
        def __len__(self) -> int:
            return 10  # 0 to 8 are whole, 9 is broken

    assert len(encode_source(Tail(), encode, tmp_path / "latents.safetensors")) == 9


def test_nothing_readable_is_one_line(tmp_path: Path) -> None:
    class Broken(Colours):
        def __getitem__(self, index: int) -> Example:  # type: ignore[override]
            return super().__getitem__(9)

    with pytest.raises(InputError, match=r"no example could be read; the first failure: 9\.png: broken"):
        encode_source(Broken(), encode, tmp_path / "latents.safetensors")


def test_overview_of_a_folder_leaves_broken_images_out(captioned_folder: Path, tmp_path: Path) -> None:
    for path in captioned_folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "00.png").write_bytes(b"no image")
    picture, shown, total = overview(str(tmp_path), 32, 100)
    assert (shown, total) == (11, 12)
    assert picture.height > 2 * 160


def test_overview_of_the_art_shows_every_background() -> None:
    picture, shown, total = overview("builtin", 24, 40)
    assert shown == 40 < total
    colours = {colour for _, colour in picture.getcolors(2**24)}
    from anystep.data.art import BACKGROUNDS

    assert set(BACKGROUNDS.values()) <= colours
