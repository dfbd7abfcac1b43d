"""What a run is put together from: the weights of another model as its beginning."""

from pathlib import Path

import pytest
import torch
from helpers import png_bytes, save_guided, save_image

import anystep
from anystep.cli import main
from anystep.errors import InputError
from anystep.models import build_transformer
from anystep.pipelines.transition import TransitionPipeline
from anystep.training.assemble import load_weights, prepare_data
from anystep.training.config import Recipe


def test_captions_that_are_cut_are_counted_before_training(
    tiny_codec: Path, tiny_text_models: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, caption in enumerate(("a red apple", "red " * 30, "blue " * 30)):
        save_image(tmp_path / "p" / f"{number}.png", caption, (16, 16))
    bert, shards = str(tiny_text_models["bert"]), tmp_path / "shards"
    words = ["data", "prepare", str(tmp_path / "p"), "--codec", str(tiny_codec), "--size", "16", "--out", str(shards)]
    assert main([*words, "--text-encoder", bert]) == 0
    assert "\ncaptions cut at 12 tokens: 2\n" in capsys.readouterr().out
    for source in (f"shards:{shards}", tmp_path / "p"):
        recipe = {"data": {"source": str(source), "size": 16}}
        recipe["model"] = {"preset": "t2i-test", "codec": str(tiny_codec), "text_encoder": bert}
        prepare_data(Recipe.model_validate(recipe), tmp_path / "run", torch.device("cpu"))
        assert capsys.readouterr().err == "captions cut at 12 tokens: 2\n"


def test_captions_under_a_name_that_is_not_read_are_named(tiny_codec: Path, tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as parquet

    (tmp_path / "p").mkdir()
    parquet.write_table(pa.table({"jpg": [png_bytes()], "txt": ["a cat"]}), tmp_path / "p" / "train.parquet")
    recipe = {"data": {"source": f"parquet:{tmp_path / 'p'}", "size": 16}}
    recipe["model"] = {"preset": "t2i-test", "codec": str(tiny_codec)}
    with pytest.raises(InputError, match=r"1 of 1 samples have none: .*; Parquet columns of text that are not.* 'txt'"):
        prepare_data(Recipe.model_validate(recipe), tmp_path / "run", torch.device("cpu"))


def test_weights_that_read_a_guidance_scale_begin_a_network_that_does_not_as_they_are_unguided(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    guided = save_guided(tiny_model, tmp_path)
    network = build_transformer("t2i-test", sample_size=4, text_width=384)
    load_weights(network, str(tmp_path))
    x, t, condition = torch.randn(2, 4, 4, 4), torch.tensor([0.9, 0.4]), torch.randn(2, 3, 384)
    mask = torch.ones(2, 3, dtype=torch.bool)
    with torch.no_grad():
        expected = guided(x, t, t / 2, condition, mask, guidance=torch.ones(2))
        torch.testing.assert_close(network(x, t, t / 2, condition, mask), expected, atol=1e-5, rtol=1e-5)
        assert (guided(x, t, t / 2, condition, mask, guidance=torch.full((2,), 3.0)) - expected).abs().max() > 1e-3
    more = build_transformer(
        "t2i-test", sample_size=4, text_width=384, guidance_embed=True, position_embed=True, caption_pool=True, depth=4
    )
    load_weights(more, str(tmp_path))  # what it has beside the other is silent before it is trained
    with torch.no_grad():
        assert torch.equal(more(x, t, t / 2, condition, mask, guidance=torch.ones(2)), expected)
    assert "max_time_frequency" not in capsys.readouterr().err
    with pytest.raises(InputError, match=r"another architecture, its tensors differ in blocks\.1\."):
        load_weights(build_transformer("t2i-test", sample_size=4, text_width=384, depth=1), str(tmp_path))
    shared = build_transformer("t2i-test", sample_size=4, text_width=384, interval_condition="t,t-r")
    pipeline = TransitionPipeline.from_pretrained(tmp_path)
    pipeline.transformer.register_to_config(interval_condition="t,t-r")
    pipeline.save_pretrained(tmp_path / "shared")
    with pytest.raises(InputError, match="reads a guidance scale: set model"):
        load_weights(shared, str(tmp_path / "shared"))
    faster = build_transformer("t2i-test", sample_size=4, text_width=384, max_time_frequency=20)
    load_weights(faster, str(tmp_path))
    assert "max_time_frequency 1, this network 20: what it knows of times is learned again" in capsys.readouterr().err


def test_weights_of_other_classes_are_taken_and_told(tiny_classes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pipeline = anystep.load(tiny_classes, "cpu").pipeline
    names, network = pipeline.config.class_names, pipeline.transformer
    load_weights(network, str(tiny_classes), names)
    assert "class" not in capsys.readouterr().err
    load_weights(network, str(tiny_classes), [names[0], "fox", names[2]])
    told = capsys.readouterr().err
    assert f"calls class 1 '{names[1]}', the data 'fox': what it knows of 1 of 3 classes is learned again" in told
