"""Folders of images that somebody else generated."""

from pathlib import Path

from PIL import Image

from anystep.evaluation.image_folders import list_folders, parse_folder


def test_folders_of_several_formats_are_noted(captioned_folder: Path, tmp_path: Path) -> None:
    for form in ("png", "jpg"):
        (tmp_path / form).mkdir()
        Image.open(captioned_folder / "00.png").save(tmp_path / form / f"0.{form}")
    listed, notes = list_folders([parse_folder(f"1={tmp_path / 'png'}"), parse_folder(f"2={tmp_path / 'jpg'}")], 1)
    assert [(each.names, each.size) for each in listed] == [(["0.png"], (16, 16)), (["0.jpg"], (16, 16))]
    assert notes == [
        f"Images were kept in several formats (PNG in {tmp_path / 'png'}, JPEG in {tmp_path / 'jpg'}): "
        "compression alone changes figures."
    ]
