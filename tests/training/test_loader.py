"""The data loader: draws depend on the number of their sample alone, and batches are read one step ahead."""

from pathlib import Path

import pytest
import torch
from helpers import Colours, encode, encoders
from torch import Tensor

from anystep.data.latents import LatentSet
from anystep.data.prepare import prepare
from anystep.ranks import Ranks
from anystep.training.batch_samplers import BatchSampler, FixedShapeBatchSampler, TokenBudgetBatchSampler
from anystep.training.loader import PrefetchingLoader, draw


def test_a_sample_draws_the_same_in_every_batch_and_none_as_another() -> None:
    together, alone = draw(3, [4, 5, 6], [(2, 2, 2)] * 3), draw(3, [5], [(2, 2, 2)])
    assert torch.equal(together.z[1], alone.z[0])
    for name in ("normal", "uniform", "choice", "drop", "mirror", "guidance"):
        values = getattr(together, name)
        assert torch.equal(values[1], getattr(alone, name)[0])
        assert len({tuple(row.reshape(-1).tolist()) for row in values}) == 3
    assert not torch.equal(together.z[0], together.z[1])
    assert not torch.equal(alone.z[0], draw(4, [5], [(2, 2, 2)]).z[0])


def test_noise_that_is_asked_for_beside_changes_no_other_draw() -> None:
    plain, more = draw(0, [7], [(1, 4, 2)]), draw(0, [7], [(1, 4, 2)], fresh=True)
    assert plain.fresh == []
    assert more.fresh[0].shape == (1, 4, 2)
    assert not torch.equal(more.fresh[0], more.z[0])
    assert all(torch.equal(getattr(plain, name), getattr(more, name)) for name in ("normal", "uniform", "guidance"))
    assert torch.equal(plain.z[0], more.z[0])


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> LatentSet:
    folder: Path = tmp_path_factory.mktemp("loader") / "out"
    return LatentSet([prepare(Colours(), folder, encoders(mirror=True))])


def loader(data: LatentSet, sampler: BatchSampler, **options: bool) -> PrefetchingLoader:
    return PrefetchingLoader(data, sampler, Ranks(), 1, 5, **options)


def test_steps_are_the_same_whether_they_were_read_ahead_or_not(data: LatentSet) -> None:
    sampler = FixedShapeBatchSampler(data.sizes, [1.0], 6, 2, 0)
    with (
        loader(data, sampler, mirror=True, fresh=True) as ahead,
        loader(data, sampler, mirror=True, fresh=True) as late,
    ):
        ahead.take(2)
        one, other = ahead.take(3), late.take(3)
        assert ahead.examples(3) == [number for each in sampler.step(3) for number in each.examples]
    assert len(one) == 2
    for left, right in zip(one, other, strict=True):
        assert left.x.shape == left.z.shape == (3, 2, 2, 2)
        assert left.fresh is not None
        assert right.fresh is not None
        assert all(map(torch.equal, (left.x, left.z, left.fresh), (right.x, right.z, right.fresh)))
        assert (left.packing, left.features, left.shapes) == (None, None, [(2, 2)] * 3)


def test_half_of_the_images_are_mirrored_where_that_is_asked_for(data: LatentSet) -> None:
    sampler = FixedShapeBatchSampler(data.sizes, [1.0], 30, 1, 0)
    with loader(data, sampler, mirror=True) as mirrored, loader(data, sampler) as plain:
        ((turned,), (straight,)) = mirrored.take(0), plain.take(0)
    for row, example in enumerate(straight.examples):
        assert torch.equal(straight.x[row], example.latent)
        assert torch.equal(turned.x[row], example.mirrored if turned.draws.mirror[row] < 0.5 else example.latent)
    assert not torch.equal(turned.x, straight.x)


@pytest.mark.parametrize("packed", [False, True])
def test_features_are_mirrored_with_their_image(tmp_path: Path, packed: bool) -> None:
    def tokens(latents: Tensor) -> Tensor:
        return latents.flatten(-2).transpose(-2, -1)

    made = encoders(mirror=True, features=lambda images: tokens(encode(images)))
    data = LatentSet([prepare(Colours(), tmp_path / "out", made)])
    sampler = TokenBudgetBatchSampler(data.grids, [1.0], 120, 1, 1, 0, packed)
    with loader(data, sampler, mirror=True) as mirrored:
        (part,) = mirrored.take(0)
    assert part.features is not None
    assert 0 < int((part.draws.mirror < 0.5).sum()) < 30
    assert torch.equal(part.features, part.x.flatten(1) if packed else tokens(part.x))


def test_images_of_any_shape_are_packed_into_one_sequence(data: LatentSet) -> None:
    sampler = TokenBudgetBatchSampler(data.grids, [1.0], 12, 1, 1, 0, packed=True)
    with loader(data, sampler) as packed:
        (part,) = packed.take(0)
    assert part.packing is not None
    assert part.packing.grids == ((2, 2),) * 3
    assert part.x.shape == part.z.shape == (12, 2, 1, 1)
    assert part.fresh is None
