"""What a run is put together from: the weights of another model as its beginning."""

from pathlib import Path

import pytest
import torch
from helpers import save_guided

from anystep.errors import InputError
from anystep.models import build_transformer
from anystep.pipelines.transition import TransitionPipeline
from anystep.training.assemble import load_weights


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
        "t2i-test", sample_size=4, text_width=384, guidance_embed=True, position_embed=True, caption_pool=True
    )
    load_weights(more, str(tmp_path))  # what it has beside the other is silent before it is trained
    with torch.no_grad():
        assert torch.equal(more(x, t, t / 2, condition, mask, guidance=torch.ones(2)), expected)
    assert "max_time_frequency" not in capsys.readouterr().err
    shared = build_transformer("t2i-test", sample_size=4, text_width=384, interval_condition="t,t-r")
    pipeline = TransitionPipeline.from_pretrained(tmp_path)
    pipeline.transformer.register_to_config(interval_condition="t,t-r")
    pipeline.save_pretrained(tmp_path / "shared")
    with pytest.raises(InputError, match="reads a guidance scale: set model"):
        load_weights(shared, str(tmp_path / "shared"))
    faster = build_transformer("t2i-test", sample_size=4, text_width=384, max_time_frequency=20)
    load_weights(faster, str(tmp_path))
    assert "max_time_frequency 1, this network 20: what it knows of times is learned again" in capsys.readouterr().err
