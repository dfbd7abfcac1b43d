"""Milliseconds for one image at the training size, once loaded: `python benchmarks/latency.py`."""

import argparse
import time
from pathlib import Path
from statistics import median

import torch
from record import write_record

import anystep

PROMPT = "a red apple"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="builtin")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, mps (default: auto)")
    parser.add_argument("--steps", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "latency.json")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    begin = time.perf_counter()
    model = anystep.load(options.model, options.device)
    model(PROMPT, steps=1)
    first = time.perf_counter() - begin
    print(f"load and first image: {first:.2f} s\n{'guidance':>8}{'steps':>7}{'NFE':>6}{'ms':>9}{'min':>9}{'max':>9}")
    points = []
    for guidance in sorted({1.0, float(model.pipeline.config.guidance_scale)}):
        for steps in options.steps:
            model.generate(PROMPT, steps, guidance=guidance)  # warm-up
            made = [model.generate(PROMPT, steps, guidance=guidance) for _ in range(options.rounds)]
            ms = [1000 * each.seconds for each in made]
            point = {
                "guidance": guidance,
                "steps": steps,
                "nfe": made[0].nfe,
                "ms": median(ms),
                "range": [min(ms), max(ms)],
            }
            points.append(point)
            print(f"{guidance:8g}{steps:7}{made[0].nfe:6}{median(ms):9.1f}{min(ms):9.1f}{max(ms):9.1f}", flush=True)
    write_record(
        options.out,
        {
            "model": options.model,
            "device": str(model.pipeline.device),
            "threads": options.threads,
            "rounds": options.rounds,
            "pixels": model.pipeline.base_size,
            "load_and_first_image_seconds": first,
            "points": points,
        },
    )


if __name__ == "__main__":
    main()
