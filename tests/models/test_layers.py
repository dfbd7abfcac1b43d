"""The precision of layers."""

from pathlib import Path

import pytest
import torch
from helpers import lively, text_inputs
from torch import Tensor, nn

from anystep import TransitionTransformer2DModel


def test_times_modulation_and_head_stay_in_float32(tmp_path: Path) -> None:
    lively("t2i-test").save_pretrained(tmp_path)
    network = TransitionTransformer2DModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert network.blocks[0].attn.to_q.weight.dtype == torch.bfloat16
    for part in (network.time_embed, network.interval_embed, network.patch_embed, network.final_layer,
                 network.blocks[1].modulation):  # fmt: skip
        assert {parameter.dtype for parameter in part.parameters()} == {torch.float32}
    out = network(*text_inputs())
    assert out.dtype == torch.float32
    assert (out - lively("t2i-test")(*text_inputs())).norm() < 0.02 * out.norm()


@pytest.mark.parametrize(
    ("dtype", "compute"),
    [(torch.float32, torch.float32), (torch.float32, torch.bfloat16), (torch.bfloat16, torch.bfloat16)],
)
def test_layers_may_be_stored_in_eight_bits(tmp_path: Path, dtype: torch.dtype, compute: torch.dtype) -> None:
    expected = lively("t2i-test")(*text_inputs())
    lively("t2i-test").save_pretrained(tmp_path)
    network = TransitionTransformer2DModel.from_pretrained(tmp_path, dtype=dtype)
    network.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=compute)
    assert network.blocks[0].mlp.gate.weight.dtype == torch.float8_e4m3fn
    x, t, r, caption = text_inputs()
    for condition in (caption, network.encode_condition(caption)):
        out = network(x, t, r, condition)
        assert (out - expected).norm() < 0.05 * expected.norm()


def test_layers_whose_weights_are_no_floating_point_decide_nothing() -> None:
    class Quantised(nn.Linear):
        """Weights of whole numbers and a scale, as libraries of quantisation have them."""

        def quantise(self) -> "Quantised":
            self.scale = self.weight.abs().max().detach() / 127
            self.weight = nn.Parameter((self.weight / self.scale).round().to(torch.int8), requires_grad=False)
            return self

        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.linear(x, self.weight.to(x.dtype) * self.scale.to(x.dtype), self.bias)

    network, expected = lively("t2i-test"), lively("t2i-test")(*text_inputs())
    for block in network.blocks:
        for name in ("gate", "up", "down"):
            layer = getattr(block.mlp, name)
            layer.__class__ = Quantised
            layer.quantise()
    out = network(*text_inputs())
    assert (out - expected).norm() < 0.05 * expected.norm()
