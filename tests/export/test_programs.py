"""Networks as ONNX: what is written is compared at sizes that were not traced, and what depends on them is found."""

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import lively
from torch import Tensor, nn

from anystep import TransitionPipeline
from anystep.errors import InputError
from anystep.export import programs
from anystep.export.programs import Program, TextStates, difference, onnx_runner, programs_of, write_onnx
from anystep.pipelines.scheduler import TransitionScheduler


def network_program(preset: str, **options: Any) -> Program:
    return next(programs_of(TransitionPipeline(lively(preset, **options), TransitionScheduler()), text_encoder=False))


@pytest.mark.parametrize(
    ("preset", "options"),
    [
        ("t2i-test", {"mask_text": False}),
        ("c2i-test", {}),
        ("t2i-test", {"branch_depth": 1, "guidance_embed": True}),
        ("t2i-test", {"position_embed": True, "caption_pool": True}),
    ],
    ids=["captions", "classes", "branches", "places"],
)
def test_networks_are_written_with_every_size_free(preset: str, options: dict[str, Any], tmp_path: Path) -> None:
    program = network_program(preset, **options)
    write_onnx(program, tmp_path / "network.onnx")
    assert difference(program, onnx_runner(program, tmp_path / "network.onnx")) < 1e-5


def test_weights_that_one_file_cannot_hold_lie_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(programs, "ONE_FILE", 1000)
    program = network_program("c2i-test")
    write_onnx(program, tmp_path / "network.onnx")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["network.onnx", "network.onnx.data"]
    assert difference(program, onnx_runner(program, tmp_path / "network.onnx")) < 1e-5


@pytest.mark.parametrize("name", ["t5", "gemma3"])
def test_text_encoders_are_written(name: str, tiny_text_models: dict[str, Path], tmp_path: Path) -> None:
    from anystep.conditioning import load_text_encoder

    program = Program(
        "text_encoder", TextStates(load_text_encoder(tiny_text_models[name]).model),
        {"ids": {0: "batch", 1: "length"}, "mask": {0: "batch", 1: "length"}}, ("states", {0: "batch", 1: "length"}),
        lambda size: (torch.randint(16, tuple(size[:2])), torch.ones(*size[:2], dtype=torch.int64)),
    )  # fmt: skip
    write_onnx(program, tmp_path / "text_encoder.onnx")
    assert difference(program, onnx_runner(program, tmp_path / "text_encoder.onnx")) < 1e-5


class DependsOnSize(nn.Module):
    """What the exporter takes for a constant."""

    def forward(self, x: Tensor) -> Tensor:
        return x * float(int(x.shape[2]))


def test_a_network_that_depends_on_sizes_is_found_out(tmp_path: Path) -> None:
    free = {0: "batch", 2: "height", 3: "width"}
    example = lambda size: (torch.randn(size[0], 3, size[2], size[3]),)  # noqa: E731
    program = Program("odd", DependsOnSize(), {"x": free}, ("y", free), example)
    write_onnx(program, tmp_path / "odd.onnx")
    assert difference(program, onnx_runner(program, tmp_path / "odd.onnx")) > 0.1


def test_what_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    class Sorts(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.linalg.svdvals(x)

    program = Program("odd", Sorts(), {"x": {}}, ("y", {}), lambda size: (torch.randn(3, 3),))
    with pytest.raises(InputError, match="odd cannot be written as ONNX: "):
        write_onnx(program, tmp_path / "odd.onnx")
