"""Real photographs at 2048 and 4096 pixels: scanned, cropped, encoded, packed, trained on, drawn and decoded."""

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import anystep
from anystep.cli import main
from anystep.codecs import load_codec, to_uint8
from anystep.codecs.tiling import TILE, decode_tiled
from anystep.data.latents import LatentShards
from anystep.data.sizing import resize_and_crop

PACKAGES = ("lomiri-wallpapers-16.04", "lomiri-wallpapers-20.04")  # Debian's; CC-BY and CC-BY-SA, not kept
CAPTIONS = {
    "Bridge": "a bridge over a river",
    "Dragonfly": "a dragonfly on a stem",
    "Kleiber": "a nuthatch on a branch",
    "Wine": "grapes on a vine",
    "Infinite-Sea": "waves of many colours",
    "seeding": "a seed head of a dandelion",
    "sunset": "a sunset over the sea",
    "picosdeeuropa": "mountains under a clear sky",
    "friends": "two friends from behind",
}
PATCH = 64  # pixels of a token: 8 of a latent
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("apt-get") is None, reason="only Debian and its children have these photographs"),
]


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fetched from Debian by its own tools; nothing is installed."""
    fetched, folder = tmp_path_factory.mktemp("fetched"), tmp_path_factory.mktemp("photographs")
    done = subprocess.run(["apt-get", "download", *PACKAGES], cwd=fetched, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for package in fetched.glob("*.deb"):
        subprocess.run(["dpkg-deb", "-x", str(package), str(fetched)], check=True)
    for path in fetched.rglob("*.jpg"):
        for name, caption in CAPTIONS.items():
            if path.name.startswith(name):
                shutil.copy(path, folder / f"{name}.jpg")
                (folder / f"{name}.txt").write_text(caption + "\n")
    assert len(list(folder.glob("*.jpg"))) == len(CAPTIONS)
    return folder


@pytest.mark.parametrize(("side", "names"), [(2048, list(CAPTIONS)), (4096, ["Bridge", "Infinite-Sea", "seeding"])])
def test_photographs_go_all_the_way(
    photographs: Path, tmp_path: Path, side: int, names: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for name in names:
        for suffix in (".jpg", ".txt"):
            shutil.copy(photographs / (name + suffix), source)
    shards = tmp_path / "shards"
    words = ["--native", "--size", str(side), "--codec", "builtin", "--patch-size", str(PATCH // 8)]
    assert main(["data", "prepare", str(source), "--out", str(shards), *words, "--text-encoder", "builtin"]) == 0
    said = capsys.readouterr().out
    assert f"{len(names)} examples" in said
    assert "cropped: " in said

    made, codec = LatentShards(str(shards)), load_codec("builtin", torch.device("cpu"))
    tokens = []
    for number in range(len(made)):
        about = json.loads(made.shards.read(number, ["json"])["json"])
        with Image.open(source / about["key"]) as photograph:
            width, height = photograph.size
            rows, columns = (int(each) for each in made.grids[number])
            assert rows % 8 == columns % 8 == 0
            assert 64 * rows * columns <= side * side
            # of its own shape, to a token, and as large as it may be
            assert abs(rows * width - columns * height) <= 8 * max(width, height)
            assert 64 * (rows + 8) * (columns + 8) > min(width * height, side * side)
            tokens.append(rows * columns // 64)
            if number:
                continue
            with torch.no_grad():
                decoded = to_uint8(decode_tiled(codec, made[number].latent[None].float()))[0]
            assert max(decoded.shape) > TILE
            pixels = np.asarray(resize_and_crop(photograph, (8 * columns, 8 * rows)), dtype=np.float64)
        error = np.mean((decoded.permute(1, 2, 0).numpy() - pixels) ** 2)
        assert 10 * np.log10(255**2 / error) > 22  # dB, of a codec that never saw a photograph

    run = tmp_path / "run"
    recipe = {
        "data": {"source": f"shards:{shards}", "size": side, "native": True},
        "model": {"preset": "t2i-test", "codec": "builtin", "text_encoder": "builtin", "options": {"patch_size": 8}},
        "run": {"steps": 4, "parts": 1, "tokens_per_part": max(tokens) + min(tokens), "packed": True, "log_every": 1,
                "checkpoint_every": 4, "sample_every": 0},
    }  # fmt: skip
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    assert main(["train", str(tmp_path / "recipe.yaml"), "--out", str(run)]) == 0
    losses = [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert len(losses) == 4
    assert np.isfinite(losses).all()

    picture = anystep.load(run)("a nuthatch on a branch", steps=2, size=(side, side // 2))[0]
    assert picture.size == (side, side // 2)
