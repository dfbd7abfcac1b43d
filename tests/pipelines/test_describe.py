"""Facts about a loaded model."""

import json
from pathlib import Path

import pytest

from anystep.pipelines.describe import describe
from anystep.pipelines.load import Model, load


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> Model:
    return load(tiny_model)


def test_description_holds_what_info_prints(model: Model) -> None:
    facts = describe(model)
    assert facts["transformer_parameters"] == sum(p.numel() for p in model.pipeline.transformer.parameters())
    assert facts["trained_shapes"] == ["16x16"]
    assert facts["folder"] == model.name
    assert (facts["size_multiple"], facts["tokens_at_base"], facts["transport"]) == (4, 16, "ot_fm")
    assert facts["concepts"] == ["red apple", "whale", "tractor"]
    json.dumps(facts)
