"""A source is encoded once, by one process or several, and gone on with where it was left."""

import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers import Colours, encode, encoders, folder_bytes, save_image
from torch import Tensor

from anystep.cli import main
from anystep.data.encode import Encoders, encode_shards
from anystep.data.example import Example
from anystep.data.latents import LatentShards
from anystep.data.manifest import Manifest
from anystep.data.prepare import prepare
from anystep.data.prepared_folder import PreparedFolder
from anystep.data.shard_files import ShardLayout
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
from anystep.data.encode import Encoders
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
    work = PreparedFolder(Colours(), layout, Manifest(made_by={}, class_names=[], complete=False), print)
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


def test_images_that_are_enlarged_are_counted_and_limits_of_other_shapes_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, size in (("a", (16, 16)), ("b", (2, 6)), ("c", (10, 40))):
        save_image(tmp_path / "p" / f"{name}.png", name, size)
    words = ["data", "prepare", str(tmp_path / "p"), "--codec", "identity", "--size", "16", "--out"]
    assert main([*words, str(tmp_path / "out")]) == 0
    assert "\nenlarged: 2, up to 8x\n" in capsys.readouterr().out
    for option in (["--longest", "32"], ["--aspect", "2"]):
        assert main([*words, str(tmp_path / "other"), *option]) == 2
        assert f"{' '.join(option)} is for images of their own shape: give --native too" in capsys.readouterr().err
    assert main([*words, str(tmp_path / "native"), "--native", "--aspect", "4"]) == 0
    assert "enlarged:" not in capsys.readouterr().out


def test_nothing_readable_is_one_line(tmp_path: Path) -> None:
    class Broken(Colours):
        def __getitem__(self, index: int) -> Example:  # type: ignore[override]
            return super().__getitem__(9)

    with pytest.raises(InputError, match=r"no example could be read; the first failure: 9\.png: broken"):
        prepare(Broken(), tmp_path, encoders())


def test_an_example_of_a_class_that_is_none_is_left_out(tmp_path: Path) -> None:
    class Odd(Colours):
        def __getitem__(self, index: int) -> Example:
            return replace(super().__getitem__(index), label=5 if index == 2 else 0)

    made = prepare(Odd(), tmp_path, encoders())
    assert "2: class 5, expected 0 to 1" in made.stats.broken
