"""Reading checkpoints of `torch.distributed.checkpoint` without running code that somebody put into them.

Its `.metadata` is a pickle, and so are entries that are no tensors: unpickling calls what they name. Here the pickle is
first checked to have only the instructions that the writer uses, then its records are stand-ins of ours, made for one
reading, that hold plain values; each value is checked on its way into a record of the library. Entries that are no
tensors are read as plain values alone, and files are opened only inside the checkpoint's folder.
"""

import io
import pickle
import pickletools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import ReadItem

from anystep.bounds import shown
from anystep.errors import InputError
from anystep.files import read_bytes

METADATA = ".metadata"
MAX_NUMBER = 2**62  # of a number: sizes, offsets
MAX_AXES = 64  # of a tensor
# what the writer's pickles are made of; none that names a global by text alone, counts its own memory or calls outside
INSTRUCTIONS = (
    "PROTO", "FRAME", "STOP", "MARK", "MEMOIZE", "BINGET", "LONG_BINGET", "NONE", "NEWTRUE", "NEWFALSE", "BININT",
    "BININT1", "BININT2", "LONG1", "SHORT_BINUNICODE", "BINUNICODE", "EMPTY_DICT", "EMPTY_LIST", "EMPTY_TUPLE", "TUPLE",
    "TUPLE1", "TUPLE2", "TUPLE3", "APPEND", "APPENDS", "SETITEM", "SETITEMS", "STACK_GLOBAL", "NEWOBJ", "REDUCE",
    "BUILD",
)  # fmt: skip
RECORDS = {
    ("torch.distributed.checkpoint.metadata", kind.__name__)
    for kind in (
        BytesStorageMetadata, ChunkStorageMetadata, Metadata, MetadataIndex, StorageMeta, TensorProperties,
        TensorStorageMetadata,
    )
} | {("torch.distributed.checkpoint.filesystem", "_StorageInfo")}  # fmt: skip
PATHS = {(module, name) for module in ("pathlib", "pathlib._local") for name in ("PosixPath", "WindowsPath")}


class _Refused(ValueError):
    """The file holds what no checkpoint does."""


class _Unpickler(pickle.Unpickler):
    """One whose every global is a stand-in that holds or checks plain values."""

    def __init__(self, content: bytes) -> None:
        super().__init__(io.BytesIO(content))
        # made for this reading, so that what it sets on them is gone with it
        self._records = {
            each: type(each[1], (), {"__setstate__": lambda self, state: setattr(self, "fields", state)})
            for each in RECORDS
        }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in self._records:
            return self._records[module, name]
        if (module, name) == ("torch", "Size"):
            return lambda sizes: _sizes(sizes)
        if module == "torch" and isinstance(kind := getattr(torch, name, None), torch.dtype):
            return kind
        if (module, name) == ("torch.serialization", "_get_layout"):
            return lambda layout: None  # deprecated, and of a dense tensor always the same
        if (module, name) == ("torch.distributed.checkpoint.metadata", "_MEM_FORMAT_ENCODING"):
            return lambda number: None
        if (module, name) in PATHS:
            return lambda *parts: None
        raise _Refused(f"{module}.{name}")


def read_metadata(folder: Path, files: Mapping[str, Any]) -> Metadata:
    """What a checkpoint's folder says that it holds.

    Args:
        files: of the manifest, by name: the only ones in which tensors may lie.

    Raises:
        InputError: names the file and what is in it that no checkpoint has; nothing of it was run.
    """
    path = folder / METADATA
    content = read_bytes(path)
    try:
        for instruction, _, _ in pickletools.genops(content):
            if instruction.name not in INSTRUCTIONS:
                raise _Refused(f"the pickle instruction {instruction.name}")
        return _metadata(_Unpickler(content).load(), files)
    except Exception as error:  # unpickling what is not as expected raises many kinds
        reason = f"it holds {error}" if isinstance(error, _Refused) else f"{type(error).__name__}: {error}"
        raise InputError(
            f"{str(path)!r} is not what a checkpoint holds, and was not read ({reason}): take another --out, or remove "
            "that checkpoint"
        ) from None


def _metadata(found: Any, files: Mapping[str, Any]) -> Metadata:
    fields = _fields(found, "Metadata")
    seen: set[int] = set()
    entries = {_text(name): _entry(each, seen) for name, each in _kind(dict, fields["state_dict_metadata"]).items()}
    places = {_index(each): _place(info, files) for each, info in _kind(dict, fields["storage_data"]).items()}
    return Metadata(state_dict_metadata=entries, storage_data=places, storage_meta=StorageMeta())


