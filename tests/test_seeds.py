"""Seeds: each is another, however large, and those of 32 bits mean what they mean in PyTorch."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from anystep.sampling import noise
from anystep.seeds import drawn_seeds, generator_of, mixed
from anystep.training.batch_samplers import batch_indices
from anystep.training.run import step_generator


@given(seed=st.integers(0, 2**32 - 1))
def test_a_seed_of_32_bits_is_that_of_pytorch(seed: int) -> None:
    assert mixed(seed) == seed
    assert torch.equal(noise((2,), [seed])[0], torch.randn(2, generator=torch.Generator().manual_seed(seed)))


@given(low=st.integers(0, 2**32 - 1), high=st.integers(1, 2**30 - 1), other=st.integers(1, 2**30 - 1))
def test_seeds_that_agree_in_their_low_bits_are_not_the_same(low: int, high: int, other: int) -> None:
    seeds = {low, low + (high << 32), low + (other << 32)}
    assert len({mixed(seed) for seed in seeds}) == len(seeds)
    assert all(0 <= mixed(seed) < 2**32 for seed in seeds)


def test_noise_and_the_data_and_steps_of_training_tell_large_seeds_apart() -> None:
    one, other = 7, 7 + 2**32
    assert not torch.equal(*(noise((4,), [seed]) for seed in (one, other)))
    assert not torch.equal(*(torch.rand(4, generator=step_generator(seed, 3)) for seed in (one, other)))
    assert batch_indices(100, 20, one, 0) != batch_indices(100, 20, other, 0)


def test_seeds_from_a_generator_mean_the_noise_that_they_always_meant() -> None:
    drawn = torch.randint(2**62, (1,), generator=generator_of(3)).item()
    expected = torch.randn(5, generator=torch.Generator().manual_seed(int(drawn)))
    assert torch.equal(noise((5,), drawn_seeds(generator_of(3), 1))[0], expected)
