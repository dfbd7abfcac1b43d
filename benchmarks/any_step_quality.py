"""Quality against steps, from one set of weights: `python benchmarks/any_step_quality.py --samples 2000`.

Kernel distance x 1000 on EfficientNet-Lite0 features (not FID) between generated images and the real ones of as many
other draws of the same captions, with the same noise at every step count. Controls: real against real, real against
their reconstruction by the codec, real against blurred.
"""

import argparse
import random
import time
from dataclasses import asdict
from pathlib import Path

import torch
from PIL import Image, ImageFilter
from record import write_record
from torch import Tensor

import anystep
from anystep.codecs import to_uint8
from anystep.data.art import ArtSource
from anystep.data.images import to_tensor
from anystep.evaluation.features import EfficientNetLite0, extract
from anystep.evaluation.kernel_distance import kernel_distance

BATCH = 50


def drawn(source: ArtSource, indices: list[int], blur: float = 0.0) -> Tensor:
    """Images of the source as uint8."""

    def image(index: int) -> Image.Image:
        picture = source[index].image
        return picture.filter(ImageFilter.GaussianBlur(blur)) if blur else picture

    return to_uint8(torch.stack([to_tensor(image(index)) for index in indices]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="builtin")
    parser.add_argument("--samples", type=int, default=2000)
    parser.add_argument("--steps", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32])
    parser.add_argument("--guidance", type=float)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "any_step_quality.json")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    model, extractor = anystep.load(options.model), EfficientNetLite0()
    source = ArtSource(model.pipeline.base_size, "everyday", "train")
    dice = random.Random(options.seed)
    asked, shown = ([dice.randrange(len(source)) for _ in range(options.samples)] for _ in range(2))
    captions = [dice.choice(source[index].captions) for index in asked]
    starts = range(0, options.samples, BATCH)

    real = extract(extractor, (drawn(source, shown[start : start + BATCH]) for start in starts))
    codec = model.pipeline.latent_codec
    pictures = [drawn(source, asked[start : start + BATCH]) for start in starts]
    with torch.no_grad():
        decoded = [to_uint8(codec.decode(codec.encode(images / 127.5 - 1))) for images in pictures]
    blurred = (drawn(source, asked[start : start + BATCH], blur=1.0) for start in starts)
    controls = {
        "real": kernel_distance(real, extract(extractor, pictures)),
        "codec": kernel_distance(real, extract(extractor, decoded)),
        "blurred by 1 px": kernel_distance(real, extract(extractor, blurred)),
    }
    for name, estimate in controls.items():
        print(f"{name:>16}  {estimate.value:7.2f}  [{estimate.low:.2f}, {estimate.high:.2f}]", flush=True)

    points = []
    for steps in options.steps:
        features, nfe, begin, spent = [], 0, time.perf_counter(), 0.0
        for start in starts:
            prompts = captions[start : start + BATCH]
            seeds = [options.seed + start + row for row in range(len(prompts))]
            begin = time.perf_counter()
            output = model.pipeline(
                prompts, num_inference_steps=steps, guidance_scale=options.guidance, seeds=seeds, output_type="pt"
            )
            spent += time.perf_counter() - begin
            nfe = output.nfe
            features.append(extractor((output.images * 255).round().to(torch.uint8)))
        distance = kernel_distance(real, torch.cat(features))
        points.append({"steps": steps, "nfe": nfe, "seconds_per_image": spent / options.samples, **asdict(distance)})
        print(f"{steps:>10} steps  {distance.value:7.2f}  [{distance.low:.2f}, {distance.high:.2f}]", flush=True)
    write_record(
        options.out,
        {
            "metric": f"kid_{extractor.name} x 1000",
            "model": options.model,
            "samples": options.samples,
            "seed": options.seed,
            "guidance": model.pipeline.config.guidance_scale if options.guidance is None else options.guidance,
            "controls": {name: asdict(estimate) for name, estimate in controls.items()},
            "points": points,
        },
    )


if __name__ == "__main__":
    main()
