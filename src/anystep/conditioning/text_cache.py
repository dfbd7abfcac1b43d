"""A cache of text-encoder states on disk, keyed by caption and encoder."""

import logging
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from anystep.bounds import shown
from anystep.conditioning.pipeline_text import CaptionEncoder
from anystep.conditioning.text import States, TextEncoder, pad_states, plain_text, split_states
from anystep.errors import InputError
from anystep.files import check_regular

BATCH = 64
PATIENCE = 30  # seconds to wait for another process that writes
log = logging.getLogger(__name__)
Answer = TypeVar("Answer")


class CachedTextEncoder:
    """A `Conditioner` that encodes each caption once and then reads its states (float16) from one SQLite file.

    Several processes may share the file. Where it cannot be used, because it is damaged, locked, not to be written or
    the disk is full, a warning is logged once and a temporary file takes its place.
    """

    def __init__(self, encoder: CaptionEncoder, path: Path) -> None:
        self.encoder = encoder
        self._key = encoder.fingerprint + " escaped" * encoder.escape  # read otherwise, a caption has other states
        self._path: Path | None = path
        self._told_of_cuts = False
        self._database = sqlite3.connect(":memory:")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.exists():
                check_regular(path)
            self._open(str(path))
        except (sqlite3.Error, OSError, InputError) as error:
            self._use_temporary(error)

    def __call__(self, prompts: Sequence[str]) -> States:
        captions = [plain_text(prompt) for prompt in prompts]
        return pad_states(self._with_fallback(lambda: self._filled(captions)))

    def null(self, count: int) -> States:
        return self([""] * count)

    def fill(self, captions: Sequence[str]) -> None:
        """Encode the captions that the cache lacks. Raises `InputError` for states that half precision cannot hold."""
        plain = [plain_text(caption) for caption in captions]
        self._with_fallback(lambda: self._fill(plain))

    def _with_fallback(self, act: Callable[[], Answer]) -> Answer:
        """The result of `act`, which is called again with a temporary file where the file fails."""
        try:
            return act()
        except (sqlite3.Error, OSError) as error:
            self._use_temporary(error)
        try:
            return act()
        except sqlite3.Error as error:
            raise InputError(f"text states cannot be kept, not even in a temporary file: {error}") from None

    def _open(self, name: str) -> None:
        database = sqlite3.connect(name, timeout=PATIENCE)
        try:
            database.execute(
                "CREATE TABLE IF NOT EXISTS text "
                "(encoder TEXT, caption TEXT, states BLOB, PRIMARY KEY (encoder, caption))"
            )
        except sqlite3.Error:
            database.close()
            raise
        self._database = database

    def _use_temporary(self, error: Exception) -> None:
        """A temporary database, which SQLite removes, in place of the file."""
        if self._path is not None:
            log.warning("text states are not kept from run to run: %s: %s", self._path, " ".join(str(error).split()))
        self._path = None
        with suppress(sqlite3.Error):
            self._database.close()
        self._open("")

    def _filled(self, captions: Sequence[str]) -> list[Tensor]:
        missing = self._fill(captions)
        if not self._told_of_cuts and isinstance(self.encoder, TextEncoder) and (cut := self.encoder.cut(missing)):
            self._told_of_cuts = True
            log.warning("captions are cut at %d tokens, such as %s", self.encoder.max_length, shown(cut[0], 120))
        return [self._read(caption) for caption in captions]

    def _fill(self, captions: Sequence[str]) -> list[str]:
        """Encode the captions that are not there; which these were."""
        missing = [caption for caption in dict.fromkeys(captions) if not self._has(caption)]
        missing.sort(key=len)  # captions of one length need little padding
        for start in range(0, len(missing), BATCH):
            part = missing[start : start + BATCH]
            rows = []
            for caption, states in zip(part, split_states(*self.encoder(part)), strict=True):
                half = states.half()
                if not bool(half.isfinite().all()):
                    raise InputError(
                        f"text encoder {self.encoder.name!r} gives numbers for {shown(caption)} that are not finite in "
                        "half precision"
                    )
                rows.append((self._key, caption, half.cpu().numpy().tobytes()))
            with self._database:
                self._database.executemany("INSERT OR REPLACE INTO text VALUES (?, ?, ?)", rows)
        return missing

    def _has(self, caption: str) -> bool:
        query = "SELECT length(states) FROM text WHERE encoder = ? AND caption = ?"
        row = self._database.execute(query, (self._key, caption)).fetchone()
        return row is not None and bool(row[0]) and row[0] % (2 * self.encoder.width) == 0

    def _read(self, caption: str) -> Tensor:
        query = "SELECT states FROM text WHERE encoder = ? AND caption = ?"
        (states,) = self._database.execute(query, (self._key, caption)).fetchone()
        return torch.from_numpy(np.frombuffer(states, np.float16).reshape(-1, self.encoder.width).copy())
