"""How much of the network's time is matrix products and attention: `python benchmarks/network_speed.py`.

One eager run of the network notes every matrix product and every attention, forward and backward, with its operands;
they are then done again alone, and take turns with the network as it is, eager and compiled block by block. The share
is the time of the products over the time of the network: the rest is what lies between them (norms, modulation, rotary
embedding, gates, sums of gradients, Python). On a CPU it runs on one thread and counts the time of the processor, so
that what the machine is doing meanwhile weighs little.

    training      forward and backward of a batch of the emoji recipe
    sampling      one guided evaluation of 256 tokens by the emoji recipe's network
    comparison    forward and backward of a batch of the network of `anystep compare fashion-mnist`
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from record import write_record
from torch.utils._python_dispatch import TorchDispatchMode

from anystep.compare import Comparison
from anystep.device import pick_device
from anystep.models.presets import build_transformer
from anystep.training.config import Recipe
from anystep.training.recipe_files import load_recipe

ROOT = Path(__file__).parent.parent
CASES = ("training", "sampling", "comparison")
PRODUCTS = ("mm", "addmm", "bmm", "baddbmm")
CAPTION = 12  # tokens
WARM_UP = 3

Call = tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]


class Products(TorchDispatchMode):
    """Notes the matrix products and attentions that run under it, with their operands."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in PRODUCTS or name.startswith("_scaled_dot_product_"):
            self.calls.append((func, args, kwargs or {}))
        return func(*args, **(kwargs or {}))

    @torch.no_grad()
    def again(self) -> None:
        """All of them, alone."""
        for func, args, kwargs in self.calls:
            func(*args, **kwargs)


def build(case: str, device: torch.device, compiled: bool, small: bool) -> Callable[[], None]:
    """A function that runs the network of a case once."""
    torch.manual_seed(0)
    if case == "comparison":
        recipe = load_recipe(ROOT / "configs" / "compare" / "fashion-mnist.yaml", Comparison, [], small).recipe
    else:
        recipe = load_recipe(ROOT / "configs" / "emoji.yaml", Recipe, [], small)
    network = build_transformer(recipe.model.preset, **recipe.model.options).to(device)
    for parameter in network.parameters():
        if not parameter.any():  # a fresh network predicts zero, and most of its gradients are zero
            torch.nn.init.normal_(parameter, std=0.02)
    if compiled:
        network.compile_repeated_blocks()
    guided, count = case == "sampling", recipe.run.batch_size
    side = recipe.data.size if case == "comparison" else network.config.sample_size
    if guided:
        count, side = 2, 2 * side
    x = torch.randn(count, network.config.in_channels, side, side, device=device)
    t = torch.linspace(0.3, 0.95, count, device=device)
    r, condition, mask = t - 0.2, torch.zeros(count, dtype=torch.long, device=device), None
    if network.config.text_width is not None:
        condition = torch.randn(count, CAPTION, network.config.text_width, device=device)
        mask = (torch.arange(CAPTION) < 5 + torch.arange(count)[:, None] % (CAPTION - 4)).to(device)

    def sample() -> None:
        with torch.no_grad():
            network(x, t, r, encoded)

    def train() -> None:
        network(x, t, r, condition, mask).square().mean().backward()
        network.zero_grad()

    if guided:
        with torch.no_grad():
            encoded = network.encode_condition(condition, mask)
    return sample if guided else train


def clock(device: torch.device) -> float:
    """Seconds, at the end of what was asked of the device."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.process_time() if device.type == "cpu" else time.perf_counter()


def measure(case: str, device: torch.device, compiled: bool, small: bool, rounds: int) -> dict[str, Any]:
    """Milliseconds of each, and the share of the products in the time of the network."""
    runs = {"eager": build(case, device, False, small)}
    with Products() as products:
        runs["eager"]()
    if compiled:
        runs["compiled"] = build(case, device, True, small)
    runs["products"] = products.again
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(WARM_UP + rounds):
        for name, run in runs.items():
            begin = clock(device)
            run()
            if turn >= WARM_UP:
                seconds[name].append(clock(device) - begin)
    found: dict[str, Any] = {"calls": len(products.calls)}
    for name, own in seconds.items():
        found[f"{name}_ms"] = 1000 * median(own)
        if name != "products":
            shares = [alone / whole for alone, whole in zip(seconds["products"], own, strict=True)]
            found[f"{name}_share"], found[f"{name}_share_range"] = median(shares), [min(shares), max(shares)]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=CASES)
    parser.add_argument("--device", default="cpu", help="auto, cpu, cuda, mps (default: cpu)")
    parser.add_argument("--no-compile", action="store_true", help="eager alone: compiling takes minutes on a CPU")
    parser.add_argument("--debug", action="store_true", help="the recipes' laptop sizes")
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "network_speed.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    device = pick_device(options.device)
    print(f"{'':12}{'products ms':>12}{'network ms':>12}{'share':>7}{'min':>6}{'max':>6}")
    found = {}
    for case in options.cases:
        found[case] = row = measure(case, device, not options.no_compile, options.debug, options.rounds)
        for kind in ("eager",) if options.no_compile else ("eager", "compiled"):
            low, high = row[f"{kind}_share_range"]
            cells = f"{row['products_ms']:12.1f}{row[f'{kind}_ms']:12.1f}{row[f'{kind}_share']:7.1%}"
            print(f"{case:12}{cells}{low:6.1%}{high:6.1%}  {kind}", flush=True)
    write_record(options.out, {"device": str(device), "rounds": options.rounds, "debug": options.debug, "cases": found})


if __name__ == "__main__":
    main()
