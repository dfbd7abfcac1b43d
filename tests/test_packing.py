"""Several images in one sequence are as many images alone."""

from typing import Any

import pytest
import torch
from torch import Tensor

from anystep.models.presets import build_transformer
from anystep.models.transformer import TransitionTransformer2DModel
from anystep.objective import (
    Identity,
    Implicit,
    ModelGuidance,
    SelfConsistency,
    SelfEvaluation,
    Terminal,
    TrainingBatch,
    TransitionObjective,
    Weighting,
    derivative,
)
from anystep.packing import Packing, pack, unpack
from anystep.transport import make_transport

SHAPES = ((4, 6), (2, 2), (6, 4), (4, 6), (2, 8))


def network(preset: str, **options: Any) -> TransitionTransformer2DModel:
    torch.manual_seed(0)
    made = build_transformer(preset, **options)
    for parameter in made.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    return made


def latents(channels: int) -> list[Tensor]:
    rng = torch.Generator().manual_seed(1)
    return [torch.randn(channels, *shape, generator=rng) for shape in SHAPES]


def conditions(preset: str) -> tuple[Tensor, Tensor | None]:
    if preset == "c2i-test":
        return torch.arange(len(SHAPES)), None
    mask = torch.arange(7) < torch.tensor([7, 3, 1, 5, 2])[:, None]
    return torch.randn(len(SHAPES), 7, 16, generator=torch.Generator().manual_seed(2)), mask


def test_what_is_packed_comes_back() -> None:
    images = latents(4)
    tokens, packing = pack(images, 2)
    assert tokens.shape == (6 + 1 + 6 + 6 + 4, 4, 2, 2)
    assert packing.grids == ((2, 3), (1, 1), (3, 2), (2, 3), (1, 4))
    assert torch.equal(tokens[1], images[0][:, :2, 2:4])
    assert all(torch.equal(one, two) for one, two in zip(unpack(tokens, packing), images, strict=True))


def test_means_and_flags_are_of_images() -> None:
    packing = Packing(((1, 2), (1, 3)))
    assert packing.mean(torch.tensor([1.0, 3.0, 1.0, 2.0, 6.0])).tolist() == [2.0, 3.0]
    assert packing.all(torch.tensor([True, True, True, False, True])).tolist() == [True, False]
    assert packing.in_order(torch.tensor([1, 1, 1, 0, 0, 1, 1, 1])) == ([1, 0, 1], [0, 3, 5])


@pytest.mark.parametrize("blockwise", [False, True])
@pytest.mark.parametrize(("preset", "patch"), [("t2i-test", 1), ("t2i-test", 2), ("c2i-test", 2)])
def test_a_packed_network_gives_each_image_what_it_gives_it_alone(preset: str, patch: int, blockwise: bool) -> None:
    made = network(preset, patch_size=patch, z_dim=3, encoder_depth=1, projector_dim=8)
    images, (condition, mask) = latents(4), conditions(preset)
    t, r = torch.rand(5), torch.rand(5) / 3
    tokens, packing = pack(images, patch)
    packing = Packing(packing.grids, blockwise)
    with torch.no_grad():
        out, features = made(tokens, t, r, condition, mask, return_features=True, packing=packing)
        for place, (image, got) in enumerate(zip(images, unpack(out, packing), strict=True)):
            row = slice(place, place + 1)
            alone, own = made(
                image[None], t[row], r[row], condition[row], None if mask is None else mask[row], return_features=True
            )
            torch.testing.assert_close(got, alone[0], atol=2e-6, rtol=1e-5)
            torch.testing.assert_close(features.split(packing.lengths)[place], own[0], atol=2e-6, rtol=1e-5)


TARGETS = {
    "one_sided": Identity(derivative("one_sided")),
    "velocity": Identity(derivative("one_sided"), along="velocity", velocity_share=0.5),
    "self_consistency": SelfConsistency(),
    "implicit": Implicit(),
    "terminal": Terminal(),
    "self_evaluation": SelfEvaluation(),
}


