"""One image of 4096 x 4096 pixels: memory and time of sampling and of decoding, planned and measured.

    python benchmarks/large.py          # the 865M shape and its autoencoder, with weights that nobody trained

Memory is what a phase adds to a process that already holds the weights and the code of the libraries: allocated on
CUDA; resident on the CPU, where freed memory goes back at once, because what the heap keeps is not the image's. On two
cores of a laptop it takes hours, most of them in the decoder.
"""

import argparse
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
from record import write_record
from resident import GIVEN_BACK, forget_peak, held, peak

from anystep.cli.option_types import size
from anystep.codecs import to_uint8
from anystep.codecs.tiling import decode_tiled
from anystep.device import pick_device
from anystep.models.transformer import TransitionTransformer2DModel
from anystep.pipelines.plan import ModelSpec, plan_generation
from anystep.sampling import guided, noise, sample
from anystep.transport import OTFlowMatching

ROOT = Path(__file__).parent.parent
WORDS = 256  # tokens of the caption


class Drawing:
    """A network and a codec without training, and what their phases take."""

    def __init__(self, model: str, device: torch.device) -> None:
        self.spec, self.device = ModelSpec.of(model), device
        self.network = TransitionTransformer2DModel.from_config(self.spec.network).eval().to(device)
        self.codec = self.spec.make_codec()
        if self.codec is not None:
            self.codec.autoencoder.to(device)
        self.rows: dict[str, dict[str, float]] = {}

    def latents(self, width: int, height: int, steps: int) -> torch.Tensor:
        shape = (self.spec.channels, height // self.spec.factor, width // self.spec.factor)
        config = self.network.config
        condition = (
            torch.zeros(1, dtype=torch.long) if config.text_width is None else torch.randn(1, WORDS, config.text_width)
        )
        predict = guided(self.network, OTFlowMatching(), (condition.to(self.device), None))
        return sample(predict, OTFlowMatching(), noise(shape, [0]).to(self.device), steps).sample

    def pixels(self, latents: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return to_uint8(latents if self.codec is None else decode_tiled(self.codec, latents))

    def measure(self, name: str, before: float, work: Any) -> Any:
        forget_peak(self.device)
        begin = time.perf_counter()
        done = work()
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        self.rows[name] = {"seconds": time.perf_counter() - begin, "bytes": peak(self.device) - before}
        print(f"{name}: {self.rows[name]['seconds']:.1f} s, {self.rows[name]['bytes'] / 1e9:.2f} GB", flush=True)
        return done


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="t2i-xl", help="a preset, or builtin")
    parser.add_argument("--size", type=size, default="4096x4096", metavar="WxH", help="in pixels")
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "large.json")
    options = parser.parse_args()
    device = pick_device("auto")
    if device.type == "cpu" and not GIVEN_BACK.items() <= os.environ.items():
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **GIVEN_BACK})
    torch.set_num_threads(options.threads)
    width, height = options.size
    drawing = Drawing(options.model, device)
    plan = plan_generation(drawing.spec, width, height, options.steps, caption_tokens=WORDS)
    gigabytes = [f"{count / 1e9:.2f} GB" for count in (plan.sampling_bytes, plan.decode_bytes)]
    print(f"planned: sampling {gigabytes[0]}, decoding {gigabytes[1]}", flush=True)
    least = 4 * drawing.spec.multiple
    drawing.pixels(drawing.latents(least, least, 1))  # brings the code of the libraries into memory
    before = held(device)
    latents = drawing.measure("sampling", before, lambda: drawing.latents(width, height, options.steps))
    drawing.measure("decoding", before, lambda: drawing.pixels(latents))
    planned = {"sampling": plan.sampling_bytes, "decoding": plan.decode_bytes, "flops": plan.flops}
    record = {"model": options.model, "size": f"{width}x{height}", "steps": options.steps, "threads": options.threads}
    write_record(options.out, {**record, "device": str(device), "planned": planned, "measured": drawing.rows})


if __name__ == "__main__":
    main()
