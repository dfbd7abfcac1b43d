"""One thread, a repeatable hypothesis profile, and caches that vanish with the tests."""

import os
import tempfile
from pathlib import Path

os.environ["ANYSTEP_CACHE"] = tempfile.mkdtemp(prefix="anystep-test-")
os.environ["HF_HUB_OFFLINE"] = "1"

import hypothesis
import pytest
import torch

torch.set_num_threads(1)
hypothesis.settings.register_profile("anystep", deadline=None, derandomize=True, max_examples=15)
hypothesis.settings.load_profile("anystep")


@pytest.fixture(scope="session")
def numbers() -> Path:
    """The folder of reference numbers."""
    return Path(__file__).parent / "data"
