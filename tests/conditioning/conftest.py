"""The shipped text encoder, loaded once."""

import pytest

from anystep.conditioning import TextEncoder, load_text_encoder


@pytest.fixture(scope="session")
def minilm() -> TextEncoder:
    return load_text_encoder()
