"""Exporters give functions tensors for sizes, which the shape checks of these tests would refuse."""

from collections.abc import Iterator

import jaxtyping
import pytest


@pytest.fixture(autouse=True)
def traceable() -> Iterator[None]:
    """While a test lasts, shapes are not checked."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
