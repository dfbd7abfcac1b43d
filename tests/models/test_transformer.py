"""The network as a diffusers model."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import at_points, lively
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from anystep import TransitionTransformer2DModel
from anystep.models import PRESETS, build_transformer
from anystep.objective import derivative
from anystep.objective.evaluation import BoundNetwork
from anystep.packing import pack, unpack
from anystep.transport import make_transport

PUBLISHED = {"t2i-xl": 864_978_080, "c2i-xl-2": 664_128_016, "c2i-xl-1": 664_164_896, "c2i-b-4": 128_828_224}


def text_inputs(count: int = 2, length: int = 5) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(count, 4, 6, 10, generator=generator)
    t, r = torch.full((count,), 0.8), torch.full((count,), 0.3)
    return x, t, r, torch.randn(count, length, 16, generator=generator)


@pytest.mark.parametrize(("preset", "count"), list(PUBLISHED.items()))
def test_published_sizes_have_the_published_number_of_parameters(preset: str, count: int) -> None:
    with torch.device("meta"):
        assert sum(parameter.numel() for parameter in build_transformer(preset).parameters()) == count


def test_the_built_in_preset_is_small() -> None:
    with torch.device("meta"):
        assert 3e6 < sum(parameter.numel() for parameter in build_transformer("t2i-emoji").parameters()) < 10e6


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


def test_an_encoded_caption_stands_for_the_caption() -> None:
    network, (x, t, r, caption) = lively("t2i-test"), text_inputs()
    mask = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    encoded = network.encode_condition(caption, mask)
    assert torch.equal(network(x, t, r, encoded), network(x, t, r, caption, mask))


def test_padding_is_masked_or_for_released_weights_seen() -> None:
    x, t, r, caption = text_inputs(1)
    padded = torch.cat([caption, torch.randn(1, 3, 16)], dim=1)
    mask = torch.arange(8)[None] < 5
    masked, seen = lively("t2i-test"), lively("t2i-test", mask_text=False)
    torch.testing.assert_close(masked(x, t, r, padded, mask), masked(x, t, r, caption), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(seen(x, t, r, padded, mask), seen(x, t, r, caption), atol=1e-3)


def test_an_image_does_not_depend_on_its_batch_mates() -> None:
    network, (x, t, r, caption) = lively("t2i-test"), text_inputs()
    together = network(x, t, r, caption)
    alone = network(x[1:], t[1:], r[1:], caption[1:])
    torch.testing.assert_close(together[1:], alone, rtol=1e-5, atol=1e-5)


def test_the_interval_reaches_the_network() -> None:
    network, (x, t, r, caption) = lively("t2i-test"), text_inputs()
    assert not torch.allclose(network(x, t, r, caption), network(x, t, r - 0.2, caption), atol=1e-3)


@pytest.mark.parametrize("choice", ["t-r", "r", "t,r", "t,t-r", "r,t-r", "t,r,t-r"])
def test_every_interval_condition_sums_its_embeddings(choice: str) -> None:
    network = lively("t2i-test", interval_condition=choice)
    t, r = torch.tensor([0.8]), torch.tensor([0.3])
    seen = {"t": t, "r": r, "t-r": t - r}
    *first, last = choice.split(",")
    expected = network.interval_embed(seen[last]) + sum(network.time_embed(seen[name]) for name in first)
    torch.testing.assert_close(network.embed_times(t, r)[1], expected)


@pytest.mark.parametrize("fastest", [1.0, 20.0])
def test_time_embeddings_are_waves_up_to_the_fastest_frequency(fastest: float) -> None:
    embedding = lively("t2i-test", max_time_frequency=fastest).time_embed
    t = torch.tensor([0.3, 0.7])
    angles = t[:, None] * fastest * 10_000 ** -(torch.arange(128) / 128)
    expected = embedding.linear_1(torch.cat([angles.cos(), angles.sin()], 1))
    torch.testing.assert_close(embedding(t), embedding.linear_2(nn.functional.silu(expected)), rtol=1e-5, atol=1e-5)


def test_higher_time_frequencies_leave_the_finite_difference_exact() -> None:
    """At 20 radians a unit of time an eps of 0.005 moves the fastest wave by a tenth of a radian."""
    network, transport = lively("t2i-test", max_time_frequency=20.0), make_transport("ot_fm")
    x, t, r, caption = text_inputs()
    z, rows = torch.randn(x.shape, generator=torch.Generator().manual_seed(1)), torch.arange(2)
    evaluate = BoundNetwork(network, transport, caption)
    value = evaluate(transport.interpolate(x, z, t), t, r, rows).detach()
    at = at_points(transport, x, z, t, r, value)
    exact, central = (derivative(kind)(evaluate, at) for kind in ("forward_mode", "central"))
    assert (central - exact).norm() < 0.01 * exact.norm()


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


# ----------------------------------------------------------------------------------------------------------------------
# Branches


def branched(branch_depth: int = 2, **options: Any) -> TransitionTransformer2DModel:
    """Four blocks, the last of them twice, and nothing silent."""
    return lively("t2i-test", depth=4, branch_depth=branch_depth, **options)


def mixed_inputs() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Four images, of which the first and the third have r = t."""
    x, t, r, caption = text_inputs(4)
    return x, t, torch.where(torch.arange(4) % 2 == 0, t, r), caption


