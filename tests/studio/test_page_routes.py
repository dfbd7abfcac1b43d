"""The page's routes: its files, pictures as events, the gallery over HTTP, and nothing for others."""

import base64
import json
import re
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx2
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from anystep.pipelines.load import Model
from anystep.studio.engine import Engine
from anystep.studio.gallery import Gallery
from anystep.studio.page_routes import PAGE, page_router

from .conftest import Engines, Running

Services = Callable[..., Running]


@pytest.fixture
def studio(engines: Engines, services: Services, tmp_path: Path) -> Iterator[httpx2.Client]:
    engine = engines()
    running = services(engine)
    running.service.api.include_router(page_router(engine, Gallery(tmp_path / "gallery"), 60.0))
    with httpx2.Client(base_url=running.url, timeout=60) as client:
        yield client


def draw(studio: httpx2.Client, steps: list[int], keep: bool = True, **fields: Any) -> list[tuple[str, Any]]:
    body = {"fields": {"prompt": "a whale", "seed": 4, **fields}, "steps": steps, "keep": keep}
    answer = studio.post("/studio/draw", json=body)
    assert answer.status_code == 200, answer.text
    blocks = [block.split("\n") for block in answer.text.split("\n\n") if block.startswith("event")]
    return [(name.removeprefix("event: "), json.loads(data.removeprefix("data: "))) for name, data in blocks]


def image_of(told: dict[str, Any]) -> Image.Image:
    return Image.open(BytesIO(base64.b64decode(told["image"])))


def test_each_number_of_steps_is_told_as_it_is_ready_and_is_the_model_s_own(
    studio: httpx2.Client, alone: Model
) -> None:
    events = draw(studio, [4, 1], partial_images=0)
    finished = [told for name, told in events if name == "drawn"]
    assert [(each["steps"], each["nfe"], each["seed"]) for each in finished] == [(1, 2, 4), (4, 8, 4)]
    for each in finished:
        expected = alone("a whale", each["steps"], 4, guidance_in_one_batch=False)[0]
        assert image_of(each).tobytes() == expected.tobytes()
    ticks = [(told["transition"], told["transitions"]) for name, told in events if name == "progress" and told["index"]]
    assert ticks == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert not [told for name, told in events if name == "progress" and "image" in told]


def test_the_estimate_of_every_transition_is_sent_where_it_is_asked_for(studio: httpx2.Client) -> None:
    frames = [told for name, told in draw(studio, [4], keep=False) if name == "progress"]
    assert ["image" in each for each in frames] == [True, True, True, False]
    assert studio.get("/studio/gallery").json() == []


def test_pictures_are_in_the_gallery_until_they_are_removed(studio: httpx2.Client) -> None:
    (told,) = [told for name, told in draw(studio, [2], guidance=2.0) if name == "drawn"]
    (kept,) = studio.get("/studio/gallery").json()
    assert kept["name"] == told["kept"]
    assert (kept["prompt"], kept["seed"], kept["steps"], kept["guidance"]) == ("a whale", 4, [2], 2.0)
    content = studio.get(f"/studio/gallery/{told['kept']}").content
    assert content == base64.b64decode(told["image"])
    recalled = studio.post("/studio/recall", content=content, headers={"Content-Type": "application/octet-stream"})
    assert {**recalled.json(), "name": kept["name"]} == kept
    assert studio.delete(f"/studio/gallery/{told['kept']}").status_code == 204
    assert studio.delete(f"/studio/gallery/{told['kept']}").status_code == 404
    assert studio.get("/studio/gallery").json() == []


