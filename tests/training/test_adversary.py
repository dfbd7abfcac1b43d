"""The adversary of a codec."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from anystep.training.adversary import Adversary, Judgement, PatchDiscriminator, discriminator_loss, feature_distance
from anystep.training.codec_config import AdversaryConfig, CodecRecipe
from anystep.training.train_codec import train_codec

CPU = torch.device("cpu")


def judgement(score: float, feature: float = 0.0) -> Judgement:
    return Judgement(torch.full((2, 1, 3, 3), score), [torch.full((2, 4, 3, 3), feature), torch.zeros(2, 8, 2, 2)])


@pytest.mark.parametrize(
    ("decoded", "real", "loss"),
    [(-1.0, 1.0, 0.0), (-7.0, 9.0, 0.0), (0.0, 0.0, 2.0), (1.0, 1.0, 2.0), (-0.5, 0.5, 1.0)],
)
def test_the_hinge_asks_for_scores_beyond_one_and_no_more(decoded: float, real: float, loss: float) -> None:
    assert discriminator_loss(judgement(decoded), judgement(real)).item() == pytest.approx(loss)


def test_features_are_compared_layer_by_layer() -> None:
    assert feature_distance(judgement(0, 3.0), judgement(5, 1.0)).item() == pytest.approx(1.0)  # 2 and 0
    assert feature_distance(judgement(0, 3.0), judgement(5, 3.0)).item() == 0


def test_a_score_is_of_a_patch_of_28_pixels() -> None:
    discriminator = PatchDiscriminator(4).eval()
    image = torch.zeros(1, 3, 64, 64, requires_grad=True)
    scores = discriminator(image).scores
    assert scores.shape == (1, 1, 16, 16)
    scores[0, 0, 8, 8].backward()
    assert image.grad is not None
    rows = image.grad.abs().sum((0, 1, 3)).nonzero().flatten()
    assert rows[-1] - rows[0] + 1 == 28


def test_it_learns_to_tell_images_apart_and_its_losses_grow_with_the_warmup() -> None:
    torch.manual_seed(0)
    adversary = Adversary(AdversaryConfig(width=8, warmup=100, feature_matching=0.0), (0.5, 0.9), CPU)
    real = torch.rand(8, 3, 16, 16).round() * 2 - 1
    decoded = (real * 0.5).requires_grad_()
    for _ in range(30):
        adversary.learn(decoded, real, 1e-3)
    assert decoded.grad is None  # the discriminator's step is no step of the decoder
    assert adversary.discriminator(real).scores.mean() > adversary.discriminator(decoded).scores.mean() + 0.5
    full, half = adversary.loss(decoded, real, 100).item(), adversary.loss(decoded, real, 50).item()
    assert full == pytest.approx(-0.05 * adversary.discriminator(decoded).scores.mean().item(), rel=0.05)
    assert half == pytest.approx(full / 2, rel=0.05)  # spectral norms move a little with every call
    assert adversary.loss(decoded, real, 10**6).item() == pytest.approx(full, rel=0.05)


def recipe(source: Path, steps: int, **fields: Any) -> CodecRecipe:
    sizes = {"latent_channels": 4, "widths": [8, 8, 16], "encoder_depths": [0, 1, 1], "decoder_depths": [0, 1, 1]}
    run = {"steps": steps, "batch_size": 4, "log_every": 2, "checkpoint_every": 2, "sample_every": 0}
    adversary = {"width": 4, "warmup": 2}
    given = {"data": {"source": str(source), "size": 16}, "codec": sizes, "adversary": adversary, "run": run}
    return CodecRecipe.model_validate({**given, "optimizer": {"warmup": 1, "final": 1.0}, **fields})


def decoder(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "codec" / "diffusion_pytorch_model.safetensors")


def test_a_run_with_an_adversary_goes_on_bit_for_bit_as_if_it_had_never_stopped(
    captioned_folder: Path, tmp_path: Path
) -> None:
    train_codec(recipe(captioned_folder, 5), tmp_path / "whole")
    for steps in (2, 5):
        train_codec(recipe(captioned_folder, steps), tmp_path / "parts")
    train_codec(recipe(captioned_folder, 5, adversary=None), tmp_path / "without")
    whole, parts, without = (decoder(tmp_path / name) for name in ("whole", "parts", "without"))
    assert all(torch.equal(tensor, parts[name]) for name, tensor in whole.items())
    assert any(not torch.equal(tensor, without[name]) for name, tensor in whole.items())


def test_the_precision_of_the_recipe_is_computed_in(captioned_folder: Path, tmp_path: Path) -> None:
    run = {"steps": 2, "batch_size": 4, "log_every": 1, "sample_every": 0}
    for name in ("float32", "bfloat16"):
        train_codec(recipe(captioned_folder, 2, run={**run, "precision": name}), tmp_path / name)
    wide, narrow = (decoder(tmp_path / name) for name in ("float32", "bfloat16"))
    assert any(not torch.equal(tensor, narrow[name]) for name, tensor in wide.items())
    assert all(tensor.dtype == torch.float32 for tensor in narrow.values())
