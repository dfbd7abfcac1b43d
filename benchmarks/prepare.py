"""Preparing images as they are against the codec alone on the same images, already in memory.

    python benchmarks/prepare.py

JPEGs of four shapes and about 0.8 megapixels are scanned, read, scaled to at most 512 x 512 pixels of area, cropped,
encoded by the built-in codec and written to shards. Turns alternate; the ratio is that of images a second, its median.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
import torch
from PIL import Image
from record import write_record
from torch import Tensor

from anystep.codecs import load_codec
from anystep.codecs.tiling import encode_tiled
from anystep.data.encode import Encoders
from anystep.data.folders import ImageFolderSource
from anystep.data.images import to_tensor
from anystep.data.prepare import prepare
from anystep.data.sizing import ResolutionLimits
from anystep.device import pick_device

ROOT = Path(__file__).parent.parent
SHAPES = ((1024, 768), (768, 1024), (1184, 672), (896, 896))
SIDE = 512


def make_images(folder: Path, count: int) -> None:
    """Smooth and noisy, as photographs are; with captions."""
    rng = np.random.default_rng(0)
    for number in range(count):
        width, height = SHAPES[number % len(SHAPES)]
        coarse = Image.fromarray(rng.integers(0, 256, (height // 64, width // 64, 3), np.uint8))
        pixels = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), np.int16)
        pixels = pixels + rng.integers(-12, 13, (height, width, 3), np.int16)
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{number:04d}.jpg", quality=90)
        (folder / f"{number:04d}.txt").write_text("a picture\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=96)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "prepare.json")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = pick_device("auto")
    codec = load_codec("builtin", device)

    def encode(images: Tensor) -> Tensor:
        return encode_tiled(codec, images.to(device))

    encoders = Encoders(encode, {"codec": codec.fingerprint}, "float16", area=SIDE**2)
    turns = []
    with tempfile.TemporaryDirectory() as place, torch.no_grad():
        folder = Path(place) / "images"
        folder.mkdir()
        make_images(folder, options.images)
        limits = ResolutionLimits.within(codec.factor, SIDE, None, 5.0)
        source = ImageFolderSource(folder, limits)
        images = [to_tensor(source[number].image) for number in range(len(source))]
        # as `prepare` puts them together
        batches = []
        for start in range(0, len(images), encoders.batch):
            part = images[start : start + encoders.batch]
            batches += [torch.stack([x for x in part if x.shape == shape]) for shape in {x.shape for x in part}]
        encode(batches[0])
        for turn in range(options.turns):
            begin = time.perf_counter()
            for batch in batches:
                encode(batch).cpu()
            alone = time.perf_counter() - begin
            begin, busy = time.perf_counter(), time.process_time()
            source = ImageFolderSource(folder, limits)
            prepare(source, Path(place) / str(turn), encoders)
            whole = time.perf_counter() - begin
            busy = (time.process_time() - busy) / whole / (os.cpu_count() or 1)
            turns.append({"codec": len(images) / alone, "prepare": len(images) / whole, "busy": busy})
            print(f"codec {len(images) / alone:.2f}, prepare {len(images) / whole:.2f} images/s, {alone / whole:.0%}")
    ratio = median(turn["prepare"] / turn["codec"] for turn in turns)
    print(f"prepare reaches {ratio:.0%} of the codec alone, {os.cpu_count()} cores are busy", end=" ")
    print(f"{median(turn['busy'] for turn in turns):.0%} of the time")
    figures = {"images": options.images, "threads": options.threads, "device": str(device), "ratio": ratio}
    write_record(options.out, {**figures, "turns": turns})


if __name__ == "__main__":
    main()
