"""Released weights at their true size: memory and time of converting them, and of loading what comes out.

    python benchmarks/released.py                        # the 865M shape in bfloat16, with random numbers in it
    python benchmarks/released.py --dtype float32

Each phase is a process of its own, whose peak is all that it ever held, with the code of the libraries, in relation to
the weights. A diffusion transformer of diffusers with about as many parameters is loaded beside ours.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import DiTTransformer2DModel
from record import write_record
from resident import forget_peak, held, peak

from anystep import TransitionPipeline
from anystep.models.reference import restore_reference_names
from anystep.models.released import RELEASES, preset_options
from anystep.models.transformer import TransitionTransformer2DModel
from anystep.pipelines.convert import Request, convert_reference

ROOT = Path(__file__).parent.parent
CPU = torch.device("cpu")
SMALL = {"hidden_size": 48, "num_heads": 4, "depth": 8, "modulation_rank": 16}
PROJECTOR = {"z_dim": 768}


def make(folder: Path, preset: str, dtype: torch.dtype, debug: bool) -> None:
    """A file of random weights under the released names, and a model of diffusers of that size."""
    options = preset_options(next(each for each in RELEASES if each.preset == preset))
    options |= {**PROJECTOR, **(SMALL if debug else {})}
    with torch.device("meta"):
        network = TransitionTransformer2DModel(**options)
    drawn = {
        name: torch.empty(each.shape, dtype=dtype).normal_(std=0.02) for name, each in network.state_dict().items()
    }
    torch.save(restore_reference_names(drawn, options["patch_size"]), folder / "weights.bin")
    parameters = sum(each.numel() for each in drawn.values())
    del drawn
    width = options["hidden_size"]
    with torch.device("meta"):
        block = sum(each.numel() for each in DiTTransformer2DModel(4, width // 4, num_layers=1).parameters())
    layers = max(1, round(parameters / block))
    other = DiTTransformer2DModel(4, width // 4, num_layers=layers).to(dtype)
    other.save_pretrained(folder / "other")


def converting(folder: Path, dtype: torch.dtype) -> int:
    convert_reference(Request(folder / "weights.bin", folder / "model", vae="none/named", text_encoder="none/named"))
    return (folder / "weights.bin").stat().st_size


def loading(folder: Path, dtype: torch.dtype) -> int:
    pipeline = TransitionPipeline.from_pretrained(folder / "model", vae=None, torch_dtype=dtype)
    return touched(pipeline.transformer)


def loading_diffusers(folder: Path, dtype: torch.dtype) -> int:
    network = DiTTransformer2DModel.from_pretrained(folder / "other", torch_dtype=dtype)
    return touched(network)


def touched(network: torch.nn.Module) -> int:
    """Bytes of the weights, after a look at a byte of every page: files are mapped, and read no earlier."""
    for each in network.parameters():
        each.detach().view(-1).view(torch.uint8)[::4096].sum()
    return sum(each.nbytes for each in network.parameters())


PHASES: dict[str, Callable[[Path, torch.dtype], int]] = {
    "converting": converting, "loading": loading, "loading_diffusers": loading_diffusers,
}  # fmt: skip


def measured(phase: str, folder: Path, dtype: torch.dtype) -> dict[str, Any]:
    """Seconds, bytes of the weights, and the peak of this process over them."""
    before = held(CPU)
    forget_peak(CPU)
    begin = time.perf_counter()
    size = PHASES[phase](folder, dtype)
    found = peak(CPU)
    return {
        "seconds": time.perf_counter() - begin, "weights": size, "peak": found, "before": before,
        "peak_over_weights": found / size, "added_over_weights": (found - before) / size,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="t2i-xl")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    parser.add_argument("--debug", action="store_true", help="a small network")
    parser.add_argument("--folder", type=Path, help="for the weights (default: a temporary one)")
    parser.add_argument("--phase", choices=list(PHASES), help="measure this one, of a folder that is there")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "released.json")
    options = parser.parse_args()
    dtype = getattr(torch, options.dtype)
    if options.phase:
        print(json.dumps(measured(options.phase, options.folder, dtype)))
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        make(Path(name), options.preset, dtype, options.debug)
        rows = {}
        for phase in PHASES:
            command = [sys.executable, __file__, "--phase", phase, "--folder", name, "--dtype", options.dtype]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            rows[phase] = json.loads(done.stdout.splitlines()[-1])
            print(
                f"{phase}: {rows[phase]['seconds']:.1f} s, peak {rows[phase]['peak_over_weights']:.2f} of the weights"
            )
    write_record(options.out, {"preset": options.preset, "dtype": options.dtype, "phases": rows})


if __name__ == "__main__":
    main()
