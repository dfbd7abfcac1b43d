"""Networks whose last blocks exist twice."""

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import lively, text_inputs
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from anystep import TransitionTransformer2DModel
from anystep.models import build_transformer
from anystep.models.initialise import start_transition_branch
from anystep.packing import pack, unpack


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
    start_transition_branch(network)
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
