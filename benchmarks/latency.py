"""Milliseconds for one image at the training size, once loaded: `python benchmarks/latency.py`."""

import argparse
import time
from pathlib import Path
from statistics import median

import torch
from record import write_record

import anystep


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="builtin")
    parser.add_argument("--steps", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    begin = time.perf_counter()
    model = anystep.load(options.model)
    model("a red apple", steps=1)
    points = {"load_and_first_image_seconds": time.perf_counter() - begin}
    for guidance in (1.0, float(model.pipeline.config.guidance_scale)):
        for steps in options.steps:
            each = [model.generate("a red apple", steps, guidance=guidance).seconds for _ in range(options.rounds)]
            points[f"steps_{steps}_guidance_{guidance:g}_ms"] = 1000 * median(each)
    for name, value in points.items():
        print(f"{name:36}{value:8.1f}")
    write_record(Path(__file__).parent / "results" / "latency.json", {"threads": options.threads, **points})


if __name__ == "__main__":
    main()
