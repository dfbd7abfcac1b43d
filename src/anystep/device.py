"""Which device to run on."""

import torch

from anystep.bounds import shown
from anystep.errors import InputError


def pick_device(name: str) -> torch.device:
    """`auto` is CUDA, else MPS, else the CPU.

    Raises:
        InputError: a device that does not exist here.
    """
    if name == "auto":
        kind = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        return torch.device(kind)
    try:
        device = torch.device(name)
        if device.type != "meta":  # which has no data to compute with
            torch.ones(1, device=device).item()
            return device
        reason = "expected auto, cpu, cuda, mps or another that PyTorch computes on"
    except (RuntimeError, AssertionError, NotImplementedError, ImportError, AttributeError, ValueError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
    raise InputError(f"device {shown(name)} is not available: {reason}")


def execution_device(module: torch.nn.Module) -> torch.device:
    """Where a module computes: its weights may be elsewhere until a hook of accelerate brings them."""
    place = getattr(getattr(module, "_hf_hook", None), "execution_device", None)
    return next(module.parameters()).device if place is None else torch.device(place)
