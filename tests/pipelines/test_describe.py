"""Facts about a loaded model."""

import json
from pathlib import Path

import pytest
from peft import LoraConfig

from anystep.pipelines.describe import describe, model_digest
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


def test_a_model_that_was_drawn_with_before_has_the_digest_that_its_images_hold() -> None:
    """Of the shipped weights: it changes with them alone, not where pipelines gain settings."""
    built_in = load("builtin")
    assert model_digest(built_in) == "7aaf419d1ab83562"
    built_in.pipeline.register_to_config(escape_captions=True)
    assert model_digest(built_in) != "7aaf419d1ab83562"


def test_how_adapters_are_scaled_and_active_is_part_of_a_digest(tiny_model: Path) -> None:
    model, found = load(tiny_model), list[str]()
    network = model.pipeline.transformer
    for change in (
        lambda: None,
        lambda: network.add_adapter(LoraConfig(r=2, target_modules=["to_q"], init_lora_weights=False), "one"),
        lambda: network.set_adapters(["one"], [0.1]),
        network.disable_adapters,
    ):
        change()
        found.append(model.digest)
    assert len(set(found)) == 4
    network.enable_adapters()
    network.set_adapters(["one"], [0.1])
    assert model.digest == found[2]
