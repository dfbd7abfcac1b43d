"""What the micro-batches of a step are conditioned on."""

import torch

from anystep.conditioning import LabelEncoder
from anystep.data.latents import Encoded
from anystep.training.loader import Draws, draw
from anystep.training.step import choose_captions, encode_conditions

LATENT = torch.zeros(1, 2, 2)


def draws(choice: list[float], drop: list[float]) -> Draws:
    found = draw(0, range(len(choice)), [LATENT.shape] * len(choice))
    return found._replace(choice=torch.tensor(choice), drop=torch.tensor(drop))


def test_captions_are_chosen_evenly_and_some_are_dropped() -> None:
    examples = [Encoded(LATENT, ("one", "two")), Encoded(LATENT, ("one", "two")), Encoded(LATENT, ("one",))]
    given = draws([0.2, 0.7, 0.99], [0.5, 0.5, 0.05])
    assert choose_captions(examples, 0.1, given) == [0, 1, None]
    assert choose_captions(examples, 0.0, given) == [0, 1, 0]
    assert choose_captions([Encoded(LATENT, label=1)], 0.1, draws([0.9], [0.5])) == [0]


def test_classes_that_are_dropped_become_the_null_class() -> None:
    encoder = LabelEncoder(["cat", "dog"])
    labels, mask = encode_conditions(encoder, [Encoded(LATENT, label=1), Encoded(LATENT, label=0)], [0, None])
    assert labels.tolist() == [1, 2]
    assert mask is None
