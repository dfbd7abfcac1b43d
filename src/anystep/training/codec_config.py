"""The recipe of `anystep train-codec`; the sentence above a field is what `--help` says of it."""

from typing import Annotated

from annotated_types import MinLen
from pydantic import model_validator

from anystep.bounds import BatchSize, Coefficient, Depth, LearningRate, OptionalCount, PositiveCoefficient, Share, Width
from anystep.training.config import DataConfig, OptimizerConfig, RunConfig
from anystep.training.section import Name, Section


class CodecModelConfig(Section):
    """Sizes of an AutoencoderDC of convolutions alone, so that it can be tiled exactly."""

    # Number of channels of the latents.
    latent_channels: Width = 32
    # Number of channels of each stage; every stage after the first halves the resolution.
    widths: Annotated[tuple[Width, ...], MinLen(1)] = (32, 32, 64, 128)
    # Number of residual blocks in each stage of the encoder.
    encoder_depths: tuple[Depth, ...] = (0, 1, 1, 1)
    # Number of residual blocks in each stage of the decoder; one that is gone on from gets those that it lacks.
    decoder_depths: tuple[Depth, ...] = (0, 1, 2, 2)
    # Range of the noise added to latents in training, relative to their standard deviation, drawn for each image.
    noise: tuple[Coefficient, Coefficient] = (0.03, 0.03)

    @model_validator(mode="after")
    def _alike(self) -> "CodecModelConfig":
        if not len(self.widths) == len(self.encoder_depths) == len(self.decoder_depths):
            raise ValueError("codec.widths, encoder_depths and decoder_depths: expected as many of each")
        return self


class AdversaryConfig(Section):
    """A network that learns to tell decoded images from real ones, beside the decoder, which learns to deceive it."""

    # Weight of the adversary's scores in the decoder's loss; there is an adversary where any value of it is given.
    weight: PositiveCoefficient = 0.05
    # Weight of the distance between the adversary's features of decoded and of real images.
    feature_matching: Coefficient = 5.0
    # Number of channels of its first layer.
    width: Width = 32
    # Learning rate, as a multiple of the decoder's.
    learning_rate: PositiveCoefficient = 2.0
    # Number of steps over which both weights rise from 0.
    warmup: OptionalCount = 500


class CodecOptimizerConfig(OptimizerConfig):
    """Of `anystep train-codec`: other defaults."""

    # Peak learning rate.
    learning_rate: LearningRate = 3e-3
    # Learning rate at the end of the cosine decay, as a share of the peak.
    final: Share = 0.01


class CodecRunConfig(RunConfig):
    """Of `anystep train-codec`: other defaults."""

    # Number of images in a step.
    batch_size: BatchSize = 16
    # Not used: training a codec draws no samples.
    sample_every: OptionalCount = 0


class CodecRecipe(Section):
    """`anystep train-codec`."""

    # Images to train on.
    data: DataConfig = DataConfig()
    # Architecture of the autoencoder.
    codec: CodecModelConfig = CodecModelConfig()
    # What makes decoded images sharp beyond L1 and squared error (null: nothing).
    adversary: AdversaryConfig | None = None
    # Optimizer and learning-rate schedule.
    optimizer: CodecOptimizerConfig = CodecOptimizerConfig()
    # Length of the run, batch size, device, checkpoints and log.
    run: CodecRunConfig = CodecRunConfig()
    # Autoencoder to go on from: builtin, a folder or a hub id (null: begin anew).
    weights: Name | None = None
    # Autoencoder to go on from with its encoder frozen, so that its latents stay valid (null: train both halves).
    refine: Name | None = None

    @model_validator(mode="after")
    def _one_start(self) -> "CodecRecipe":
        if self.weights is not None and self.refine is not None:
            raise ValueError("weights and refine both name an autoencoder to go on from: give one of them")
        return self
