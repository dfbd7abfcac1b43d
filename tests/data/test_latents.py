"""A source encoded once, in shards; what training reads of it."""

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import Colours, encode, encoders, folder_bytes
from torch import Tensor

from anystep.data.encode import encode_shards
from anystep.data.encoders import Encoders
from anystep.data.example import BrokenExample, Example
from anystep.data.latents import ABOUT, LATENT, TEXT, LatentSet, LatentShards
from anystep.data.manifest import Manifest
from anystep.data.npy import to_npy
from anystep.data.overview import overview
from anystep.data.prepare import prepare
from anystep.data.prepared_folder import PreparedFolder
from anystep.data.shard_files import Record, write_shard
from anystep.data.shard_index import INDEX, Index
from anystep.data.shard_layout import ShardLayout
from anystep.data.shards import Shards
from anystep.errors import InputError
from anystep.ranks import Ranks


def test_latents_captions_and_labels_stay_together(tmp_path: Path) -> None:
    heard: list[tuple[int, int]] = []
    made = prepare(Colours(), tmp_path, encoders(), shard_size=15, on_progress=lambda *place: heard.append(place))
    kept = [index for index in range(40) if index % 10 != 9]
    assert len(made) == len(kept) == 36
    latents = torch.stack([made[place].latent for place in range(36)])
    torch.testing.assert_close(latents[:, 0, 1, 1], torch.tensor(kept) / 127.5 - 1)
    assert made.labels.tolist() == [made[place].label for place in range(36)] == [index % 2 for index in kept]
    assert made[0].captions == ("number 0", "0, a comma\tand a tab")
    assert made[4].captions == ()
    assert (made.stats.captioned, made.class_names, made.channels, made.shapes) == (
        35,
        ["even", "odd"],
        2,
        {(2, 2): 36},
    )
    assert made.stats.broken == [f"{index}.png: broken" for index in (9, 19, 29, 39)]
    assert heard[-1] == (40, 40)


def test_they_are_encoded_once_and_nothing_else_is_left(tmp_path: Path) -> None:
    prepare(Colours(), tmp_path, encoders(), shard_size=20)
    before = folder_bytes(tmp_path)
    assert list(before) == [".anystep.json", ".lock", "000000.tar", "000001.tar", "dataset.json", "index.safetensors"]

    def twice(images: Tensor) -> Tensor:
        raise AssertionError("encoded twice")

    prepare(Colours(), tmp_path, Encoders(twice, {"codec": "every third"}), shard_size=20)
    assert folder_bytes(tmp_path) == before


@pytest.mark.parametrize("stop", [1, 2, 3])
def test_an_interrupted_encoding_goes_on_at_its_shard_to_the_same_bytes(tmp_path: Path, stop: int) -> None:
    calls = 0

    def interrupted(images: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == stop:
            raise KeyboardInterrupt
        return encode(images)

    with pytest.raises(KeyboardInterrupt):
        prepare(Colours(), tmp_path / "b", Encoders(interrupted, {"codec": "every third"}), shard_size=10)
    with pytest.raises(InputError, match="not finished"):
        LatentShards(str(tmp_path / "b"))
    calls = -10
    prepare(Colours(), tmp_path / "b", Encoders(interrupted, {"codec": "every third"}), shard_size=10)
    assert calls == -10 + 4 - (stop - 1)
    prepare(Colours(), tmp_path / "a", encoders(), shard_size=10)
    assert folder_bytes(tmp_path / "a") == folder_bytes(tmp_path / "b")


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from helpers import Colours, encode
from anystep.data.encoders import Encoders
from anystep.data.prepare import prepare
calls = 0
def killed(images):
    global calls
    calls += 1
    if calls == int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)
    return encode(images)
