"""Small networks of our own: trained in one loop, kept in safetensors files."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import safe_open
from torch import Tensor, nn

from anystep.errors import InputError, refused
from anystep.files import write_tensors

Network = TypeVar("Network", bound=nn.Module)


def fit(
    network: Network,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    steps: int,
    loss: Callable[[], Tensor],
    on_step: Callable[[int, int, float], None] = lambda done, total, loss: None,
    max_norm: float = float("inf"),
) -> Network:
    """The network trained by its schedule's optimizer, on the CPU and ready to be used.

    Args:
        loss: of a batch that it draws.
        on_step: called with the steps that are done, all of them, and the loss.
        max_norm: that gradients are clipped to.
    """
    for step in range(steps):
        value = loss()
        schedule.optimizer.zero_grad()
        value.backward()
        if max_norm < float("inf"):
            nn.utils.clip_grad_norm_(network.parameters(), max_norm)
        schedule.optimizer.step()
        schedule.step()
        on_step(step + 1, steps, value.item())
    return network.eval().cpu()


def save_half(network: nn.Module, path: Path, metadata: Mapping[str, str]) -> None:
    """Write the weights in half precision, and the metadata beside them."""
    state = network.state_dict().items()
    half = {name: value.half().contiguous() if value.is_floating_point() else value for name, value in state}
    write_tensors(path, half, metadata)


def load_network(
    path: Path, what: str, command: str, build: Callable[[Mapping[str, Tensor], Mapping[str, str]], Network]
) -> Network:
    """The network in a file, in single precision.

    Args:
        what: the file holds, for errors.
        command: makes such files.
        build: makes the network that has these weights and metadata, without loading them.

    Raises:
        InputError: a missing or damaged file, or one of something else.
    """
    if not path.is_file():
        raise InputError(f"no {what} at {str(path)!r}: `{command} --out {path}` makes one")
    with refused(f"{path}: no {what}"):
        with safe_open(path, "pt") as file:
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            network = build(state, file.metadata() or {})
        network.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in state.items()})
    for part, value in network.state_dict().items():
        if not value.isfinite().all():
            raise InputError(f"{path}: {part} is not finite: the file is damaged, or its training diverged")
    return network.eval()
