"""Which device to run on, and how much it holds and does."""

import time
from dataclasses import dataclass

import torch

from anystep.bounds import shown
from anystep.data_sheets import DEVICES, PRECISIONS, UTILISATION, DeviceKind, device_kind
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


def pick_precision(name: str, device: torch.device) -> torch.dtype:
    """What blocks compute in: `auto` is bfloat16 on CUDA devices with units for it, else float32.

    On CUDA, products of float32 matrices may use TF32 from now on. Raises `InputError` for another name.
    """
    if name not in PRECISIONS:
        raise InputError(f"precision {shown(name)}: expected {', '.join(PRECISIONS)}")
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")
    fast = device.type == "cuda" and torch.cuda.is_bf16_supported()
    return torch.bfloat16 if name == "bfloat16" or (name == "auto" and fast) else torch.float32


def execution_device(module: torch.nn.Module) -> torch.device:
    """Where a module computes: its weights may be elsewhere until a hook of accelerate brings them or a part."""
    hooks = (getattr(each, "_hf_hook", None) for each in module.modules())
    places = (getattr(hook, "execution_device", None) for hook in hooks)
    place = next((each for each in places if each is not None), None)
    return next(module.parameters()).device if place is None else torch.device(place)


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


@dataclass(frozen=True)
class PlannedDevice:
    """A device that work is planned for.

    Attributes:
        device: of this machine; None where it is one of `DEVICES`.
        kind: of `DEVICES`, where it is one.
        memory: bytes.
        rate: operations a second that work reaches.
    """

    device: torch.device | None
    kind: DeviceKind | None
    memory: float
    rate: float


def planned_device(on: str | None, device: str = "auto", utilisation: float | None = None) -> PlannedDevice:
    """One of `DEVICES`, or when None the named device of this machine.

    Raises:
        InputError: a device that is not there, or a share of what is measured, which has no meaning.
    """
    if on is not None:
        kind = DEVICES[on]
        return PlannedDevice(None, kind, kind.memory, (utilisation or UTILISATION) * kind.flops)
    here = pick_device(device)
    known = here.type == "cuda" and device_kind(torch.cuda.get_device_name(here)) is not None
    if not known and utilisation is not None:
        raise InputError(
            "--utilisation is a share of a data sheet's rate, and this machine's is measured: name devices --on"
        )
    return PlannedDevice(here, None, memory_of(here), flops_of(here) * ((utilisation or UTILISATION) if known else 1))