def _entry(found: Any, seen: set[int]) -> TensorStorageMetadata | BytesStorageMetadata:
    """Of one tensor or value; `seen` are the lists of chunks so far: one that is used again makes much of a little."""
    if type(found).__name__ == "BytesStorageMetadata":
        return BytesStorageMetadata()
    fields = _fields(found, "TensorStorageMetadata")
    properties = vars(fields["properties"]).get("fields")
    dtype = _kind(torch.dtype, _kind(tuple, properties)[0])
    if id(fields["chunks"]) in seen:
        raise _Refused("one list of chunks for several tensors")
    seen.add(id(fields["chunks"]))
    chunks = [_fields(each, "ChunkStorageMetadata") for each in _kind(list, fields["chunks"])]
    return TensorStorageMetadata(
        TensorProperties(dtype=dtype),
        _sizes(fields["size"]),
        [ChunkStorageMetadata(_sizes(each["offsets"]), _sizes(each["sizes"])) for each in chunks],
    )


def _index(found: Any) -> MetadataIndex:
    fields = _fields(found, "MetadataIndex")
    offset, index = fields.get("offset"), fields.get("index")
    return MetadataIndex(
        _text(fields["fqn"]), None if offset is None else _sizes(offset), None if index is None else _natural(index)
    )


def _place(found: Any, files: Mapping[str, Any]) -> _StorageInfo:
    fields = _fields(found, "_StorageInfo")
    name = _text(fields["relative_path"])
    if name not in files:
        raise _Refused(f"a tensor in {name!r}, which the manifest does not name")
    if fields.get("transform_descriptors"):
        raise _Refused("a tensor in a transformed file")
    return _StorageInfo(name, _natural(fields["offset"]), _natural(fields["length"]))


def _fields(found: Any, kind: str) -> dict[Any, Any]:
    """The fields of a stand-in."""
    if type(found).__name__ != kind:
        raise _Refused(f"{type(found).__name__} in place of {kind}")
    return _kind(dict, vars(found).get("fields", {}))


def _kind(kind: type, value: Any) -> Any:
    if type(value) is not kind:
        raise _Refused(f"{type(value).__name__} in place of {kind.__name__}")
    return value


def _text(value: Any) -> str:
    return str(_kind(str, value))


def _natural(value: Any) -> int:
    if not 0 <= _kind(int, value) < MAX_NUMBER:
        raise _Refused(f"the size or offset {value}")
    return int(value)


def _sizes(values: Any) -> torch.Size:
    if not isinstance(values, list | tuple) or len(values) > MAX_AXES:
        raise _Refused(f"{type(values).__name__} in place of sizes")
    # in one pass, and not by `_natural`: a checkpoint has tens of thousands of them
    if not all(type(each) is int and 0 <= each < MAX_NUMBER for each in values):
        raise _Refused(f"the sizes {shown(values)}")
    return torch.Size(values)


class SafeReader(dcp.FileSystemReader):
    """Reads the tensors of a folder whose metadata `read_metadata` has checked."""

    def __init__(self, folder: Path, metadata: Metadata) -> None:
        super().__init__(folder)
        self._metadata = metadata

    # without further arguments: given a rank, the library would look for metadata of single processes
    def read_metadata(self) -> Metadata:
        return self._metadata


class SafePlanner(DefaultLoadPlanner):
    """Takes entries that are no tensors as plain values of the kind that they replace."""

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        name = read_item.dest_index.fqn
        found = torch.load(value, map_location="cpu", weights_only=True)
        if not _alike(found, self.state_dict[name]):
            raise InputError(f"{name} is {str(found)[:40]!r}, expected a value like {self.state_dict[name]!r}")
        written = io.BytesIO()  # the library reads bytes, without a guard: it is given those that we write
        torch.save(found, written)
        written.seek(0)
        super().load_bytes(read_item, written)


def _alike(found: Any, here: Any) -> bool:
    """Whether a value may stand in the place of another: numbers for numbers, sequences of as many."""
    if isinstance(found, list | tuple) and isinstance(here, list | tuple):
        return len(found) == len(here) and all(_alike(*each) for each in zip(found, here, strict=True))
    kinds: tuple[tuple[type, ...], ...] = ((bool, type(None)), (int, float), (str,))
    return any(type(found) in alike and type(here) in alike for alike in kinds)
