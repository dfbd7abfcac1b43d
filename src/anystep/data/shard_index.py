"""The index of a set of shards: where each of their records lies, as tables in one safetensors file."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field, fields
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from anystep.data.example import PassedOver
from anystep.errors import InputError
from anystep.files import check_regular, write_tensors

INDEX = "index.safetensors"
UNKNOWN = -1  # a checksum or label nobody has noted; the size of a field that a record lacks


class IndexRow(NamedTuple):
    """Where one record lies.

    Attributes:
        places: of each field its first byte in the tar, its size in bytes and its CRC-32; (0, `UNKNOWN`, `UNKNOWN`)
            where the record lacks it.
        label: `UNKNOWN` without.
        grid: rows and columns of what the record holds; 0 where nobody knows.
        shard: which of the tars.
    """

    places: list[tuple[int, int, int]]
    label: int
    grid: tuple[int, int] = (0, 0)
    shard: int = 0


@dataclass(frozen=True)
class Index:
    """Where the records of some shards lie; one row a record, one column a field.

    Attributes:
        shards: names of the tar files, with their sizes in bytes.
        fields: names of the columns.
        shard, offsets, sizes, checksums, labels, grids: what an `IndexRow` says, of shape (records,),
            (records, fields) three times, (records,) and (records, 2).
        times: when each of the tars was written, where somebody else wrote them: by that a change is seen.
        passed_over: what lies in those and is no record.
    """

    shards: dict[str, int]
    fields: list[str]
    shard: Tensor
    offsets: Tensor
    sizes: Tensor
    checksums: Tensor
    labels: Tensor
    grids: Tensor
    _: KW_ONLY
    times: dict[str, str] = field(default_factory=dict)
    passed_over: PassedOver = field(default_factory=PassedOver)

    @classmethod
    def from_rows(cls, shards: Mapping[str, int], names: Sequence[str], rows: Sequence[IndexRow]) -> "Index":
        """The tables of these rows, each of which has a place for every one of the fields named."""
        places = torch.tensor([row.places for row in rows], dtype=torch.int64).view(len(rows), len(names), 3)
        offsets, sizes, checksums = (each.contiguous() for each in places.unbind(2))
        return cls(
            dict(shards),
            list(names),
            torch.tensor([row.shard for row in rows], dtype=torch.int32),
            offsets,
            sizes,
            checksums,
            torch.tensor([row.label for row in rows], dtype=torch.int64),
            torch.tensor([row.grid for row in rows], dtype=torch.int32).view(-1, 2),
        )

    def save(self, path: Path) -> None:
        # one entry: several are written in an order that changes from process to process
        holds = [self.shards, self.fields] + ([self.times, self.passed_over] if self.times else [])
        write_tensors(path, {name: getattr(self, name) for name in TABLES}, {"holds": json.dumps(holds)})

    @classmethod
    def load(cls, path: Path) -> "Index":
        """Mapped into memory, so that processes share the pages. Raises `InputError` where it is damaged."""
        check_regular(path)
        try:
            with safe_open(path, "pt") as file:
                holds = json.loads((file.metadata() or {})["holds"])
            tensors = load_file(path)
            shards, names, times, passed = [*holds, {}, {}][:4]
            tables = (tensors[name] for name in TABLES)
            index = cls(dict(shards), list(names), *tables, times=dict(times), passed_over=PassedOver(passed))
            index.check()
        except (SafetensorError, LookupError, TypeError, ValueError, RecursionError) as error:
            raise InputError(f"{path} is damaged: {str(error) or type(error).__name__}") from None
        return index

    def check(self) -> None:
        """Raise ValueError where the tables do not go together, or tell of places outside of the tars."""
        rows, columns = len(self.shard), len(self.fields)
        shapes = {"shard": (rows,), "labels": (rows,), "grids": (rows, 2)}
        for name in TABLES:
            table = getattr(self, name)
            if tuple(table.shape) != shapes.get(name, (rows, columns)) or table.dtype not in (torch.int32, torch.int64):
                raise ValueError(f"its table {name} is {table.dtype} of {list(table.shape)}")
        if not all(isinstance(size, int) for size in self.shards.values()):
            raise ValueError("its sizes of tars are no numbers")
        if rows == 0:
            return
        if int(self.shard.min()) < 0 or int(self.shard.max()) >= len(self.shards):
            raise ValueError("it names tars that it does not list")
        ends = torch.tensor(list(self.shards.values()))[self.shard.long()][:, None]
        outside = (self.offsets < 0) | (self.offsets > ends) | (self.sizes < UNKNOWN) | (self.sizes > ends)
        if bool((outside | (self.offsets + self.sizes > ends)).any()):
            raise ValueError("it tells of places outside of the tars")

    def of_shard(self, name: str) -> "Index":
        """The index of one of the shards alone."""
        rows = self.shard == list(self.shards).index(name)
        tables = [getattr(self, table)[rows] for table in TABLES[1:]]
        return Index({name: self.shards[name]}, self.fields, torch.zeros(int(rows.sum()), dtype=torch.int32), *tables)

    @classmethod
    def concatenate(cls, parts: Sequence["Index"]) -> "Index":
        """The index of several groups of shards, all of which have the same fields."""
        shards = {name: size for part in parts for name, size in part.shards.items()}
        before = [sum(len(each.shards) for each in parts[:place]) for place in range(len(parts))]
        shard = torch.cat([part.shard + first for part, first in zip(parts, before, strict=True)])
        rest = (torch.cat([getattr(part, name) for part in parts]) for name in TABLES[1:])
        return cls(shards, parts[0].fields, shard, *rest)


TABLES = tuple(each.name for each in fields(Index) if each.type is Tensor)