@pytest.mark.parametrize("kind", ["central", *TARGETS, "guided", "aligned"])
def test_the_loss_of_a_pack_is_that_of_its_images_weighted_by_their_tokens(kind: str) -> None:
    """Loss and gradient, with the samples of one shape as a batch and with every image alone."""
    made = network("t2i-test", patch_size=2, z_dim=3, encoder_depth=1, projector_dim=8)
    objective = TransitionObjective(
        make_transport("ot_fm"),
        target=TARGETS.get(kind, Identity()),
        # a residual near zero, divided by itself, is the rounding of two batch sizes
        weighting=Weighting(power=0.0 if kind in ("self_consistency", "implicit", "terminal") else 1.0),
        guidance=ModelGuidance(start=0.2) if kind == "guided" else None,
    )
    images, (condition, mask) = latents(4), conditions("t2i-test")
    rng = torch.Generator().manual_seed(3)
    z = [torch.randn(image.shape, generator=rng) for image in images]
    t = torch.tensor([0.9, 0.5, 0.7, 0.4, 0.8])
    r = torch.tensor([0.1, 0.5, 0.0, 0.3, 0.8])
    features = [torch.randn(each.shape[1] * each.shape[2] // 4, 3, generator=rng) for each in images]

    fresh = [torch.randn(image.shape, generator=rng) for image in images]

    def extra(rows: list[int], packed: bool) -> dict[str, Any]:
        given: dict[str, Any] = {}
        if kind == "guided":
            given = {"null_condition": torch.zeros(len(rows), 7, 16)}
        if kind == "self_evaluation":
            chosen = [fresh[row] for row in rows]
            given["null_condition"] = torch.zeros(len(rows), 7, 16)
            given["fresh_noise"] = pack(chosen, 2)[0] if packed else torch.stack(chosen)
        if kind == "aligned":
            chosen = [features[row] for row in rows]
            given["features"] = torch.cat(chosen) if packed else torch.stack(chosen)
        return given

    def gradients(losses: list[Tensor]) -> list[Tensor]:
        made.zero_grad()
        torch.stack(losses).sum().backward()
        return [parameter.grad.clone() for parameter in made.parameters() if parameter.grad is not None]

    tokens, packing = pack(images, 2)
    noise, _ = pack(z, 2)
    every = list(range(5))
    assert mask is not None
    batch = TrainingBatch(tokens, noise, t, r, condition, mask, packing=packing, **extra(every, True))
    packed = objective.evaluate(made, batch, ema_network=made)
    wanted = gradients([packed.loss])

    apart = [[0, 3], [1], [2], [4]]  # 0 and 3 have one shape
    records = [
        objective.evaluate(made, TrainingBatch(
            torch.stack([images[row] for row in rows]), torch.stack([z[row] for row in rows]),
            t[rows], r[rows], condition[rows], mask[rows], **extra(rows, False),
        ), ema_network=made)
        for rows in apart
    ]  # fmt: skip
    total = sum(packing.lengths)
    shares = [sum(packing.lengths[row] for row in rows) / total for rows in apart]
    summed = sum(share * record.loss for share, record in zip(shares, records, strict=True))
    torch.testing.assert_close(packed.loss, summed, atol=1e-5, rtol=1e-5)
    for rows, record in zip(apart, records, strict=True):
        torch.testing.assert_close(packed.residual[rows], record.residual, atol=1e-5, rtol=1e-5)
    assert packed.evaluations == sum(record.evaluations for record in records)
    found = gradients([share * record.loss for share, record in zip(shares, records, strict=True)])
    for one, two in zip(wanted, found, strict=True):
        torch.testing.assert_close(one, two, atol=5e-5, rtol=1e-3)


def test_a_bad_image_of_a_pack_is_left_out_whole() -> None:
    made, objective = network("t2i-test"), TransitionObjective(make_transport("ot_fm"))
    images, (condition, mask) = latents(4), conditions("t2i-test")
    images[2][0, 0, 0] = torch.nan
    tokens, packing = pack(images, 1)
    t, r = torch.rand(5), torch.zeros(5)
    batch = TrainingBatch(tokens, torch.randn_like(tokens), t, r, condition, mask, packing=packing)
    record = objective.evaluate(made, batch)
    assert record.nonfinite == [2]
    assert record.loss.isfinite()
    assert record.residual.isnan().tolist() == [False, False, True, False, False]