prepare(Colours(), Path(sys.argv[2]), Encoders(killed, {"codec": "every third"}), shard_size=20)
"""


def test_a_killed_encoding_leaves_nothing_and_ends_in_the_same_bytes(tmp_path: Path) -> None:
    command = [sys.executable, "-c", KILLED, str(Path(__file__).parents[1]), str(tmp_path / "killed"), "2"]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    assert list((tmp_path / "killed").glob(".*.part"))
    for name in ("killed", "whole"):
        prepare(Colours(), tmp_path / name, encoders(), shard_size=20)
    assert folder_bytes(tmp_path / "killed") == folder_bytes(tmp_path / "whole")


def test_processes_share_the_shards(tmp_path: Path) -> None:
    (tmp_path / "two").mkdir()
    layout = ShardLayout(tmp_path / "two", 40, 10)
    work = PreparedFolder(Colours(), layout, Manifest({}, []), print)
    assert not work.begin()
    for rank in (1, 0):
        ranks = Ranks.single()
        ranks.count, ranks.rank = 2, rank
        encode_shards(Colours(), layout, encoders(), ranks, lambda done, total: None)
    work.finish()
    prepare(Colours(), tmp_path / "one", encoders(), shard_size=10)
    assert all(
        (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
        for name in ("000000.tar", "000001.tar", "000003.tar", "index.safetensors")
    )


def test_mirrored_images_states_of_captions_and_features_are_kept(tmp_path: Path) -> None:
    made = prepare(
        Colours(), tmp_path,
        encoders(
            mirror=True, dtype="float16",
            text=lambda captions: [torch.full((len(caption), 3), 1.5) for caption in captions],
            features=lambda images: images.mean((2, 3))[:, None],
        ),
    )  # fmt: skip
    one = made[2]
    assert one.mirrored is not None
    assert torch.equal(one.mirrored, one.latent.flip(2))
    assert not torch.equal(one.mirrored, one.latent)
    assert one.text is not None
    assert [tuple(states.shape) for states in one.text] == [(len(caption), 3) for caption in one.captions]
    assert one.features is not None
    assert one.features.shape == (1, 3)


def test_what_something_else_made_is_refused(tmp_path: Path) -> None:
    prepare(Colours(), tmp_path, encoders())
    with pytest.raises(InputError, match=r"differ in codec \(.every third., not .other.\): choose"):
        prepare(Colours(), tmp_path, Encoders(encode, {"codec": "other"}))
    with pytest.raises(InputError, match=r"differ in dtype \('float32', not 'float16'\)"):
        prepare(Colours(), tmp_path, encoders(dtype="float16"))
    with pytest.raises(InputError, match=r"differ in shard_size \(1000, not 7\)"):
        prepare(Colours(), tmp_path, encoders(), shard_size=7)
    with pytest.raises(InputError, match="were made with codec 'every third', this recipe has 'other'"):
        LatentShards(str(tmp_path)).check({"codec": "other"})


def test_nothing_readable_is_one_line(tmp_path: Path) -> None:
    class Broken(Colours):
        def __getitem__(self, index: int) -> Example:  # type: ignore[override]
            return super().__getitem__(9)

    with pytest.raises(InputError, match=r"no example could be read; the first failure: 9\.png: broken"):
        prepare(Broken(), tmp_path, encoders())


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


def test_overview_of_a_folder_leaves_broken_images_out(captioned_folder: Path, tmp_path: Path) -> None:
    for path in captioned_folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "00.png").write_bytes(b"no image")
    sheet = overview(str(tmp_path), 32, 100)
    assert (sheet.shown, sheet.total, len(sheet.left_out)) == (11, 12, 1)
    assert "00.png: not an image" in sheet.left_out[0]
    assert sheet.picture.height > 2 * 160


def test_overview_of_the_art_shows_every_background() -> None:
    sheet = overview("builtin", 24, 40)
    assert sheet.shown == 40 < sheet.total
    colours = {colour for _, colour in sheet.picture.getcolors(2**24)}
    from anystep.data.art import BACKGROUNDS

    assert set(BACKGROUNDS.values()) <= colours


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


def test_an_example_of_a_class_that_is_none_is_left_out(tmp_path: Path) -> None:
    class Odd(Colours):
        def __getitem__(self, index: int) -> Example:
            return replace(super().__getitem__(index), label=5 if index == 2 else 0)

    made = prepare(Odd(), tmp_path, encoders())
    assert "2: class 5, expected 0 to 1" in made.stats.broken


@pytest.mark.parametrize(
    "said",
    [
        "", "[]", "{", "[" * 100_000, '{"complete": true}', '{"complete": true, "made_by": {}, "class_names": [1]}',
        '{"complete": true, "made_by": {}, "class_names": [], "broken": 5}',
        '{"complete": true, "made_by": {}, "class_names": [], "shards": [5]}',
        '{"complete": true, "made_by": {}, "class_names": [], "passed_over": {"a": 1}}',
    ],
)  # fmt: skip
def test_a_damaged_description_is_one_line(tmp_path: Path, said: str) -> None:
    prepare(Colours(), tmp_path, encoders())
    (tmp_path / "dataset.json").write_text(said)
    with pytest.raises(InputError, match=r"dataset\.json.*: run the same `anystep data prepare` again"):
        LatentShards(str(tmp_path))
