"""Representation alignment, of whole images and of packs."""

import torch

from anystep.objective.alignment import alignment_loss
from anystep.packing import Packing


def test_the_loss_is_the_cosine_distance_whatever_the_length_of_features() -> None:
    projected = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(alignment_loss(projected, 4 * projected), torch.zeros(2), atol=1e-6, rtol=0)
    torch.testing.assert_close(alignment_loss(projected, -projected), torch.full((2,), 2.0))


def test_a_packed_image_has_the_loss_that_it_has_alone() -> None:
    projected, features = torch.randn(2, 6, 3, generator=torch.Generator().manual_seed(0))
    packed = alignment_loss(projected, features, Packing(((2, 2), (1, 2))))
    alone = [alignment_loss(projected[None, part], features[None, part])[0] for part in (slice(0, 4), slice(4, 6))]
    torch.testing.assert_close(packed, torch.stack(alone))
