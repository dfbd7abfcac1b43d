"""Shards hold what was written into them, and depend on nothing else."""

import tarfile
from pathlib import Path

import pytest
from helpers import save_shards, shard_records
from hypothesis import given
from hypothesis import strategies as st

from anystep.data.npy import from_npy
from anystep.data.shard_files import write_shard


@given(counts=st.lists(st.integers(1, 6), min_size=1, max_size=4))
def test_every_record_comes_back_and_tar_reads_it_too(
    tmp_path_factory: pytest.TempPathFactory, counts: list[int]
) -> None:
    folder = tmp_path_factory.mktemp("shards")
    shards = save_shards(folder, *counts)
    assert len(shards) == sum(counts)
    wanted = [record for n, count in enumerate(counts) for record in shard_records(count, 100 * n)]
    for number, record in enumerate(wanted):
        assert shards.read(number) == record.fields
        assert int(shards.index.labels[number]) == record.label
    with tarfile.open(folder / "0.tar") as tar:
        opened = tar.extractfile("0000.npy")
        assert opened is not None
        assert from_npy(opened.read()).tolist() == [0, 0, 0]


def test_a_shard_depends_on_its_records_alone(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_shard(tmp_path / f"{name}.tar", shard_records(4))
    assert (tmp_path / "one.tar").read_bytes() == (tmp_path / "two.tar").read_bytes()
