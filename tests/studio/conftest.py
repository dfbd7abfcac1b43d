"""Engines of a small model, and what collects what they tell."""

from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event as Flag
from threading import Thread
from typing import Any

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


class Running:
    """A service in a thread.

    Attributes:
        url: its address.
    """

    def __init__(self, service: Any, drain: float = 30.0) -> None:
        from anystep.studio.server import DrainingServer, listen

        started = Flag()
        self.service, self.server = service, DrainingServer(service, drain, lambda url: started.set())
        listener = listen("127.0.0.1", 0)
        self.port = listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._thread = Thread(target=self.server.run, args=([listener],))
        self._thread.start()
        assert started.wait(30)

    def stop(self) -> None:
        self.server.handle_exit(15, None)
        self._thread.join()


@pytest.fixture
def services(engines: Engines) -> Iterator[Callable[..., Running]]:
    """Start services of `engines`, which end with the test."""
    from anystep.studio.app import AppOptions, Service
    from anystep.studio.guard import GuardOptions

    made: list[Running] = []

    def make(engine: Engine | None = None, deadline: float = 30.0, drain: float = 30.0, **guard: Any) -> Running:
        service = Service(engine or engines(), AppOptions(GuardOptions(**guard), deadline))
        made.append(Running(service, drain))
        return made[-1]

    yield make
    for running in made:
        running.stop()


@pytest.fixture(scope="module")
def service(served: dict[str, Model]) -> Iterator[Running]:
    """One for the tests of a module that leave nothing behind."""
    from anystep.studio.app import AppOptions, Service
    from anystep.studio.guard import GuardOptions

    engine = Engine(served, EngineOptions(), Limits(pixels=64 * 64))
    running = Running(Service(engine, AppOptions(GuardOptions(body=2**20, seconds=5.0))))
    yield running
    running.stop()
    engine.close()
