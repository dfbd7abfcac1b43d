"""The training view's routes: a run as it goes on, its grids, comparisons, and nothing that is not watched."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from PIL import Image
from starlette.testclient import TestClient

from anystep.studio import runs_routes
from anystep.studio.answers import answer_error
from anystep.studio.app import HANDLED
from anystep.studio.runs import RunLog, Runs
from anystep.studio.runs_routes import following, runs_router

from .test_runs import line, write_comparison, write_run


@pytest.fixture
def client(tmp_path: Path) -> TestClient:
    write_run(tmp_path / "runs" / "one", 3)
    Image.new("RGB", (2, 2)).save(tmp_path / "runs" / "one" / "samples" / "step-00000002.png")
    write_comparison(tmp_path / "runs" / "two")
    (tmp_path / "secret.png").write_bytes(b"secret")
    app = FastAPI()
    for kind in HANDLED:
        app.add_exception_handler(kind, answer_error)
    app.include_router(runs_router(Runs([tmp_path / "runs"])))
    return TestClient(app, raise_server_exceptions=False)


def test_what_is_watched_is_listed_and_given(client: TestClient) -> None:
    assert {(each["name"], each["kind"]) for each in client.get("/studio/runs").json()} == {
        ("runs/one", "run"), ("runs/two", "comparison"),
    }  # fmt: skip
    grid = client.get("/studio/grid", params={"name": "runs/one", "file": "step-00000002.png"})
    assert grid.headers["content-type"] == "image/png"
    names = [each["name"] for each in client.get("/studio/comparison", params={"name": "runs/two"}).json()["models"]]
    assert names == ["ours", "theirs"]


@pytest.mark.parametrize(
    ("path", "query"),
    [
        ("run", {"name": "runs/none"}),
        ("run", {"name": "../runs/one"}),
        ("comparison", {"name": "runs/one"}),
        ("grid", {"name": "runs/one", "file": "../../../secret.png"}),
        ("grid", {"name": "runs/one", "file": "step-00000003.png"}),
    ],
)
def test_nothing_else_is_given(client: TestClient, path: str, query: dict[str, str]) -> None:
    answer = client.get(f"/studio/{path}", params=query)
    assert (answer.status_code, "message" in answer.json()["error"]) == (404, True)


@pytest.mark.parametrize(("path", "missing"), [("run", "name"), ("grid", "name"), ("grid?name=x", "file")])
def test_what_a_query_lacks_is_told(client: TestClient, path: str, missing: str) -> None:
    answer = client.get(f"/studio/{path}")
    assert (answer.status_code, answer.json()["error"]["message"]) == (400, f"{missing}: Field required")


def test_a_run_is_told_again_when_it_has_grown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs_routes, "EVERY", 0.001)
    folder = write_run(tmp_path, 3)

    async def follow() -> list[Any]:
        texts, found = following(RunLog(folder)), []
        async for text in texts:
            if text.startswith("event"):
                found.append(json.loads(text.split("data: ")[1]))
                if len(found) == 2:
                    return found
                with (folder / "metrics.jsonl").open("a") as file:
                    file.write(line(4))
        return found

    first, second = asyncio.run(asyncio.wait_for(follow(), 30))
    assert (first["step"], second["step"]) == (3, 4)


def test_a_run_that_is_deleted_is_told_gone(tmp_path: Path) -> None:
    async def follow() -> list[str]:
        return [text async for text in following(RunLog(tmp_path / "nothing"))]

    assert "event: gone" in asyncio.run(follow())[-1]