@pytest.mark.parametrize("plans", [{"2": {"bogus": 1}}, {"2": {"steps": 4}}])
def test_a_picture_whose_settings_cannot_be_is_not_shown_and_hides_no_other(
    studio: httpx2.Client, tmp_path: Path, plans: Any
) -> None:
    (told,) = [told for name, told in draw(studio, [2]) if name == "drawn"]
    image = image_of(told)
    texts = PngInfo()
    texts.add_text("anystep", json.dumps({**json.loads(image.info["anystep"]), "plans": plans}))
    image.save(tmp_path / "gallery" / "odd.png", pnginfo=texts)
    assert [each["name"] for each in studio.get("/studio/gallery?count=1").json()] == [told["kept"]]
    content = (tmp_path / "gallery" / "odd.png").read_bytes()
    answer = studio.post("/studio/recall", content=content, headers={"Content-Type": "application/octet-stream"})
    assert (answer.status_code, "plans.2" in answer.text) == (400, True)


def test_a_gallery_that_cannot_be_written_costs_no_picture(studio: httpx2.Client, tmp_path: Path) -> None:
    (tmp_path / "gallery").write_text("a file")
    (told,) = [told for name, told in draw(studio, [1]) if name == "drawn"]
    assert told["kept"] is None
    assert "the gallery cannot be written" in told["unkept"]
    assert image_of(told).size == (16, 16)


def test_a_body_or_query_that_is_wrong_is_answered_with_a_reason(studio: httpx2.Client) -> None:
    for body, reason in (
        ({"fields": {"prompt": "a whale"}, "steps": [500]}, "steps 500: expected at most 128"),
        ({"fields": {"prompt": "a whale", "size": "15x16"}, "steps": [1]}, "multiples of"),
        ({"fields": {"prompt": "a whale", "model": "none"}, "steps": [1]}, "unknown model 'none'"),
        ({"steps": [1]}, "Field required"),
    ):
        answer = studio.post("/studio/draw", json=body)
        assert answer.status_code in (400, 404)
        assert reason in answer.json()["error"]["message"]
    answer = studio.get("/studio/gallery?count=abc")
    told = answer.json()["error"]
    assert (answer.status_code, told["param"]) == (400, "count")
    assert re.fullmatch(r"count: .* integer.*, got 'abc'", told["message"])
    image = BytesIO()
    Image.new("RGB", (4, 4)).save(image, "PNG")
    answer = studio.post(
        "/studio/recall", content=image.getvalue(), headers={"Content-Type": "application/octet-stream"}
    )
    assert (answer.status_code, "does not say how it was made" in answer.text) == (400, True)


def test_the_page_is_whole_and_needs_nothing_from_elsewhere(studio: httpx2.Client) -> None:
    assert studio.get("/").text == (PAGE / "index.html").read_text("utf-8")
    for path in PAGE.iterdir():
        answer = studio.get(f"/page/{path.name}")
        assert answer.content == path.read_bytes()
        assert "default-src 'self'" in answer.headers["content-security-policy"]
        assert set(re.findall(r"https?:[^\"']*", path.read_text("utf-8"))) <= {"http://www.w3.org/2000/svg"}, path.name


@pytest.mark.parametrize("path", ["/page/../page_routes.py", "/page/%2e%2e%2fapp.py", "/page/none.js", "/page/main.py"])
def test_no_other_file_is_given(studio: httpx2.Client, path: str) -> None:
    assert studio.get(path).status_code == 404


def test_tabs_of_one_address_are_users_that_take_turns(studio: httpx2.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    users: list[str] = []
    submit = Engine.submit

    def noted(self: Engine, requests: Any, listener: Any, user: str = "", deadline: Any = None) -> Any:
        users.append(user)
        return submit(self, requests, listener, user, deadline)

    monkeypatch.setattr(Engine, "submit", noted)
    for tab in ("one", "one", "two"):
        draw(studio, [1], keep=False, user=tab)
    assert users[0] == users[1] != users[2]


def test_pages_of_others_may_not_ask(studio: httpx2.Client) -> None:
    body = {"fields": {"prompt": "a whale"}, "steps": [1]}
    assert studio.post("/studio/draw", json=body, headers={"Origin": "http://evil.test"}).status_code == 403
    assert (
        studio.post("/studio/draw", content=json.dumps(body), headers={"Content-Type": "text/plain"}).status_code == 415
    )
    assert studio.get("/", headers={"Host": "evil.test"}).status_code == 200  # `anystep studio` names its hosts
