"""What training reads of prepared folders, damaged ones too."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import Colours, encoders

from anystep.data.encode import Encoders
from anystep.data.example import BrokenExample
from anystep.data.latents import ABOUT, LATENT, TEXT, Encoded, LatentSet, LatentShards
from anystep.data.npy import to_npy
from anystep.data.prepare import prepare
from anystep.data.shard_files import Record, write_shard
from anystep.data.shard_index import INDEX, Index
from anystep.data.shards import Shards
from anystep.errors import InputError


def damage(folder: Path, numbers: Sequence[int]) -> None:
    shards = LatentShards(str(folder)).shards
    for number in numbers:
        path = folder / list(shards.index.shards)[int(shards.index.shard[number])]
        content = bytearray(path.read_bytes())
        content[int(shards.index.offsets[number, 0]) + 130] ^= 1
        path.write_bytes(content)


def test_a_damaged_record_is_replaced_by_its_neighbour_and_too_many_stop_the_run(tmp_path: Path) -> None:
    made = prepare(Colours(), tmp_path, encoders(), shard_size=10)
    damage(tmp_path, [5, 6, 35])
    data = LatentSet([LatentShards(str(tmp_path)), made])
    read = data.read([4, 5, 35, 41])
    assert [int((one.latent[0, 1, 1] + 1) * 127.5 + 0.5) for one in read] == [4, 7, 0, 7]
    assert set(data.broken) == {5, 6, 35, 41, 42}
    assert "damaged" in data.broken[5]
    data.check_broken()
    damage(tmp_path, range(10, 25))
    data.read(range(10, 25))
    with pytest.raises(InputError, match=r"\d+ of 72 examples cannot be read, more than data.broken_limit 0.01"):
        data.check_broken()
    damage(tmp_path, [*range(5), *range(7, 10), *range(25, 35)])
    with pytest.raises(InputError, match="36 examples of a shape in a row cannot be read"):
        LatentSet([LatentShards(str(tmp_path))]).read([3])


def test_sets_that_do_not_go_together_are_refused(tmp_path: Path) -> None:
    one = prepare(Colours(), tmp_path / "one", encoders())
    two = prepare(Colours(), tmp_path / "two", Encoders(lambda images: images, {}))
    with pytest.raises(InputError, match=r"latents of \[2, 3\] channels cannot be mixed"):
        LatentSet([one, two])


class Named(Colours):
    """Colours whose classes have other names."""

    def __init__(self, *names: str) -> None:
        self.class_names = [*names]


def test_classes_of_one_name_are_one_class_in_a_mixture_of_sets(tmp_path: Path) -> None:
    sets = [prepare(Named(*names), tmp_path / names[0], encoders()) for names in (("red", "green"), ("green", "grey"))]
    data = LatentSet(sets)
    assert data.class_names == ["red", "green", "grey"]
    names = [each.class_names[each[number].label] for each in sets for number in range(len(each))]
    assert [data.class_names[one.label] for one in data.read(range(len(data)))] == names
    assert [data.class_names[label] for labels in data.labels for label in labels] == names
    assert set(names) == {"red", "green", "grey"}


def remade(folder: Path, change: Callable[[dict[str, Any], dict[str, bytes]], None]) -> LatentShards:
    """A prepared folder whose second record is another, with an index that fits."""
    prepare(Colours(), folder, encoders(text=lambda captions: [torch.ones(2, 3) for _ in captions]), shard_size=3)
    before = Shards(str(folder))
    records = []
    for number in range(len(before)):
        fields = before.read(number)
        about = json.loads(fields[ABOUT])
        label = about["label"]
        if number == 1:
            change(about, fields)
            fields[ABOUT] = fields[ABOUT] if fields[ABOUT].startswith(b"!") else json.dumps(about).encode()
            fields[ABOUT] = fields[ABOUT].removeprefix(b"!")
        records.append(Record(f"{number:09d}", fields, label, (2, 2)))
    for path in folder.glob("*.tar"):
        path.unlink()
    write_shard(folder / "000000.tar", records).save(folder / INDEX)
    return LatentShards(str(folder))


WRONG_RECORDS: dict[str, Callable[[dict[str, Any], dict[str, bytes]], Any]] = {
    "expected a JSON dict": lambda about, fields: fields.update({ABOUT: b"![]"}),
    "nested too deeply": lambda about, fields: fields.update({ABOUT: b"!" + b"[" * 100_000}),
    "not UTF-8": lambda about, fields: fields.update({ABOUT: b"!\xff"}),
    "its caption is no text": lambda about, fields: about.update(captions=5),
    "class 'x', but 1 by the index": lambda about, fields: about.update(label="x"),
    "class 7, but 1 by the index": lambda about, fields: about.update(label=7),
    "a damaged array": lambda about, fields: fields.update({LATENT: fields[LATENT][:-1]}),
    "an array of": lambda about, fields: fields.update({LATENT: to_npy(np.array(["x"]))}),
    "a latent of": lambda about, fields: fields.update({LATENT: to_npy(np.zeros((2, 3, 2)))}),
    "latent.npy is not finite": lambda about, fields: fields.update({LATENT: to_npy(np.full((2, 2, 2), np.nan))}),
    "states of shape": lambda about, fields: about.update(lengths=[1, 2]),
    "no lengths": lambda about, fields: about.update(lengths=[-1, 5]),
    "text.npy is not finite": lambda about, fields: fields.update({TEXT: to_npy(np.full((4, 3), np.inf))}),
}


@pytest.mark.parametrize("reason", WRONG_RECORDS)
def test_a_record_that_says_nonsense_is_a_broken_example(tmp_path: Path, reason: str) -> None:
    shards = remade(tmp_path, WRONG_RECORDS[reason])
    with pytest.raises(BrokenExample, match=reason):
        shards[1]
    assert shards[2].captions


def test_labels_out_of_range_are_refused_when_the_folder_is_opened(tmp_path: Path) -> None:
    prepare(Colours(), tmp_path, encoders())
    for label in (7, -2):
        index = Index.load(tmp_path / INDEX)
        labels = index.labels.clone()
        labels[3] = label
        replace(index, labels=labels).save(tmp_path / INDEX)
        with pytest.raises(InputError, match=f"record 3: class {label}, expected 0 to 1: run the same"):
            LatentShards(str(tmp_path))


def test_a_turned_example_has_the_features_of_the_other_side() -> None:
    latent = torch.arange(24.0).view(1, 4, 6)  # 2 x 3 tokens
    example = Encoded(latent, ("a",), 3, latent.flip(2), features=torch.arange(12.0).view(6, 2))
    turned = example.turned(2)
    assert turned.features is not None
    assert turned.features[:, 0].tolist() == [4, 2, 0, 10, 8, 6]
    assert torch.equal(turned.latent, latent.flip(2))
    assert (turned.captions, turned.label) == (("a",), 3)
    plain = Encoded(latent)
    assert plain.turned(2) is plain
