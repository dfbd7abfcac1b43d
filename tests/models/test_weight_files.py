"""Files of weights as others leave them: wrapped, prefixed, in an old format, or with something else in them."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from anystep.errors import InputError
from anystep.models.weight_files import read_weights

PLAIN = {"one.weight": torch.arange(6.0).view(2, 3), "two.bias": torch.ones(2)}


def same(found: dict[str, Tensor]) -> bool:
    return found.keys() == PLAIN.keys() and all(torch.equal(found[name], each) for name, each in PLAIN.items())


@pytest.mark.parametrize("zipped", [True, False])
def test_tensors_are_read_from_every_format(tmp_path: Path, zipped: bool) -> None:
    save_file(PLAIN, tmp_path / "a.safetensors")
    torch.save(PLAIN, tmp_path / "a.bin", _use_new_zipfile_serialization=zipped)
    for name in ("a.safetensors", "a.bin"):
        found = read_weights(tmp_path / name)
        assert same(found.tensors)
        assert (found.section, found.prefix) == ("", "")


@pytest.mark.parametrize(
    ("content", "section", "prefix"),
    [
        ({"state_dict": PLAIN, "step": 3}, "state_dict", ""),
        ({"state": {"ema": PLAIN}, "args": {"lr": 0.1}}, "state.ema", ""),
        ({f"module.{name}": each for name, each in PLAIN.items()}, "", "module."),
        ({"model": {f"_orig_mod.module.{name}": each for name, each in PLAIN.items()}}, "model", "_orig_mod.module."),
    ],
)
def test_wrapped_weights_are_found_and_it_is_told_where(
    tmp_path: Path, content: Any, section: str, prefix: str
) -> None:
    torch.save(content, tmp_path / "wrapped.pt")
    found = read_weights(tmp_path / "wrapped.pt")
    assert same(found.tensors)
    assert (found.section, found.prefix) == (section, prefix)


def test_of_several_sets_of_weights_one_is_chosen(tmp_path: Path) -> None:
    zeros = {name: each * 0 for name, each in PLAIN.items()}
    torch.save({"model": zeros, "ema": PLAIN}, tmp_path / "both.pt")
    with pytest.raises(InputError, match=r"holds model \(2 tensors\), ema \(2 tensors\): pick one with --section"):
        read_weights(tmp_path / "both.pt")
    assert same(read_weights(tmp_path / "both.pt", "ema").tensors)
    with pytest.raises(InputError, match=r"section 'emma': .* holds model"):
        read_weights(tmp_path / "both.pt", "emma")


def test_nothing_is_read_but_plain_values(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> Any:
            return print, ("code ran",)

    for name, content, message in (
        ("trap", {"weights": Trap()}, r"not a plain file of weights .*can run code"),
        ("list", [1, 2], "does not hold tensors by name"),
        ("empty", {"state_dict": {}}, "does not hold tensors by name"),
    ):
        torch.save(content, tmp_path / f"{name}.bin")
        with pytest.raises(InputError, match=message):
            read_weights(tmp_path / f"{name}.bin")
    with pytest.raises(InputError, match=r"cannot read .*No such file"):
        read_weights(tmp_path / "none.safetensors")
    os.mkfifo(tmp_path / "fifo.bin")
    with pytest.raises(InputError, match="it is a FIFO"):
        read_weights(tmp_path / "fifo.bin")


def test_files_that_were_cut_short_are_one_line(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1000), "b": torch.zeros(1000)}, tmp_path / "a.safetensors")
    torch.save(PLAIN, tmp_path / "a.bin")
    for name in ("a.safetensors", "a.bin"):
        content = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(content[: len(content) // 2])
        with pytest.raises(InputError) as caught:
            read_weights(tmp_path / name)
        assert "\n" not in str(caught.value)
