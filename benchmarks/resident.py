"""What a process holds, and the most that it held: allocated on CUDA, resident on the CPU."""

import resource
import sys
from pathlib import Path

import psutil
import torch

# for the environment of a process of glibc: larger blocks are mapped on their own, and go back at once when freed
GIVEN_BACK = {"MALLOC_MMAP_THRESHOLD_": "65536"}
STATUS, FORGET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def held(device: torch.device) -> float:
    """Bytes at this moment."""
    return float(torch.cuda.memory_allocated() if device.type == "cuda" else psutil.Process().memory_info().rss)


def forget_peak(device: torch.device) -> None:
    """Begin anew with what is held now, where the system can."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    elif FORGET.exists():
        FORGET.write_text("5")


def peak(device: torch.device) -> float:
    """Bytes at most since the peak was forgotten, else so far."""
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated())
    if STATUS.exists():  # of this program; ru_maxrss begins with the peak of the process that started it
        line = next(line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM"))
        return 1024.0 * int(line.split()[1])
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * (1 if sys.platform == "darwin" else 1024)
