"""The network as a diffusers model."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FirstBlockCacheConfig, PyramidAttentionBroadcastConfig
from helpers import draw_latents, lively, text_inputs
from torch import nn

import anystep
from anystep import TransitionTransformer2DModel
from anystep.errors import InputError
from anystep.models import build_transformer


def test_a_fresh_network_predicts_zero() -> None:
    torch.manual_seed(0)
    assert not build_transformer("t2i-test")(*text_inputs()).any()


def test_saved_models_load_again_under_the_package_name(tmp_path: Path) -> None:
    network = lively("t2i-test")
    network.save_pretrained(tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    again = TransitionTransformer2DModel.from_pretrained(tmp_path)
    torch.testing.assert_close(again(*text_inputs()), network(*text_inputs()), rtol=1e-6, atol=1e-6)
    assert TransitionTransformer2DModel.__module__ == "anystep"


@pytest.mark.parametrize("choice", ["t-r", "r", "t,r", "t,t-r", "r,t-r", "t,r,t-r"])
def test_every_interval_condition_sums_its_embeddings(choice: str) -> None:
    network = lively("t2i-test", interval_condition=choice)
    t, r = torch.tensor([0.8]), torch.tensor([0.3])
    seen = {"t": t, "r": r, "t-r": t - r}
    *first, last = choice.split(",")
    expected = network.interval_embed(seen[last]) + sum(network.time_embed(seen[name]) for name in first)
    torch.testing.assert_close(network.embed_times(t, r)[1], expected)


@pytest.mark.parametrize("condition", ["t-r", "r", "t,r", "t,t-r"])
def test_an_interval_branch_that_starts_at_zero_knows_no_r_until_it_learns(condition: str) -> None:
    torch.manual_seed(0)
    network = build_transformer("t2i-test", zero_init_interval=True, interval_condition=condition)
    for name, parameter in network.named_parameters():
        if not parameter.any() and "interval_embed" not in name:
            nn.init.normal_(parameter, std=0.1)
    x, t, r, caption = text_inputs()
    assert torch.equal(network(x, t, r, caption), network(x, t, r - 0.2, caption))
    network(x, t, r, caption).square().mean().backward()
    assert network.interval_embed.linear_2.weight.grad.any()
    with torch.no_grad():
        network.interval_embed.linear_2.weight -= network.interval_embed.linear_2.weight.grad
    assert not torch.equal(network(x, t, r, caption), network(x, t, r - 0.2, caption))


def test_gradient_checkpointing_changes_no_gradient() -> None:
    gradients = []
    for checkpointing in (False, True):
        network = lively("t2i-test").train()
        if checkpointing:
            network.enable_gradient_checkpointing()
        network(*text_inputs()).square().mean().backward()
        gradients.append([parameter.grad for parameter in network.parameters()])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


def test_the_projector_runs_only_when_its_features_are_asked_for() -> None:
    network, calls = lively("t2i-test", z_dim=12, projector_dim=8, encoder_depth=1), []
    network.projector.register_forward_hook(lambda *_: calls.append(1))
    plain = network(*text_inputs())
    assert not calls
    out, features = network(*text_inputs(), return_features=True)
    assert len(calls) == 1
    assert features.shape == (2, 60, 12)
    assert torch.equal(out, plain)
    with pytest.raises(ValueError, match="z_dim"):
        lively("t2i-test")(*text_inputs(), return_features=True)


def test_lora_saves_and_loads(tmp_path: Path) -> None:
    from peft import LoraConfig

    network = lively("t2i-test")
    base = network(*text_inputs())
    network.add_adapter(LoraConfig(r=2, lora_alpha=4, target_modules=["to_q", "to_v"], init_lora_weights=False))
    tuned = network(*text_inputs())
    assert not torch.allclose(tuned, base, atol=1e-3)
    network.save_lora_adapter(tmp_path, weight_name="lora.safetensors")
    again = lively("t2i-test")
    again.load_lora_adapter(tmp_path, weight_name="lora.safetensors", prefix=None)
    torch.testing.assert_close(again(*text_inputs()), tuned, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_it_compiles_without_a_graph_break() -> None:
    """In a process of its own: the shape checks of these tests are not traceable."""
    code = """
import torch
from anystep.models import build_transformer
torch.manual_seed(0)
network = build_transformer("t2i-test", depth=1, position_embed=True, caption_pool=True)
for parameter in network.parameters():
    torch.nn.init.normal_(parameter, std=0.1)
