"""Text features on disk, keyed by caption and encoder."""

import sqlite3
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from anystep.conditioning.text import TextEncoder, pad_states, split_states

BATCH = 64


class CachedTextEncoder:
    """A `Conditioner` that encodes each caption once and then reads its states (float16) from one SQLite file.

    Several processes may share the file.
    """

    def __init__(self, encoder: TextEncoder, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.encoder = encoder
        self._key = encoder.fingerprint
        self._database = sqlite3.connect(path, timeout=60)
        self._database.execute(
            "CREATE TABLE IF NOT EXISTS text (encoder TEXT, caption TEXT, states BLOB, PRIMARY KEY (encoder, caption))"
        )

    def __call__(
        self, prompts: Sequence[str]
    ) -> tuple[Float[Tensor, "batch length width"], Bool[Tensor, "batch length"] | None]:
        self.fill(prompts)
        return pad_states([self._read(prompt) for prompt in prompts])

    def null(self, count: int) -> tuple[Float[Tensor, "batch length width"], Bool[Tensor, "batch length"] | None]:
        return self([""] * count)

    def fill(self, captions: Sequence[str]) -> None:
        """Encode what is missing."""
        missing = [caption for caption in dict.fromkeys(captions) if not self._has(caption)]
        missing.sort(key=len)  # little padding
        for start in range(0, len(missing), BATCH):
            part = missing[start : start + BATCH]
            rows = [
                (self._key, caption, states.half().cpu().numpy().tobytes())
                for caption, states in zip(part, split_states(*self.encoder(part)), strict=True)
            ]
            with self._database:
                self._database.executemany("INSERT OR REPLACE INTO text VALUES (?, ?, ?)", rows)

    def _has(self, caption: str) -> bool:
        query = "SELECT 1 FROM text WHERE encoder = ? AND caption = ?"
        return self._database.execute(query, (self._key, caption)).fetchone() is not None

    def _read(self, caption: str) -> Tensor:
        query = "SELECT states FROM text WHERE encoder = ? AND caption = ?"
        (states,) = self._database.execute(query, (self._key, caption)).fetchone()
        return torch.from_numpy(np.frombuffer(states, np.float16).reshape(-1, self.encoder.width).copy())
