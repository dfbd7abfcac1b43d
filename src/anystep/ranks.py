"""The processes of one run: one alone, or those that `torchrun` starts."""

import atexit
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from anystep.errors import InputError
from anystep.files import claimed

T = TypeVar("T")

STORE_A_LIFE = "TORCH_DISABLE_SHARE_RDZV_TCP_STORE"  # read by torchrun


@cache
def _host_group() -> dist.ProcessGroup:
    """One for the life of the process: each is made by all processes together."""
    return dist.new_group(backend="gloo")


def _leave() -> None:
    """The threads of a group that outlives the interpreter abort a process whose work is done, on a busy machine."""
    if dist.is_initialized():
        dist.destroy_process_group()


def _life() -> str:
    """Which life of the workers this is. torchrun keeps one store for all of them, with addresses of the dead in it.

    Its agents on several machines count lives differently, so there each life needs a store of its own.
    """
    variable = os.environ.get
    if variable("GROUP_WORLD_SIZE", "1") == "1":
        return variable("TORCHELASTIC_RESTART_COUNT", "0")
    mortal = variable("TORCHELASTIC_MAX_RESTARTS", "0") != "0" and variable("TORCHELASTIC_USE_AGENT_STORE") == "True"
    if mortal and variable("RANK") == "0":
        print(f"workers that die cannot come back on several machines without {STORE_A_LIFE}=1", file=sys.stderr)
    return ""


class Ranks:
    """Joins the process group if there is one.

    Attributes:
        count, rank: of the processes, and of this one.
        host_group: for objects and for checkpoints, which are written while the device's group computes; None of one.
    """

    host_group: dist.ProcessGroup | None = None

    def __init__(self) -> None:
        self.count, self.rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
        if self.count == 1:
            return
        if not dist.is_initialized():
            if torch.cuda.is_available():
                torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
            store, rank, count = next(dist.rendezvous("env://"))
            dist.init_process_group(
                "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo",
                store=dist.PrefixStore(_life(), store), rank=rank, world_size=count,
            )  # fmt: skip
            atexit.register(_leave)
        self.host_group = _host_group()

    @classmethod
    def single(cls) -> "Ranks":
        """This process by itself, whatever others there are."""
        ranks = cls.__new__(cls)
        ranks.count, ranks.rank = 1, 0
        return ranks

    @property
    def is_main(self) -> bool:
        """Whether this process writes the log, the checkpoints and the pictures."""
        return self.rank == 0

    def any(self, flag: bool) -> bool:
        """Whether the flag is up in any process: all must stop, or skip, together."""
        if self.count == 1:
            return flag
        votes = torch.tensor(int(flag))
        dist.all_reduce(votes, group=self.host_group)
        return bool(votes.item())

    def all_gather_object(self, what: T) -> list[T]:
        """What each process has to say, in their order."""
        if self.count == 1:
            return [what]
        found: list[Any] = [None] * self.count
        dist.all_gather_object(found, what, group=self.host_group)
        return found

    def gather(self, values: Tensor) -> Tensor:
        """The values of all processes, in the order of the batch."""
        if self.count == 1:
            return values
        parts = [torch.empty_like(values) for _ in range(self.count)]
        dist.all_gather(parts, values.contiguous())
        return torch.cat(parts)

    def on_main(self, act: Callable[[], T]) -> T | None:
        """What the first process makes while the others wait; None in those.

        Raises:
            InputError: in all processes, where the first one raised it or an OSError: the others would wait for ever.
        """
        made = None
        with self.together():
            if self.is_main:
                made = act()
        return made

    @contextmanager
    def together(self) -> Iterator[None]:
        """A block that all processes go through, and leave together.

        Raises:
            InputError: in all of them, where one raised it or an OSError, as of a full disk: the others would wait.
        """
        problem = ""
        try:
            yield
        except InputError as error:
            problem = str(error)
        except OSError as error:
            problem = f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror or error)
        if problems := [each for each in self.all_gather_object(problem) if each]:
            raise InputError(problems[0])

    @contextmanager
    def claimed(self, folder: Path, kind: str, legacy: Sequence[str] = ()) -> Iterator[None]:
        """`files.claimed`, by the first process for all."""
        with ExitStack() as stack:
            self.on_main(lambda: stack.enter_context(claimed(folder, kind, legacy)))
            yield