inputs = (
    torch.randn(2, 4, 6, 10), torch.tensor([0.9, 0.4]), torch.tensor([0.1, 0.4]),
    torch.randn(2, 3, 16), torch.tensor([[True, True, True], [True, False, False]]),
)
compiled = torch.compile(network, fullgraph=True, backend="aot_eager")
torch.testing.assert_close(compiled(*inputs), network(*inputs), rtol=1e-4, atol=1e-4)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("preset", "options", "message"),
    [
        ("t2i-huge", {}, "unknown preset"),
        ("t2i-test", {"dept": 3}, "dept"),
        ("t2i-test", {"num_classes": 3}, "one of text_width and num_classes"),
        ("t2i-test", {"num_heads": 3}, "multiple of 4"),
        ("t2i-test", {"zero_init_interval": True, "shared_time_embedder": True}, "own, not shared_time_embedder"),
        (
            "t2i-test",
            {"zero_init_interval": True, "interval_condition": "r,t-r"},
            "own, not interval_condition 'r,t-r'",
        ),
        ("t2i-test", {"branch_depth": 2}, "branch_depth 2 must leave a trunk of the depth 2"),
        ("t2i-test", {"branch_depth": 1, "interval_condition": "t,t-r"}, "needs an interval_condition of t-r or r"),
        ("t2i-test", {"branch_depth": 1, "shared_time_embedder": True}, "no shared_time_embedder"),
        (
            "t2i-test",
            {"branch_depth": 1, "z_dim": 8, "encoder_depth": 2},
            "encoder_depth 2 must be a block from 1 to 1",
        ),
        ("c2i-test", {"caption_pool": True}, "of a network that reads captions"),
        ("t2i-test", {"trunk_share": 0.5}, "branch_depth is 0"),
        ("t2i-test", {"interval_condition": "t/r"}, "interval_condition 't/r': expected one of"),
    ],
)
def test_bad_sizes_are_refused(preset: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_transformer(preset, **options)


def test_blocks_are_left_out_by_the_cache_of_diffusers(tiny_model: Path) -> None:
    pipeline = anystep.load(tiny_model, "cpu").pipeline
    network, calls = pipeline.transformer, []
    network.blocks[-1].mlp.register_forward_hook(lambda *_: calls.append(1))
    for together in (True, False):
        words: dict[str, Any] = {"steps": 6, "guidance_scale": 2.0, "guidance_in_one_batch": together}
        plain = draw_latents(pipeline, **words)
        each = len(calls)
        for threshold in (0.0, 1e9):
            network.enable_cache(FirstBlockCacheConfig(threshold=threshold))
            calls.clear()
            first = draw_latents(pipeline, **words)
            expected = each if threshold == 0 else each // 6  # the first step alone
            assert len(calls) == expected
            assert torch.equal(draw_latents(pipeline, **words), first)  # nothing is left from the call before
            torch.testing.assert_close(first, plain, atol=1e-5, rtol=1e-5) if threshold == 0 else None
            network.disable_cache()
        calls.clear()
        assert torch.equal(draw_latents(pipeline, **words), plain)
        calls.clear()


def test_caches_that_would_not_work_are_refused() -> None:
    with pytest.raises(InputError, match="cache PyramidAttentionBroadcastConfig: expected a FirstBlockCacheConfig"):
        lively("t2i-test").enable_cache(PyramidAttentionBroadcastConfig())
    with pytest.raises(InputError, match="this network has branches"):
        lively("t2i-test", branch_depth=1).enable_cache(FirstBlockCacheConfig())


@pytest.mark.slow
def test_it_is_exported_with_every_size_dynamic() -> None:
    """In a process of its own: the shape checks of these tests are not traceable."""
    code = """
import torch
from torch.export import Dim, export
from anystep.models import build_transformer
torch.manual_seed(0)
network = build_transformer("t2i-test").eval()
for parameter in network.parameters():
    torch.nn.init.normal_(parameter, std=0.1)

def inputs(count, length, rows, columns):
    mask = torch.arange(length) < 1 + torch.arange(count)[:, None] % length
    x, states = torch.randn(count, 4, rows, columns), torch.randn(count, length, 16)
    return x, torch.rand(count), torch.zeros(count), states, mask

any = Dim.AUTO
sizes = {"x": {0: any, 2: any, 3: any}, "t": {0: any}, "r": {0: any}, "condition": {0: any, 1: any},
         "condition_mask": {0: any, 1: any}}
exported = export(network, inputs(2, 5, 16, 20), dynamic_shapes=sizes).module()
for size in ((2, 5, 16, 20), (3, 7, 32, 8), (1, 2, 8, 64)):
    given = inputs(*size)
    torch.testing.assert_close(exported(*given), network(*given), rtol=1e-5, atol=1e-5)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.slow
def test_it_is_written_as_onnx_with_every_size_dynamic() -> None:
    """In a process of its own, for the same reason."""
    code = """
import io
import onnxruntime
import torch
from anystep.models import build_transformer
torch.manual_seed(0)
network = build_transformer("t2i-test").eval()
for parameter in network.parameters():
    torch.nn.init.normal_(parameter, std=0.1)

class Plain(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.network = network
    def forward(self, x, t, r, condition, mask):
        return self.network(x, t, r, condition, mask)

def inputs(count, length, rows, columns):
    mask = torch.arange(length) < 1 + torch.arange(count)[:, None] % length
    x, states = torch.randn(count, 4, rows, columns), torch.randn(count, length, 16)
    return x, torch.rand(count), torch.zeros(count), states, mask

file, names = io.BytesIO(), ["x", "t", "r", "condition", "mask"]
axes = {"x": {0: "b", 2: "h", 3: "w"}, "t": {0: "b"}, "r": {0: "b"}}
axes |= {"condition": {0: "b", 1: "l"}, "mask": {0: "b", 1: "l"}}
options = {"input_names": names, "dynamic_axes": axes, "opset_version": 17}
torch.onnx.export(Plain(), inputs(2, 5, 16, 20), file, dynamo=False, **options)
session = onnxruntime.InferenceSession(file.getvalue())
for size in ((2, 5, 16, 20), (1, 7, 8, 32)):
    given = inputs(*size)
    (found,) = session.run(None, {name: each.numpy() for name, each in zip(names, given)})
    torch.testing.assert_close(torch.from_numpy(found), network(*given).detach(), rtol=1e-5, atol=1e-5)
"""
    subprocess.run([sys.executable, "-c", code], check=True)
