"""Chunks are made once, made again where they are damaged, and joined to one set."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from anystep.errors import InputError
from anystep.evaluation.collect import Cost, collect
from anystep.evaluation.extractors.registry import load_extractor
from anystep.evaluation.settings import Evaluation, MeasurementSettings


def pooled_evaluation(pooled: Path, out: Path, **settings: Any) -> Evaluation:
    return Evaluation(
        MeasurementSettings(out=out, samples=60, **settings), load_extractor(str(pooled), "cpu", True), []
    )


def test_a_chunk_that_was_cut_off_is_made_again_and_missing_images_too(pooled: Path, tmp_path: Path) -> None:
    def make(chunk: range) -> tuple[torch.Tensor, Cost]:
        return torch.full((len(chunk), 3, 8, 8), 7, dtype=torch.uint8), Cost()

    seen, _ = collect(pooled_evaluation(pooled, tmp_path), "seven", tmp_path, 60, make)
    chunk = tmp_path / "00001.safetensors"
    chunk.write_bytes(chunk.read_bytes()[:-20])
    assert not (tmp_path / "images").exists()
    again, _ = collect(pooled_evaluation(pooled, tmp_path, keep_images=True), "seven", tmp_path, 60, make)
    assert torch.equal(seen.features, again.features)
    assert len(list((tmp_path / "images").iterdir())) == 60


def test_features_of_a_changed_extractor_beside_those_of_before_are_one_line(pooled: Path, tmp_path: Path) -> None:
    class Narrow:
        name, digest, classifies = "pooled", "the same", False

        def __init__(self, width: int) -> None:
            self.width = width

        def __call__(self, images: torch.Tensor) -> torch.Tensor:
            return images.float().flatten(1)[:, : self.width]

        def classify(self, features: torch.Tensor) -> None:
            return None

    def make(chunk: range) -> tuple[torch.Tensor, Cost]:
        return torch.full((len(chunk), 3, 8, 8), 7, dtype=torch.uint8), Cost()

    evaluation = pooled_evaluation(pooled, tmp_path)
    collect(replace(evaluation, extractor=Narrow(24)), "seven", tmp_path, 60, make)
    (tmp_path / "00001.safetensors").unlink()
    with pytest.raises(InputError, match="features of several widths: extractor pooled has changed"):
        collect(replace(evaluation, extractor=Narrow(32)), "seven", tmp_path, 60, make)


def test_grey_chunks_and_coloured_ones_make_one_set(pooled: Path, tmp_path: Path) -> None:
    def make(chunk: range) -> tuple[torch.Tensor, Cost]:
        images = torch.full((len(chunk), 3, 8, 8), 7, dtype=torch.uint8)
        images[:, 0] += chunk.start
        return images, Cost()

    seen, _ = collect(pooled_evaluation(pooled, tmp_path), "grey", tmp_path, 60, make)
    assert seen.pixels is not None
    assert seen.pixels.shape == (60, 3, 64)
    assert seen.pixels[[0, 50]].amax(2).tolist() == [[7, 7, 7], [57, 7, 7]]


def test_a_chunk_is_made_once_and_by_one_process(pooled: Path, tmp_path: Path) -> None:
    asked: list[range] = []

    def make(chunk: range) -> tuple[torch.Tensor, Cost]:
        asked.append(chunk)
        return torch.full((len(chunk), 3, 8, 8), chunk.start, dtype=torch.uint8), Cost(3, 0.5, 7.0)

    evaluation = pooled_evaluation(pooled, tmp_path)
    seen, costs = collect(evaluation, "grey", tmp_path, 120, make)
    assert asked == [range(50), range(50, 100), range(100, 120)]
    assert costs == [Cost(3, 0.5, 7.0)] * 3
    assert seen.features.shape == (120, 48)
    assert seen.logits is None
    again, _ = collect(evaluation, "grey", tmp_path, 120, make)
    assert len(asked) == 3
    assert torch.equal(again.features, seen.features)
