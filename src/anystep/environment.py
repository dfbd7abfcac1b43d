"""What a figure was made with: versions and machine."""

import os
import platform
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import torch


def cpu_model() -> str:
    """What the processor calls itself."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(": ", 1)[1] for line in lines if line.startswith("model name")), platform.machine())


def environment() -> dict[str, Any]:
    """Versions and machine, for the record."""
    from anystep import __version__

    return {
        "anystep": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": cpu_model(),
        "cpus": os.cpu_count(),
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def machine_memory() -> int:
    """Bytes of the machine's memory."""
    return int(psutil.virtual_memory().total)


def reset_peak() -> None:
    """Begin to measure `peak_megabytes` anew, where the system can: with CUDA, and on Linux."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        return
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_megabytes() -> float:
    """On CUDA the most that was allocated, else the most that this process has held, since `reset_peak`."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    with suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 2**10
    with suppress(ImportError):  # Windows has none
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
    return float(getattr(psutil.Process().memory_info(), "peak_wset", resident_bytes())) / 2**20


def resident_bytes() -> int:
    """Memory that this process holds now."""
    return int(psutil.Process().memory_info().rss)
