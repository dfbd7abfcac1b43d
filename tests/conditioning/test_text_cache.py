"""Cached captions: encoded once, read back as they were to half precision."""

import os
import sqlite3
from collections.abc import Callable
from pathlib import Path
from threading import Thread

import pytest
import torch

from anystep.conditioning import CachedTextEncoder, Conditioner, TextEncoder, load_text_encoder, text_cache
from anystep.errors import InputError

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


def damaged(path: Path) -> None:
    path.write_bytes(b"no database at all" * 100)


def cut(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def locked(path: Path) -> None:
    other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN EXCLUSIVE")
    HELD.append(other)


def another_table(path: Path) -> None:
    path.unlink()
    sqlite3.connect(path).execute("CREATE TABLE text (something TEXT)").connection.commit()


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def a_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


HELD: list[sqlite3.Connection] = []


@pytest.mark.parametrize("damage", [damaged, cut, locked, another_table, a_folder, a_fifo])
def test_a_file_that_cannot_be_used_is_said_and_done_without(
    encoder: TextEncoder,
    tmp_path: Path,
    damage: Callable[[Path], None],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(text_cache, "PATIENCE", 0.1)
    path = tmp_path / "text.sqlite"
    expected, mask = CachedTextEncoder(encoder, path)(CAPTIONS)
    damage(path)
    cached = CachedTextEncoder(encoder, path)
    for _ in range(2):
        states, again = cached(CAPTIONS)
        assert torch.equal(states, expected)
        assert mask is not None
        assert again is not None
        assert torch.equal(mask, again)
    (record,) = caplog.records
    assert record.getMessage().startswith(f"text states are not kept from run to run: {path}: ")
    while HELD:
        HELD.pop().close()


def test_a_disk_that_fills_and_a_folder_that_cannot_be_made_are_done_without(
    encoder: TextEncoder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cached = CachedTextEncoder(encoder, tmp_path / "text.sqlite")
    cached.fill(["whale"])
    cached._database.execute("PRAGMA max_page_count = 3")
    captions = [f"{'red ' * number}apple" for number in range(1, 300)]
    assert len(cached(captions)[0]) == len(captions)
    assert "database or disk is full" in caplog.text
    (tmp_path / "file").touch()
    assert len(CachedTextEncoder(encoder, tmp_path / "file" / "text.sqlite")(CAPTIONS)[0]) == len(CAPTIONS)
    assert "File exists" in caplog.text


def test_states_too_large_for_half_precision_are_not_kept_as_infinity(encoder: TextEncoder, tmp_path: Path) -> None:
    with torch.no_grad():
        encoder.model.encoder.layer[-1].output.LayerNorm.weight.mul_(1e6)
    with pytest.raises(InputError, match=r"gives numbers for 'whale' that are not finite in half precision"):
        CachedTextEncoder(encoder, tmp_path / "text.sqlite").fill(["whale"])


def test_the_first_caption_that_is_cut_in_training_is_named(
    encoder: TextEncoder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cached, long = CachedTextEncoder(encoder, tmp_path / "text.sqlite"), "red apple " * 20
    cached.fill([f"whale {long}"])  # counted by who prepares
    cached([f"whale {long}", "whale"])
    assert caplog.messages == []
    cached(["whale", f"blue {long}"])
    cached([f"flat {long}"])
    assert [message.partition(" red")[0] for message in caplog.messages] == [
        "captions are cut at 12 tokens, such as 'blue"
    ]


def test_bytes_that_are_no_text_have_states_all_the_same(encoder: TextEncoder, tmp_path: Path) -> None:
    cached = CachedTextEncoder(encoder, tmp_path / "text.sqlite")
    assert torch.equal(cached(["a red \udce9"])[0], cached(["a red ?"])[0])
