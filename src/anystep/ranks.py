"""The processes of one run: one alone, or those that `torchrun` starts (DistributedDataParallel)."""

import os

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from anystep.errors import InputError


class Ranks:
    """Joins the process group if there is one.

    Every process draws the whole batch's times, noise and captions and keeps its own rows, so the result does not
    depend on how many there are.
    """

    def __init__(self) -> None:
        self.count, self.rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
        if self.count > 1 and not dist.is_initialized():
            dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
            if torch.cuda.is_available():
                torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))

    @property
    def first(self) -> bool:
        """Whether this process writes the log, the checkpoints and the pictures."""
        return self.rank == 0

    def rows(self, batch_size: int) -> slice:
        """This process's rows of a batch."""
        if batch_size % self.count:
            raise InputError(f"run.batch_size {batch_size} must be a multiple of the {self.count} processes")
        each = batch_size // self.count
        return slice(self.rank * each, (self.rank + 1) * each)

    def wrap(self, network: nn.Module) -> nn.Module:
        """The network with its gradients averaged over processes."""
        return network if self.count == 1 else DistributedDataParallel(network)

    def any(self, flag: bool) -> bool:
        """Whether the flag is up in any process: all must stop, or skip, together."""
        if self.count == 1:
            return flag
        device = "cuda" if dist.get_backend() == "nccl" else "cpu"
        votes = torch.tensor(int(flag), device=device)
        dist.all_reduce(votes)
        return bool(votes.item())

    def gather(self, values: Tensor) -> Tensor:
        """The values of all processes, in the order of the batch."""
        if self.count == 1:
            return values
        parts = [torch.empty_like(values) for _ in range(self.count)]
        dist.all_gather(parts, values.contiguous())
        return torch.cat(parts)

    def wait(self) -> None:
        if self.count > 1:
            dist.barrier()
