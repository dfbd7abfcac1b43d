"""Contact sheets of sources."""

from pathlib import Path

from anystep.data.overview import overview


def test_overview_of_a_folder_leaves_broken_images_out(captioned_folder: Path, tmp_path: Path) -> None:
    for path in captioned_folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "00.png").write_bytes(b"no image")
    sheet = overview(str(tmp_path), 32, 100)
    assert (sheet.shown, sheet.total, len(sheet.left_out)) == (11, 12, 1)
    assert "00.png: not an image" in sheet.left_out[0]
    assert sheet.picture.height > 2 * 160


def test_overview_of_the_art_shows_every_background() -> None:
    sheet = overview("builtin", 24, 40)
    assert sheet.shown == 40 < sheet.total
    colours = {colour for _, colour in sheet.picture.getcolors(2**24)}
    from anystep.data.art import BACKGROUNDS

    assert set(BACKGROUNDS.values()) <= colours
