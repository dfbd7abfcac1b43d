"""Which device to run on, and what its maker says of it."""

import time
from dataclasses import dataclass

import torch

from anystep.bounds import shown
from anystep.environment import machine_memory
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


@dataclass(frozen=True)
class DeviceKind:
    """From the maker's data sheet.

    Attributes:
        flops: dense operations a second with bfloat16 inputs.
        memory: bytes.
        link: bytes a second in one direction to the others of its machine.
        network: bytes a second in one direction to other machines, of the adapter that one device has in the maker's
            own machine of eight.
    """

    flops: float
    memory: float
    link: float
    network: float | None = None


# by part of the name that the device gives itself
DEVICES = {
    "B200": DeviceKind(2250e12, 180e9, 900e9, 50e9),
    "H200": DeviceKind(989e12, 141e9, 450e9, 50e9),
    "H100": DeviceKind(989e12, 80e9, 450e9, 50e9),
    "A100": DeviceKind(312e12, 80e9, 300e9, 25e9),
    "L40S": DeviceKind(362e12, 48e9, 32e9),
    "4090": DeviceKind(165e12, 24e9, 32e9),
}


UTILISATION = 0.4  # of the data sheet's rate that work reaches, where nobody says


def device_kind(name: str) -> DeviceKind | None:
    """Of a device by its name, where it is known."""
    return next((kind for part, kind in DEVICES.items() if part in name.upper()), None)


def memory_of(device: torch.device) -> float:
    """Bytes of the device, or of the machine."""
    if device.type == "cuda":
        return float(torch.cuda.get_device_properties(device).total_memory)
    return float(machine_memory())


def flops_of(device: torch.device) -> float:
    """Operations a second: of the data sheet where the device is known, else what a product of matrices reaches."""
    if device.type == "cuda" and (kind := device_kind(torch.cuda.get_device_name(device))) is not None:
        return kind.flops
    one = torch.randn(1024, 1024, device=device)
    begin, rounds = time.perf_counter(), 0
    while time.perf_counter() - begin < 0.2:
        (one @ one)[0, 0].item()
        rounds += 1
    return 2 * 1024**3 * rounds / (time.perf_counter() - begin)


def rate_of(device: torch.device, utilisation: float | None = None) -> float:
    """Operations a second that work reaches: a share of the data sheet's, or what was measured.

    Raises:
        InputError: a share of what is measured, which has no meaning.
    """
    known = device.type == "cuda" and device_kind(torch.cuda.get_device_name(device)) is not None
    if not known and utilisation is not None:
        raise InputError(
            "--utilisation is a share of a data sheet's rate, and this machine's is measured: name devices --on"
        )
    return flops_of(device) * ((utilisation or UTILISATION) if known else 1)
