"""Labelled grids and saving."""

import errno
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from anystep.contact_sheet import (
    PAPER,
    Line,
    check_writable,
    contact_sheet,
    font_with,
    legible,
    save_image,
    shorten,
    spelt,
    wrap,
)
from anystep.errors import InputError

COLOURS = [(200, 30, 30), (30, 160, 60), (40, 70, 200), (230, 170, 20)]


def grid(rows: int, columns: int, size: tuple[int, int] = (16, 16)) -> list[list[Image.Image]]:
    return [[Image.new("RGB", size, COLOURS[(r + c) % 4]) for c in range(columns)] for r in range(rows)]


def paper() -> tuple[int, ...]:
    return Image.new("RGB", (1, 1), PAPER).getpixel((0, 0))


def boxes(sheet: Image.Image, colour: tuple[int, int, int]) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) of all pixels of exactly one colour."""
    rows, columns = np.nonzero((np.asarray(sheet) == colour).all(-1))
    return columns.min(), rows.min(), columns.max() + 1, rows.max() + 1


def test_small_images_are_scaled_to_the_cell() -> None:
    for cell, side in ((100, 100), (None, 160)):
        left, top, right, bottom = boxes(contact_sheet(grid(1, 1), None, None, cell), COLOURS[0])
        assert (right - left, bottom - top) == (side, side)


def test_default_cell_keeps_large_images_as_they_are() -> None:
    image = Image.effect_noise((300, 200), 40).convert("RGB")
    sheet = contact_sheet([[image]], None, None)
    left, top = (sheet.width - 300) // 2, (sheet.height - 200) // 2
    inner = (20, 20, 280, 180)
    assert sheet.crop((left, top, left + 300, top + 200)).crop(inner).tobytes() == image.crop(inner).tobytes()


def test_shape_is_kept_and_centred_in_its_cell() -> None:
    wide = Image.new("RGB", (40, 10), COLOURS[1])
    sheet = contact_sheet([[grid(1, 1)[0][0], wide]], None, None, 120)
    square, strip = boxes(sheet, COLOURS[0]), boxes(sheet, COLOURS[1])
    assert (strip[2] - strip[0], strip[3] - strip[1]) == (120, 30)
    assert strip[1] + strip[3] == square[1] + square[3]


def test_labels_make_room_outside_the_grid() -> None:
    plain = contact_sheet(grid(2, 3), None, None)
    rows, columns = ["a red apple on a blue background, flat style", "x"], ["1 step\n1 NFE, 9 ms"] * 3
    labelled = contact_sheet(grid(2, 3), rows, columns, title="Any step")
    assert labelled.mode == "RGB"
    assert labelled.width > plain.width
    assert labelled.height > plain.height
    shift = labelled.width - plain.width, labelled.height - plain.height
    before, after = boxes(plain, COLOURS[0]), boxes(labelled, COLOURS[0])
    assert [b - a for a, b in zip(before, after, strict=True)] == [*shift, *shift]


def test_a_very_long_label_stays_within_its_row_and_the_sheet() -> None:
    sheet = contact_sheet(grid(2, 1), ["very long indeed " * 60, "x" * 40], None, 64)
    pixels = np.asarray(sheet)
    border = np.concatenate([pixels[:8].reshape(-1, 3), pixels[-8:].reshape(-1, 3), pixels[:, :8].reshape(-1, 3)])
    assert (border == paper()).all()
    assert sheet.height == contact_sheet(grid(2, 1), None, None, 64).height


def test_short_rows_and_other_modes() -> None:
    rows = [[Image.new("L", (8, 8), 10)], [Image.new("RGBA", (8, 8)), Image.new("P", (8, 8))], []]
    assert contact_sheet(rows, None, ["a", "b"]).mode == "RGB"


def test_images_of_extreme_shape() -> None:
    sheet = contact_sheet([[Image.new("RGB", (1, 999), COLOURS[0]), Image.new("RGB", (999, 1))]], None, None, 64)
    assert sheet.height < 128


def test_counts_must_agree() -> None:
    for rows, rows_labels, columns_labels in (
        ([], None, None), ([[]], None, None), (grid(2, 2), ["a"], None), (grid(2, 2), None, ["a", "b", "c"]),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=r"needs an image|expected 2 labels"):
            contact_sheet(rows, rows_labels, columns_labels)


def test_wrap_breaks_words_only_where_one_alone_is_too_wide() -> None:
    lines = list(wrap("a rather long label with antidisestablishmentarianism here\nend", 14, 90))
    assert [line.text for line in lines] == [
        "a rather long", "label with", "antidisestabli", "shmentarianis", "m here", "end"
    ]  # fmt: skip
    assert all(line.width <= 90 for line in lines)
    for text in ("красныйкит" * 20, "鲸" * 90, "x"):
        lines = list(wrap(text, 14, 90))
        assert "".join(line.text for line in lines) in (text, spelt(text))
        assert all(0 < line.width <= 90 for line in lines)
    assert [line.text for line in wrap("abc", 14, 1)] == ["a", "b", "c"]


def test_of_a_page_of_text_no_more_is_measured_than_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    measure, measured = Line.width.fget, []
    monkeypatch.setattr(Line, "width", property(lambda line: measured.append(line.text) or measure(line)))
    for text in ("x" * 10_000, "x " * 5_000):
        measured.clear()
        assert [line.text[-3:] for line in shorten(wrap(text, 14, 90), 60)][-1] == "..."
        assert len(measured) < 200


def test_legible_in_the_built_in_font() -> None:
    assert legible("piñata, 64×64 – “crème”") == "pinata, 64x64 - “creme”"


@pytest.mark.parametrize(("suffix", "form"), [(".png", "PNG"), (".jpg", "JPEG"), (".WEBP", "WEBP")])
def test_save_image_takes_the_format_from_the_suffix(tmp_path: Path, suffix: str, form: str) -> None:
    path = tmp_path / f"sheet{suffix}"
    path.write_bytes(b"old")
    save_image(grid(1, 1)[0][0], path)
    with Image.open(path) as image:
        assert (image.format, image.size) == (form, (16, 16))
    assert list(tmp_path.iterdir()) == [path]


def test_new_file_has_the_usual_permissions(tmp_path: Path) -> None:
    (tmp_path / "usual").touch()
    save_image(grid(1, 1)[0][0], tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_mode == (tmp_path / "usual").stat().st_mode


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("a.docx", "suffix '.docx'"),
        ("a.bmp", "suffix '.bmp': expected .png, .jpg, .jpeg, .webp"),
        ("a", "suffix ''"),
        ("no/a.png", "there is no folder"),
        ("d.png", "it is a folder"),
        (f"{'x' * 235}.png", "File name too long"),
    ],
)
def test_what_cannot_be_written_is_said_in_one_line(tmp_path: Path, name: str, reason: str) -> None:
    (tmp_path / "d.png").mkdir()
    for attempt in (check_writable, lambda path: save_image(grid(1, 1)[0][0], path)):
        with pytest.raises(InputError, match=reason) as caught:
            attempt(tmp_path / name)
        assert name in str(caught.value)
        assert "\n" not in str(caught.value)


def test_no_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(path: Path) -> None:  # root may write anywhere
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "touch", denied)
    with pytest.raises(InputError, match=r"cannot write .*a\.png: Permission denied"):
        check_writable(tmp_path / "a.png")


@pytest.mark.parametrize(("suffix", "most"), [(".jpg", 65_500), (".webp", 16_383)])
def test_what_a_format_does_not_hold_is_refused_beforehand(tmp_path: Path, suffix: str, most: int) -> None:
    check_writable(tmp_path / f"a{suffix}", (most, 1))
    check_writable(tmp_path / "a.png", (most + 1, 1))
    with pytest.raises(InputError, match=f"1x{most + 1} pixels are more than the {most} along a side"):
        check_writable(tmp_path / f"a{suffix}", (1, most + 1))
    save_image(Image.new("RGB", (most, 1)), tmp_path / f"a{suffix}")
    with pytest.raises(InputError, match=r"use \.png, or fewer or smaller images"):
        save_image(Image.new("RGB", (most + 1, 1)), tmp_path / f"b{suffix}")
    assert [path.name for path in tmp_path.iterdir()] == [f"a{suffix}"]


def test_what_the_library_says_of_a_failed_write_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for error in (OSError("encoder error -2 when writing"), ValueError("encoder error -2 when writing")):

        def fail(*given: object, error: Exception = error, **options: object) -> None:
            raise error

        monkeypatch.setattr(Image.Image, "save", fail)
        with pytest.raises(InputError, match=r"cannot write .*a\.png: encoder error -2 when writing"):
            save_image(grid(1, 1)[0][0], tmp_path / "a.png")


def test_failed_write_leaves_the_old_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(b"old")
    with pytest.raises(InputError, match="cannot write"):
        save_image(Image.new("RGBA", (4, 4)), path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_other_scripts_are_in_a_font_of_the_machine_that_has_them(monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.font_manager import FontEntry, fontManager

    gone = FontEntry(fname="/nowhere/x.ttf", name="DejaVu Sans")
    monkeypatch.setattr(fontManager, "ttflist", [gone, *fontManager.ttflist])
    font_with.cache_clear()
    (line,) = wrap("красный кит", 14, 900)
    assert line.text == "красный кит"
    assert line.font_file is not None
    assert Path(line.font_file).name == "DejaVuSans.ttf"
    assert next(wrap("a red whale", 14, 900)).font_file is None
    assert next(wrap("une crème", 14, 900)).font_file is None
    font_with.cache_clear()


@pytest.mark.parametrize("last_resort", [False, True])
def test_what_no_font_has_is_spelt(last_resort: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.font_manager import fontManager

    # which comes with matplotlib and claims all characters
    found = [font for font in fontManager.ttflist if last_resort and font.name.startswith("Last Resort")]
    monkeypatch.setattr(fontManager, "ttflist", found)
    font_with.cache_clear()
    assert [line.text for line in wrap("a 🐳 on 鲸 한", 14, 900)] == ["a [spouting whale] on \\u9cb8 \\ud55c"]
    assert next(wrap("👩\u200d🚀", 14, 900)).text == "[woman][rocket]"
    font_with.cache_clear()
