"""Engines of a small model, and what collects what they tell."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from anystep.pipelines.load import Model, load
from anystep.studio.engine import Engine, EngineOptions
from anystep.studio.request import Limits

Engines = Callable[..., Engine]


@pytest.fixture(scope="session")
def alone(tiny_model: Path) -> Model:
    """The model `tiny` in no engine's hands."""
    return load(tiny_model, "cpu")


@pytest.fixture(scope="session")
def served(tiny_model: Path, tiny_classes: Path) -> dict[str, Model]:
    return {"tiny": load(tiny_model, "cpu"), "classes": load(tiny_classes, "cpu")}


@pytest.fixture
def engines(served: dict[str, Model]) -> Iterator[Engines]:
    """Make engines of the models `tiny` and `classes`, which are closed at the end."""
    made: list[Engine] = []

    def make(limits: Limits | None = None, **options: float) -> Engine:
        made.append(Engine(served, EngineOptions(**options), limits))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for engine in made:
        engine.close()
