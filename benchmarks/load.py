"""The service under load: `python benchmarks/load.py` starts one, asks it from several clients and checks each image.

Every request has a prompt and seed of its own. One service is asked one after the other, and a new one several at once:
no image may be lost, and each must have the bytes that it had alone.
"""

import argparse
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import openai
from record import write_record

from anystep.data.art import everyday_concepts

CONCEPTS = everyday_concepts()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="builtin")
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--workers", type=int, help="of the service (default: its own)")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "load.json")
    options = parser.parse_args()
    alone, together = serve_and_ask(options, 1), serve_and_ask(options, options.clients)
    wrong = sum(one != other for one, other in zip(alone.pop("images"), together.pop("images"), strict=True))
    ratio = together["images_per_second"] / alone["images_per_second"]
    figures = {"one_at_a_time": alone, "together": together, "ratio": ratio, "wrong_images": wrong}
    for name, value in figures.items():
        print(f"{name}: {value}")
    asked = {name: getattr(options, name) for name in ("model", "requests", "clients", "steps", "workers")}
    write_record(options.out, {**asked, **figures})


def serve_and_ask(options: argparse.Namespace, clients: int) -> dict[str, Any]:
    """What so many clients got of a service that is new, and so remembers no prompt."""
    command = [sys.executable, "-m", "anystep", "serve", "--port", "0", "--model", options.model]
    command += ["--workers", str(options.workers)] if options.workers else []
    service = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert service.stdout is not None
    try:
        url = next(line for line in service.stdout if line.startswith("serving ")).split()[-1]
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=300)

        def ask(number: int) -> tuple[str, float]:
            begin = time.perf_counter()
            prompt = f"a {CONCEPTS[number % len(CONCEPTS)]}"
            answer = client.images.generate(prompt=prompt, extra_body={"steps": options.steps, "seed": number})
            assert answer.data is not None
            return answer.data[0].b64_json or "", time.perf_counter() - begin

        ask(len(CONCEPTS) - 1)
        return run(ask, options.requests, clients)
    finally:
        service.terminate()
        assert service.wait(60) == 0


def run(ask: Any, requests: int, clients: int) -> dict[str, Any]:
    """Ask for all images, so many at once: what came, and how fast."""
    begin = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        answers = list(pool.map(ask, range(requests)))
    seconds = time.perf_counter() - begin
    latencies = np.array([latency for _, latency in answers])
    p50, p95 = np.percentile(latencies, [50, 95])
    return {
        "images": [image for image, _ in answers], "lost": sum(not image for image, _ in answers),
        "images_per_second": requests / seconds, "p50_seconds": float(p50), "p95_seconds": float(p95),
    }  # fmt: skip


if __name__ == "__main__":
    main()