def test_the_branch_of_transitions_starts_as_the_velocity() -> None:
    torch.manual_seed(0)
    network = build_transformer("t2i-test", depth=4, branch_depth=2)
    for name, parameter in network.named_parameters():
        if not parameter.any() and "interval_embed" not in name:
            nn.init.normal_(parameter, std=0.1)
    network.start_transition_branch()
    x, t, r, caption = text_inputs()
    velocity = network(x, t, t, caption)
    assert velocity.any()
    assert torch.equal(network(x, t, r, caption), velocity)
    torch.testing.assert_close(network(x, t, r - 0.3, caption), velocity, rtol=0, atol=0)


def test_r_is_known_to_the_branch_of_transitions_alone() -> None:
    network, (x, t, r, caption) = branched(), text_inputs()
    out, velocity = network(x, t, r, caption, return_velocity=True)
    assert torch.equal(velocity, network(x, t, t, caption))
    assert torch.equal(out, network(x, t, r, caption))
    assert not torch.allclose(out, network(x, t, r - 0.2, caption), atol=1e-3)
    assert torch.equal(velocity, network(x, t, r - 0.2, caption, return_velocity=True)[1])
    assert not torch.allclose(out, velocity, atol=1e-3)
    velocity.square().mean().backward()
    touched = [name for name, parameter in network.named_parameters() if parameter.grad is not None]
    assert not any("interval_embed" in name or "transition_branch" in name for name in touched)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("encoded", [False, True])
def test_a_mixed_batch_is_answered_as_its_parts_are(training: bool, encoded: bool) -> None:
    network, (x, t, r, caption) = branched().train(training), mixed_inputs()
    mask = torch.arange(5) < torch.tensor([[5], [3], [4], [2]])
    condition = (network.encode_condition(caption, mask),) if encoded else (caption, mask)
    out, velocity = network(x, t, r, *condition, return_velocity=True)
    torch.testing.assert_close(network(x, t, r, *condition), out)
    for row in range(4):
        one = slice(row, row + 1)
        alone = network(x[one], t[one], r[one], caption[one], mask[one])
        torch.testing.assert_close(out[one], alone, rtol=1e-5, atol=1e-5)
        alone = network(x[one], t[one], t[one], caption[one], mask[one])
        torch.testing.assert_close(velocity[one], alone, rtol=1e-5, atol=1e-5)
    assert torch.equal(out[::2], velocity[::2])
    assert torch.equal(network(x, t, r, *condition, branch="velocity"), velocity)


def test_packed_images_take_their_branches() -> None:
    network, (_, t, r, caption) = branched(), mixed_inputs()
    sizes = [(6, 10), (4, 4), (10, 6), (6, 6)]
    latents = [torch.randn(4, *size, generator=torch.Generator().manual_seed(size[1])) for size in sizes]
    tokens, packing = pack(latents, 1)
    out, velocity = network(tokens, t, r, caption, packing=packing, return_velocity=True)
    for row, (mine, v) in enumerate(zip(unpack(out, packing), unpack(velocity, packing), strict=True)):
        one = slice(row, row + 1)
        alone, still = (network(latents[row][None], t[one], end[one], caption[one])[0] for end in (r, t))
        torch.testing.assert_close(mine, alone, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(v, still, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("preset", ["t2i-test", "c2i-test"])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9])
def test_the_trunk_gets_its_share_of_the_gradient_of_transitions(preset: str, share: float) -> None:
    def gradients(trunk_share: float) -> dict[str, Tensor]:
        torch.manual_seed(0)
        network = lively(preset, depth=4, branch_depth=2, trunk_share=trunk_share)
        x, t, r, condition = text_inputs()
        condition = condition if preset == "t2i-test" else torch.tensor([3, 7])
        out = network(x, t, r, condition)
        answers.append(out.detach())
        (out**2).mean().backward()
        return {name: p.grad for name, p in network.named_parameters() if p.grad is not None}

    answers: list[Tensor] = []
    whole, part = gradients(1.0), gradients(share)
    assert torch.equal(*answers)
    own = ("interval_embed", "transition_branch")
    assert any(name.startswith("blocks.0") for name in whole)
    assert any(name.startswith("caption_projection" if preset == "t2i-test" else "class_embed") for name in whole)
    for name, gradient in whole.items():
        assert not name.startswith(("blocks.2", "blocks.3", "final_layer")), name
        expected = gradient if name.startswith(own) else share * gradient
        found = part.get(name, torch.zeros_like(gradient))
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("moving", [False, True])
def test_all_weights_get_a_gradient_in_training_whatever_the_times(moving: bool) -> None:
    """Of zeros, where a branch has no image: processes that average gradients wait for all of them."""
    network, (x, t, r, caption) = branched().train(), text_inputs()
    network(x, t, r if moving else t, caption).square().mean().backward()
    idle = ("transition_branch", "interval_embed") if not moving else ("blocks.2", "blocks.3", "final_layer")
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert bool(parameter.grad.any()) is not name.startswith(idle), name


