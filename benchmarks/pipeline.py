"""What a pipeline adds to sampling, and what guidance in one batch saves: `python benchmarks/pipeline.py`.

    overhead     a call of the pipeline against the same image by hand: prompt, noise, sampling loop, decoder
    one batch    a guided evaluation as two evaluations, against one batch of twice the images

Both sides of a ratio take turns on one thread, and the time of the processor counts.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from record import write_record

import anystep
from anystep.codecs import to_uint8
from anystep.sampling import guided, initial_sample, noise, sample

PROMPT = "a red apple on a blue background"


def ratio(one: Callable[[], Any], other: Callable[[], Any], rounds: int) -> dict[str, Any]:
    """Milliseconds of both, and the median and range of the time of the first over that of the second."""
    seconds: list[list[float]] = [[], []]
    for turn in range(rounds + 1):
        for place in (0, 1) if turn % 2 else (1, 0):
            begin = time.process_time()
            (one, other)[place]()
            if turn:  # the first is warm-up
                seconds[place].append(time.process_time() - begin)
    ratios = sorted(a / b for a, b in zip(*seconds, strict=True))
    return {"ms": [1000 * median(each) for each in seconds], "ratio": median(ratios), "range": [ratios[0], ratios[-1]]}


def overhead(pipeline: Any, steps: int, guidance: float, rounds: int) -> dict[str, Any]:
    """A call against the functions that it is made of."""
    network, transport, side = (
        pipeline.transformer,
        pipeline.schedule.transport,
        pipeline.transformer.config.sample_size,
    )

    @torch.no_grad()
    def by_hand() -> Any:
        encoded = pipeline.encode_prompt(PROMPT, do_classifier_free_guidance=guidance > 1)
        null = encoded[2:] if guidance > 1 else None
        predict = guided(network, transport, encoded[:2], null, guidance)
        z = noise((network.config.in_channels, side, side), [0])
        times = pipeline.schedule.times(steps, plan="uniform")
        x = sample(predict, transport, initial_sample(transport, z, transport.t_max), times).sample
        return to_uint8(pipeline.decode_latents(x))

    def call() -> Any:
        return pipeline(PROMPT, num_inference_steps=steps, guidance_scale=guidance, seeds=[0], plan="uniform")

    return {"steps": steps, "guidance": guidance, **ratio(call, by_hand, rounds)}


def one_batch(pipeline: Any, side: int, rounds: int) -> dict[str, Any]:
    """Two evaluations against one batch, of one image of `side` x `side` tokens."""
    network, transport = pipeline.transformer, pipeline.schedule.transport
    encoded = pipeline.encode_prompt(PROMPT, do_classifier_free_guidance=True)
    latent = side * network.config.patch_size
    x = noise((network.config.in_channels, latent, latent), [0])
    ways = [guided(network, transport, encoded[:2], encoded[2:], 2.0, one_batch=together) for together in (False, True)]
    with torch.no_grad():
        two, one = (lambda f=f: f(x, 0.9, 0.6) for f in ways)
        return {"tokens": side**2, **ratio(two, one, rounds)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="builtin")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "pipeline.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    pipeline = anystep.load(options.model, "cpu").pipeline
    found: dict[str, list[dict[str, Any]]] = {
        "overhead": [overhead(pipeline, 8, guidance, options.rounds) for guidance in (1.0, 1.5)],
        "one_batch": [one_batch(pipeline, side, max(4, options.rounds * 64 // side**2)) for side in (8, 16, 32, 48)],
    }
    for kind, rows in found.items():
        for row in rows:
            said = ", ".join(f"{name} {value:g}" for name, value in row.items() if not isinstance(value, list))
            print(f"{kind:10} {said}, from {row['range'][0]:.3f} to {row['range'][1]:.3f}")
    write_record(options.out, {"model": options.model, "threads": 1, "rounds": options.rounds, **found})


if __name__ == "__main__":
    main()
