"""What several tests of evaluation read."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(scope="session")
def classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two hundred and twenty images of three classes."""
    folder, generator = tmp_path_factory.mktemp("classes"), np.random.default_rng(0)
    for number in range(220):
        (folder / f"{number % 3}").mkdir(exist_ok=True)
        blocks = generator.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(blocks.repeat(2, 0).repeat(2, 1)).save(folder / f"{number % 3}" / f"{number:03d}.png")
    return folder
