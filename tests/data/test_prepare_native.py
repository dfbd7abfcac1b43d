"""Preparing images as they are: whatever lies in a folder is handled, or left out with its reason."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from anystep.cli import main
from anystep.data.latents import LatentShards

WORDS = ["--codec", "identity", "--size", "64", "--native", "--patch-size", "8", "--shard-size", "4"]


def put(path: Path, image: Image.Image, caption: bytes = b"a picture\n", **options: object) -> None:
    image.save(path, **options)  # type: ignore[arg-type]
    path.with_suffix(".txt").write_bytes(caption)


@pytest.fixture(scope="module")
def wild(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One of everything that users have."""
    folder, rng = tmp_path_factory.mktemp("wild"), np.random.default_rng(0)

    def noise(width: int, height: int, depth: int = 3) -> np.ndarray:
        return rng.integers(0, 256, (height, width, depth), np.uint8)

    put(folder / "square.png", Image.fromarray(noise(64, 64)))
    put(folder / "wide.png", Image.fromarray(noise(120, 50)))
    put(folder / "large.jpg", Image.fromarray(noise(900, 600)))
    put(folder / "pixel.png", Image.new("RGB", (1, 1)))
    put(folder / "panorama.png", Image.new("RGB", (30_000, 64), "red"))
    put(folder / "ink.jpg", Image.fromarray(noise(64, 40, 4), "CMYK"))
    palette = Image.fromarray(noise(40, 40)).convert("P")
    put(folder / "palette.png", palette, transparency=3)
    put(folder / "deep.png", Image.fromarray(noise(48, 48, 1)[..., 0].astype(np.uint16) * 257))
    exif = Image.Exif()
    exif[0x0112] = 6
    put(folder / "turned.jpg", Image.fromarray(noise(80, 40)), exif=exif)
    frames = [Image.fromarray(noise(32, 32)) for _ in range(3)]
    put(folder / "moving.gif", frames[0], save_all=True, append_images=frames[1:])
    put(folder / "cut.jpg", Image.fromarray(noise(200, 200)))
    (folder / "cut.jpg").write_bytes((folder / "cut.jpg").read_bytes()[:2000])
    put(folder / "silent.png", Image.fromarray(noise(64, 64)), caption=b"")
    put(folder / "latin.png", Image.fromarray(noise(64, 64)), caption=b"caf\xe9\n")
    put(folder / "square.bmp", Image.fromarray(noise(64, 64)))
    return folder


def test_whatever_lies_in_a_folder_is_handled_or_left_out_with_its_reason(
    wild: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", "prepare", str(wild), "--out", str(tmp_path / "out"), *WORDS]) == 0
    said = capsys.readouterr().out
    for reason in (
        "pixel.png: 1x1 is smaller than the 8 pixels of a token",
        "panorama.png: 30000x64 is 469 times as long as wide, the limit is 5",
        "cut.jpg: image file is truncated",
        "silent.png: its caption is empty",
        "latin.png: its caption: not UTF-8 text, at byte 3",
        "turned upright: 1",
        "CMYK to RGB: 1",
        "16 bits to 8: 1",
        "transparency on white: 1",
        "the first of several frames: 1",
        "shares its name with another image: 2",
        "left out: 5",
        "cropped: ",
    ):
        assert reason in said
    made = LatentShards(str(tmp_path / "out"))
    assert len(made) == len(made.shards.index.labels) == 9
    sizes = {}
    for number in range(len(made)):
        about = json.loads(made.shards.read(number, ["json"])["json"])
        sizes[about["key"]] = tuple(made.grids[number].tolist())
    assert sizes["turned.jpg"] == (80, 40)
    assert sizes["square.png"] == sizes["square.bmp"] == (64, 64)
    assert sizes["moving.gif"] == (32, 32)
    for rows, columns in sizes.values():
        assert rows % 8 == columns % 8 == 0
        assert rows * columns <= 64 * 64
    with Image.open(tmp_path / "out" / "sizes.png") as picture:
        assert min(picture.size) > 500


def test_a_killed_preparation_of_many_shapes_ends_in_the_same_bytes(wild: Path, tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; from anystep.data import encode as module; from anystep.cli import main\n"
        "real, calls = module.write_shard, []\n"
        "def write(path, records):\n"
        "    calls.append(path)\n"
        "    if len(calls) == 3: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return real(path, records)\n"
        "module.write_shard = write\n"
        "main(sys.argv[1:])"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", code, "data", "prepare", str(wild), "--out", str(tmp_path / "killed"), *WORDS]
    done = subprocess.run(command, env=environment, capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "killed").glob("*.tar")}
    assert len(before) == 2
    for name in ("killed", "whole"):
        assert main(["data", "prepare", str(wild), "--out", str(tmp_path / name), *WORDS]) == 0
    after = {path.name: path for path in (tmp_path / "killed").iterdir()}
    assert all(after[name].stat().st_mtime_ns == time for name, time in before.items())  # nothing is done twice
    whole = {path.name: path for path in (tmp_path / "whole").iterdir()}
    assert after.keys() == whole.keys()
    for name in after.keys() - {"sizes.png"}:
        assert after[name].read_bytes() == whole[name].read_bytes(), name


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--longest", "4"], "--longest 4: expected at least 8"),
        (["--size", "60"], "--size 60: must be a multiple of 8"),
    ],
)
def test_bad_limits_are_one_line(
    wild: Path, tmp_path: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", "prepare", str(wild), "--out", str(tmp_path / "out"), *WORDS, *words]) == 2
    assert message in capsys.readouterr().err
