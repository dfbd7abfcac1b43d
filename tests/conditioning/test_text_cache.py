"""Cached captions: encoded once, read back as they were to half precision."""

from pathlib import Path
from threading import Thread

import pytest
import torch

from anystep.conditioning import CachedTextEncoder, Conditioner, TextEncoder, load_text_encoder

CAPTIONS = ["a red apple", "whale", "a red apple on a blue background", "whale", ""]


@pytest.fixture
def encoder(tiny_text_models: dict[str, Path]) -> TextEncoder:
    return load_text_encoder(tiny_text_models["bert"])


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every caption that any encoder is asked for."""
    seen: list[str] = []
    real = TextEncoder.__call__

    def counting(self: TextEncoder, prompts: list[str]) -> object:
        seen.extend(prompts)
        return real(self, prompts)

    monkeypatch.setattr(TextEncoder, "__call__", counting)
    return seen


def test_a_caption_is_encoded_once(encoder: TextEncoder, tmp_path: Path, encoded: list[str]) -> None:
    cached = CachedTextEncoder(encoder, tmp_path / "deep" / "text.sqlite")
    assert isinstance(cached, Conditioner)
    first, first_mask = cached(CAPTIONS)
    assert sorted(encoded) == sorted(set(CAPTIONS))
    encoded.clear()
    again, mask = cached(CAPTIONS)
    assert torch.equal(again, first)
    assert mask is not None
    assert torch.equal(mask, first_mask)
    CachedTextEncoder(encoder, tmp_path / "deep" / "text.sqlite")(CAPTIONS[::-1])  # another process, another day
    assert not encoded


def test_cached_states_are_the_encoders_in_half_precision(encoder: TextEncoder, tmp_path: Path) -> None:
    expected, expected_mask = encoder(CAPTIONS)
    states, mask = CachedTextEncoder(encoder, tmp_path / "text.sqlite")(CAPTIONS)
    assert expected_mask is not None
    assert mask is not None
    assert torch.equal(mask, expected_mask)
    assert states.dtype == torch.float32
    torch.testing.assert_close(states[mask], expected[mask], atol=1e-5, rtol=2**-10)
    assert torch.equal(states[mask], states[mask].half().float())
    assert not states[~mask].any()


def test_more_captions_than_a_batch_keep_their_places(encoder: TextEncoder, tmp_path: Path, encoded: list[str]) -> None:
    captions = [f"{word} {'red ' * (number % 7)}" for number in range(50) for word in ("apple", "whale", "blue")]
    cached = CachedTextEncoder(encoder, tmp_path / "text.sqlite")
    cached.fill(captions)
    assert len(encoded) == len(set(captions))
    states, _ = cached(["whale red red "])
    torch.testing.assert_close(states, encoder(["whale red red "])[0], atol=2e-3, rtol=0)


def test_captions_of_one_length_need_no_mask_and_the_null_is_the_empty_caption(
    encoder: TextEncoder, tmp_path: Path
) -> None:
    cached = CachedTextEncoder(encoder, tmp_path / "text.sqlite")
    assert cached(["whale", "apple"])[1] is None
    null, mask = cached.null(2)
    assert mask is None
    torch.testing.assert_close(null, encoder.null(2)[0], atol=2e-3, rtol=0)


def test_each_encoder_has_its_own_states_in_a_shared_file(
    tiny_text_models: dict[str, Path], encoder: TextEncoder, tmp_path: Path
) -> None:
    other = load_text_encoder(tiny_text_models["bert"])
    with torch.no_grad():
        other.model.encoder.layer[-1].output.dense.weight.mul_(3)  # the embedding stays as it was
    for each in (encoder, other, encoder):
        states, _ = CachedTextEncoder(each, tmp_path / "text.sqlite")(["whale"])
        torch.testing.assert_close(states, each(["whale"])[0], atol=2e-3, rtol=0)
    assert not torch.allclose(encoder(["whale"])[0], other(["whale"])[0], atol=1e-2)


def test_several_writers_share_a_file(encoder: TextEncoder, tmp_path: Path) -> None:
    captions = [f"{'red ' * number}apple" for number in range(1, 9)]
    failed: list[BaseException] = []

    def write(part: list[str]) -> None:
        try:
            for caption in part:
                CachedTextEncoder(encoder, tmp_path / "text.sqlite").fill([caption])
        except BaseException as error:
            failed.append(error)

    threads = [Thread(target=write, args=(captions[start:] + captions[:start],)) for start in (0, 3, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    states, mask = CachedTextEncoder(encoder, tmp_path / "text.sqlite")(captions)
    assert mask is not None
    torch.testing.assert_close(states[mask], encoder(captions)[0][mask], atol=2e-3, rtol=0)
