"""Images are made in batches that do not depend on who makes them or on what is there already."""

import errno
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from anystep.errors import InputError
from anystep.evaluation.benchmarks.generate import GenerationRequest, generate_missing
from anystep.evaluation.settings import GenerationSettings
from anystep.pipelines.image_model import Generated
from anystep.pipelines.load import Model
from anystep.ranks import Ranks

THREES = GenerationSettings(batch=3)


class Recorder(Model):
    """Keeps the seeds of every batch it is asked for."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []

    def generate(self, prompt: Any, steps: int = 4, seed: Any = 0, *size: Any, **options: Any) -> Generated:
        self.batches.append(seed)
        return Generated([Image.new("RGB", (4, 4)) for _ in seed], steps, steps, 0.0)


def of(rank: int, count: int) -> Ranks:
    ranks = Ranks.single()
    ranks.rank, ranks.count = rank, count
    ranks.all_gather_object = lambda what: [what]  # type: ignore[method-assign]
    return ranks


def requests(folder: Path) -> list[GenerationRequest]:
    return [GenerationRequest(folder / f"{n}.png", "a", n, (4, 4) if n % 3 else (8, 8)) for n in range(11)]


@pytest.mark.parametrize("count", [1, 2, 3])
def test_batches_are_the_same_of_any_number_of_processes(tmp_path: Path, count: int) -> None:
    model = Recorder()
    for rank in range(count):
        generate_missing(model, requests(tmp_path), 1, THREES, of(rank, count))
    assert sorted(model.batches) == [[0, 3, 6], [1, 2, 4], [5, 7, 8], [9], [10]]


def test_batches_are_the_same_where_some_images_are_there(tmp_path: Path) -> None:
    wanted, model, told = requests(tmp_path), Recorder(), list[int]()
    generate_missing(model, wanted, 1, THREES, Ranks())
    wanted[2].path.unlink()
    wanted[7].path.write_bytes(wanted[7].path.read_bytes()[:-20])  # as a power cut leaves it
    wanted[9].path.write_bytes(b"")
    kept = wanted[1].path.stat().st_mtime_ns
    model.batches.clear()
    generate_missing(model, wanted, 1, THREES, Ranks(), told.append)
    assert sorted(model.batches) == [[1, 2, 4], [5, 7, 8], [9]]
    for request in wanted:
        Image.open(request.path).load()
    assert wanted[1].path.stat().st_mtime_ns == kept
    assert sum(told) == 11


class Told(Ranks):
    """One of two processes, with what the other says."""

    def __init__(self, first: bool, other: str = "") -> None:
        self.count, self.rank, self.other = 2, int(not first), other

    def all_gather_object(self, what: Any) -> list[Any]:
        return [what, self.other] if self.is_main else [self.other, what]


def test_what_stops_the_first_process_stops_all() -> None:
    def fail() -> None:
        raise InputError("no whale")

    def never() -> None:
        raise AssertionError("the others only wait")

    assert Told(True).on_main(lambda: 7) == 7
    assert Told(False).on_main(never) is None
    for ranks in (Told(True), Told(False, "no whale")):
        with pytest.raises(InputError, match="no whale"):
            ranks.on_main(fail)


def fill_the_disk(ranks: Ranks) -> None:
    with ranks.together():
        if ranks.is_main:
            raise OSError(errno.ENOSPC, "No space left on device", "a.png")


def test_a_full_disk_of_one_process_stops_all() -> None:
    for ranks in (Told(True), Told(False, "a.png: No space left on device")):
        with pytest.raises(InputError, match=r"a\.png: No space left"):
            fill_the_disk(ranks)
