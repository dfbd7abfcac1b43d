"""An adversary for a codec: it learns to tell decoded images from real ones, and the decoder to deceive it.

L1 and squared error alone make a decoder blur whatever a latent leaves open; an adversary does not let that pass.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import leaky_relu, relu
from torch.nn.utils.parametrizations import spectral_norm

from anystep.training.codec_config import AdversaryConfig

Images = Float[Tensor, "batch 3 height width"]
SLOPE = 0.2


class Judgement(NamedTuple):
    """What a discriminator makes of images: the score of each patch, high for real ones, and the features behind it."""

    scores: Float[Tensor, "batch 1 rows columns"]
    features: list[Tensor]


class PatchDiscriminator(nn.Module):
    """Scores patches of images, 28 pixels wide and 4 apart (arXiv 1611.07004, section 3.2.2).

    Spectral norms bound how fast scores change with pixels (arXiv 1802.05957).

    Args:
        width: channels of the first layer.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            spectral_norm(layer)
            for layer in (
                nn.Conv2d(3, width, 3, padding=1),
                nn.Conv2d(width, 2 * width, 4, stride=2, padding=1),
                nn.Conv2d(2 * width, 4 * width, 4, stride=2, padding=1),
                nn.Conv2d(4 * width, 4 * width, 3, padding=1),
            )
        )
        self.score = spectral_norm(nn.Conv2d(4 * width, 1, 3, padding=1))

    def forward(self, images: Images) -> Judgement:
        features, now = [], images
        for layer in self.layers:
            now = leaky_relu(layer(now), SLOPE)
            features.append(now)
        return Judgement(self.score(now), features)


def feature_distance(decoded: Judgement, real: Judgement) -> Float[Tensor, ""]:
    """L1 between the features of decoded images and of those that they should be, a mean over layers.

    The source is arXiv 1711.11585, equation 4.
    """
    pairs = zip(decoded.features, real.features, strict=True)
    return torch.stack([(ours.float() - theirs.detach().float()).abs().mean() for ours, theirs in pairs]).mean()


def discriminator_loss(decoded: Judgement, real: Judgement) -> Float[Tensor, ""]:
    """The hinge loss of arXiv 1705.02894, section 3: patches of real images above 1, those of decoded ones below -1."""
    return relu(1 - real.scores.float()).mean() + relu(1 + decoded.scores.float()).mean()


class Adversary:
    """A discriminator and its optimizer, for a decoder that is trained beside it."""

    def __init__(self, config: AdversaryConfig, betas: tuple[float, float], device: torch.device) -> None:
        self.config = config
        self.discriminator = PatchDiscriminator(config.width).to(device)
        self.optimizer = torch.optim.AdamW(self.discriminator.parameters(), betas=betas, weight_decay=0.0)

    def loss(self, decoded: Images, images: Images, step: int) -> Float[Tensor, ""]:
        """What the decoder is to lower in a step, counted from 1, beside the error of its images.

        It is minus their scores, and how far their features are from those of the real images.
        """
        judged = self.discriminator(decoded)
        with torch.no_grad():
            real = self.discriminator(images)
        grown = min(1.0, step / max(1, self.config.warmup))
        distance = self.config.feature_matching * feature_distance(judged, real)
        return grown * (distance - self.config.weight * judged.scores.float().mean())

    def learn(self, decoded: Images, images: Images, rate: float) -> None:
        """A step of the discriminator; the rate is that of the decoder."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate * self.config.learning_rate
        loss = discriminator_loss(self.discriminator(decoded.detach()), self.discriminator(images))
        self.optimizer.zero_grad()  # of what the decoder's loss left there too
        loss.backward()
        self.optimizer.step()