def test_one_evaluation_runs_one_branch() -> None:
    network, (x, t, r, caption) = branched(), text_inputs()
    counted: list[str] = []
    for name, block in (("v", network.blocks[3]), ("f", network.transition_branch.blocks[1])):
        block.register_forward_hook(lambda block, given, out, name=name: counted.append(f"{name}{len(out)}"))
    network(x, t, t, caption)
    network(x, t, r, caption)
    network(*mixed_inputs())
    assert counted == ["v2", "f2", "v2", "f2"]
    network.synchronised_forwards = True
    network(x, t, r, caption)
    assert counted[4:] == ["v1", "f2"]


def test_forward_mode_sees_through_the_branches() -> None:
    network, (x, t, r, caption) = branched(trunk_share=0.1), mixed_inputs()
    x, t, r, caption = (each[1::2] for each in (x, t, r, caption))
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        tangent = torch.func.jvp(lambda t: network(x, t, r, caption), (t,), (torch.ones_like(t),))[1]
        ahead, behind = (network(x, t + h, r, caption) for h in (0.005, -0.005))
    torch.testing.assert_close(tangent, (ahead - behind) / 0.01, rtol=0.01, atol=0.01 * float(tangent.abs().max()))


def test_branches_are_saved_and_loaded(tmp_path: Path) -> None:
    network = branched(trunk_share=0.5)
    network.save_pretrained(tmp_path)
    again = TransitionTransformer2DModel.from_pretrained(tmp_path)
    assert (again.config.branch_depth, again.config.trunk_share) == (2, 0.5)
    assert torch.equal(again(*mixed_inputs()), network(*mixed_inputs()))
    half = TransitionTransformer2DModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
    branch = half.transition_branch
    assert branch.blocks[0].attn.to_q.weight.dtype == torch.bfloat16
    assert branch.final_layer.linear.weight.dtype == branch.blocks[1].modulation.down.weight.dtype == torch.float32


def test_gradient_checkpointing_changes_no_gradient_of_branches() -> None:
    gradients = []
    for checkpointing in (False, True):
        network = branched(trunk_share=0.3).train()
        if checkpointing:
            network.enable_gradient_checkpointing()
        out, velocity = network(*mixed_inputs(), return_velocity=True)
        (out.square().mean() + velocity.mean()).backward()
        gradients.append([parameter.grad for parameter in network.parameters()])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


def test_features_come_from_the_trunk() -> None:
    network = branched(z_dim=12, projector_dim=8, encoder_depth=2)
    x, t, r, caption = mixed_inputs()
    out, features, _ = network(x, t, r, caption, return_features=True, return_velocity=True)
    assert features.shape == (4, 60, 12)
    assert torch.equal(network(x, t, t, caption, return_features=True)[1], features)
    torch.testing.assert_close(network(x, t, r, caption), out)
    with pytest.raises(ValueError, match="return_velocity and branch are of a network with branches"):
        lively("t2i-test")(*text_inputs(), return_velocity=True)


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


def test_attention_backends_agree() -> None:
    network = lively("t2i-test")
    expected = network(*text_inputs())
    network.set_attention_backend("_native_math")
    try:
        torch.testing.assert_close(network(*text_inputs()), expected, rtol=1e-5, atol=1e-5)
    finally:
        network.set_attention_backend("native")  # diffusers makes the last choice everybody's


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
network = build_transformer("t2i-test", depth=1)
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


def test_labels_have_a_null() -> None:
    network = lively("c2i-test")
    assert network.null_label == 10
    with pytest.raises(ValueError, match="no null label"):
        _ = lively("c2i-test", class_dropout_prob=0.0).null_label


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
        ("t2i-test", {"trunk_share": 0.5}, "branch_depth is 0"),
        ("t2i-test", {"interval_condition": "t/r"}, "interval_condition 't/r': expected one of"),
    ],
)
def test_bad_sizes_are_refused(preset: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_transformer(preset, **options)


def test_every_preset_is_known_by_a_condition() -> None:
    for name, sizes in PRESETS.items():
        assert ("text_width" in sizes) is name.startswith("t2i")


def test_times_survive_a_bfloat16_network() -> None:
    network = lively("t2i-test")
    t, r = torch.tensor([0.5, 0.505]), torch.tensor([0.2, 0.2])
    fine = network.embed_times(t, r)
    network.to(torch.bfloat16)
    for before, after in zip(fine, network.embed_times(t, r), strict=True):
        change, kept = before[1] - before[0], after[1] - after[0]
        assert after.dtype == torch.float32
        # only the weights were rounded, 2^-9 each; a time rounded to bfloat16 would lose a quarter of the change
        assert (kept - change).norm() <= 0.03 * change.norm()
