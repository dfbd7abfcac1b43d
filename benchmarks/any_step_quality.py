"""Quality against steps, from one set of weights: `python benchmarks/any_step_quality.py --samples 2000`.

Kernel distance x 1000 on EfficientNet-Lite0 features (not FID) between the images generated for the captions of one
draw of the built-in everyday training art and the real images of another draw, disjoint from the first; the noise of
an image is the same at every step count. Controls against the same real images: the real images of the first draw
(about 0), their reconstruction by the codec (what a perfect transition model would reach), and those images blurred.

Interrupted, the same command goes on after the last finished step count, kept beside OUT in a .points.part file.
"""

import argparse
import hashlib
import json
import random
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageFilter
from record import write_record
from torch import Tensor

import anystep
from anystep.atomic import write_text
from anystep.codecs import to_uint8
from anystep.data.art import ArtSource
from anystep.data.images import to_tensor
from anystep.evaluation.features import EfficientNetLite0, extract
from anystep.evaluation.kernel_distance import Estimate, kernel_distance
from anystep.pipelines.load import Model
from anystep.pipelines.transition import TransitionPipeline

BLUR = 1.0  # standard deviation in pixels


def real_images(source: ArtSource, indices: list[int], batch: int, blur: float = 0.0) -> Iterator[Tensor]:
    """The examples as uint8 batches."""

    def image(index: int) -> Image.Image:
        picture = source[index].image
        return picture.filter(ImageFilter.GaussianBlur(blur)) if blur else picture

    for start in range(0, len(indices), batch):
        yield to_uint8(torch.stack([to_tensor(image(index)) for index in indices[start : start + batch]]))


@torch.no_grad()
def reconstructions(pipeline: TransitionPipeline, images: Iterator[Tensor]) -> Iterator[Tensor]:
    """What the codec makes of the images."""
    codec = pipeline.latent_codec
    for batch in images:
        yield to_uint8(codec.decode(codec.encode(batch.to(pipeline.device) / 127.5 - 1)))


def weights_digest(pipeline: TransitionPipeline) -> str:
    """Tells one set of weights from another."""
    digest = hashlib.sha256()
    for part in (pipeline.transformer, pipeline.codec):
        for tensor in part.state_dict().values() if part is not None else ():
            digest.update(tensor.float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def measure(
    model: Model,
    extractor: EfficientNetLite0,
    captions: list[str],
    real: Tensor,
    steps: int,
    options: argparse.Namespace,
) -> dict[str, Any]:
    """Generate an image a caption with that many steps and compare them with the real ones."""
    made, spent, nfe = [], 0.0, 0
    for start in range(0, len(captions), options.batch):
        prompts = captions[start : start + options.batch]
        seeds = [options.seed + start + row for row in range(len(prompts))]
        begin = time.perf_counter()
        output: Any = model.pipeline(
            prompts, num_inference_steps=steps, guidance_scale=options.guidance, seeds=seeds, output_type="pt"
        )
        made.append((output.images * 255).round().to(torch.uint8).cpu())
        spent += time.perf_counter() - begin
        nfe = output.nfe
    distance = compare(real, extract(extractor, made))
    return {"steps": steps, "nfe": nfe, "seconds_per_image": spent / len(captions), **asdict(distance)}


def compare(real: Tensor, other: Tensor) -> Estimate:
    return kernel_distance(real, other, subset_size=len(real) // 4)


def show(steps: str, nfe: str, row: dict[str, Any], seconds: str = "") -> None:
    interval = f"[{row['low']:.2f}, {row['high']:.2f}]"
    print(f"{steps:>16}{nfe:>6}{row['value']:>10.2f}  {interval:<18}{seconds:>9}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="builtin", help="builtin, a folder, or a hub id (default: builtin)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, mps (default: auto)")
    parser.add_argument("--samples", type=int, default=2000, help="images a set (default: 2000)")
    parser.add_argument("--steps", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32])
    parser.add_argument("--guidance", type=float, help="scale, 1 is none (default: the model's)")
    parser.add_argument("--batch", type=int, default=50, help="images generated at a time (default: 50)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "any_step_quality.json")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    model = anystep.load(options.model, options.device)
    pipeline, device = model.pipeline, model.pipeline.device
    extractor = EfficientNetLite0(device if device.type == "cuda" else "cpu")
    source = ArtSource(pipeline.base_size, "everyday", "train")
    if not 8 <= options.samples <= len(source) // 2:
        parser.error(f"--samples {options.samples}: expected 8 to {len(source) // 2}, half of the training art")
    dice = random.Random(options.seed)
    order = dice.sample(range(len(source)), 2 * options.samples)
    asked, shown = order[: options.samples], order[options.samples :]
    captions = [dice.choice(source[index].captions) for index in asked]
    real = extract(extractor, real_images(source, shown, options.batch))

    settings = {
        "metric": f"kid_{extractor.name} x 1000",
        "model": options.model,
        "weights": weights_digest(pipeline),
        "samples": options.samples,
        "seed": options.seed,
        "guidance": pipeline.config.guidance_scale if options.guidance is None else options.guidance,
        "batch": options.batch,
        "threads": options.threads,
        "device": str(device),
    }
    part = options.out.with_suffix(".points.part")
    part.parent.mkdir(parents=True, exist_ok=True)
    earlier = json.loads(part.read_text("utf-8")) if part.exists() else {}
    done = earlier["points"] if earlier.get("settings") == settings else []

    print(f"{'steps':>16}{'NFE':>6}{'distance':>10}  {'95 % interval':<18}{'s / image':>9}")
    again = {
        "real": real_images(source, asked, options.batch),
        "codec": reconstructions(pipeline, real_images(source, asked, options.batch)),
        f"blurred by {BLUR:g} px": real_images(source, asked, options.batch, BLUR),
    }
    controls = {}
    for name, images in again.items():
        controls[name] = asdict(compare(real, extract(extractor, images)))
        show(name, "", controls[name])
    for steps in options.steps:
        if not any(point["steps"] == steps for point in done):
            done.append(measure(model, extractor, captions, real, steps, options))
            write_text(part, json.dumps({"settings": settings, "points": done}))
        point = next(point for point in done if point["steps"] == steps)
        show(str(steps), str(point["nfe"]), point, f"{point['seconds_per_image']:.3f}")
    points = [next(point for point in done if point["steps"] == steps) for steps in options.steps]
    write_record(options.out, {**settings, "controls": controls, "points": points})
    part.unlink()


if __name__ == "__main__":
    main()
