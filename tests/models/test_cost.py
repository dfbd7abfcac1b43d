"""Operations and memory of a network, counted without running it."""

from pathlib import Path

import pytest
import torch

from anystep.errors import InputError
from anystep.models.cost import (
    FakeNetwork,
    InputShape,
    LiveMemoryTracker,
    count_parameters,
    flop_counter,
    forward_flops,
    network_cost,
    weight_bytes,
)
from anystep.models.presets import build_transformer
from anystep.models.transformer import TransitionTransformer2DModel


@pytest.mark.parametrize(
    ("preset", "count"), [("t2i-xl", 864_978_080), ("c2i-xl-2", 664_128_016), ("c2i-b-4", 128_828_224)]
)
def test_parameters_are_those_published(preset: str, count: int) -> None:
    assert count_parameters(preset) == count


def test_live_memory_is_counted_until_it_is_freed() -> None:
    with LiveMemoryTracker([]) as memory:
        one = torch.ones(256)
        view = one.view(16, 16)
        two = one + 1
        assert memory.live == 2 * 1024
        del one
        assert memory.live == 2 * 1024  # the view holds it
        del view, two
        assert (memory.live, memory.peak) == (0, 2 * 1024)


def test_costs_grow_with_depth_and_batch_as_they_must() -> None:
    sizes = {"hidden_size": 32, "num_heads": 2, "text_width": 16}
    small, deep = (network_cost("t2i-test", 2, 8, 8, 5, depth=depth, **sizes) for depth in (2, 4))
    wide = network_cost("t2i-test", 4, 8, 8, 5, depth=2, **sizes)
    assert wide.flops == 2 * small.flops
    assert deep.forward_bytes == small.forward_bytes
    assert deep.saved_bytes > 1.7 * small.saved_bytes
    real = build_transformer("t2i-test", depth=4, **sizes)
    assert deep.parameters == sum(weight.numel() for weight in real.parameters())


def test_the_extrapolated_peak_is_that_of_a_real_step() -> None:
    """Counted on two blocks and extrapolated to five, against five blocks that really run."""
    sizes = {"hidden_size": 32, "num_heads": 2, "text_width": 16, "depth": 5}
    cost = network_cost("t2i-test", 3, 8, 8, 5, **sizes)
    network = build_transformer("t2i-test", **sizes)
    for weight in network.parameters():
        weight.grad = torch.zeros_like(weight)
    x, t, condition = torch.randn(3, 4, 8, 8), torch.rand(3), torch.randn(3, 5, 16)
    known = [*network.parameters(), *(weight.grad for weight in network.parameters()), x, t, condition]
    with LiveMemoryTracker(known) as memory:  # type: ignore[arg-type]
        network(x, t, t, condition).sum().backward()
    assert cost.training_bytes == pytest.approx(memory.peak, rel=0.02)


BRANCHED = {"depth": 7, "branch_depth": 3, "hidden_size": 32, "num_heads": 2, "text_width": 16}


def test_a_network_with_branches_is_counted_as_it_is() -> None:
    network = build_transformer("t2i-test", **BRANCHED)
    assert count_parameters("t2i-test", **BRANCHED) == sum(weight.numel() for weight in network.parameters())
    x, t, condition = torch.randn(3, 4, 8, 8), torch.rand(3), torch.randn(3, 5, 16)
    with torch.no_grad(), flop_counter() as counter:
        network(x, t, t - 0.1, condition)
    cost = network_cost("t2i-test", 3, 8, 8, 5, **BRANCHED)
    assert cost.flops == counter.get_total_flops()  # one branch
    assert 3 * forward_flops("t2i-test", **BRANCHED)(8, 8, 5) == cost.flops
    for weight in network.parameters():
        weight.grad = torch.zeros_like(weight)
    known = [*network.parameters(), *(weight.grad for weight in network.parameters()), x, t, condition]
    with LiveMemoryTracker(known) as memory:  # type: ignore[arg-type]
        sum(network(x, t, t - 0.1, condition, return_velocity=True)).sum().backward()
    assert cost.training_bytes == pytest.approx(memory.peak, rel=0.02)
    with pytest.raises(InputError, match="branch_depth 7 must leave a trunk of the depth 7"):
        count_parameters("t2i-test", **{**BRANCHED, "branch_depth": 7})


def test_operations_of_a_forward_are_those_of_its_matrices() -> None:
    for preset, options in (("c2i-test", {}), ("t2i-test", {"depth": 5, "patch_size": 2}), ("t2i-emoji", {})):
        cost = forward_flops(preset, **options)
        for rows, columns, length in ((8, 8, 1), (4, 12, 40)):
            whole = FakeNetwork(preset, options, InputShape(1, rows, columns, length))
            assert cost(rows, columns, 0 if preset == "c2i-test" else length) == whole.forward().flops


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_the_memory_of_weights_is_that_of_a_loaded_network(precision: torch.dtype, tmp_path: Path) -> None:
    build_transformer("t2i-test", **BRANCHED).save_pretrained(tmp_path)
    loaded = TransitionTransformer2DModel.from_pretrained(tmp_path, dtype=precision)
    assert weight_bytes("t2i-test", precision, **BRANCHED) == sum(weight.nbytes for weight in loaded.parameters())
