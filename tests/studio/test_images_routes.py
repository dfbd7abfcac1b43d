"""The service as the `openai` client calls it: images, events, edits, refusals, and clients that go away."""

import base64
import io
import json
import re
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event as Flag
from typing import Any

import openai
import pytest
from PIL import Image
from starlette.datastructures import UploadFile

from anystep.errors import InputError
from anystep.pipelines.load import Model
from anystep.pipelines.settings import read_settings
from anystep.studio import images_routes
from anystep.studio.draw import Painter
from anystep.studio.openai_images import parse_form

from .conftest import Engines, Running

Services = Callable[..., Running]


def client(running: Running, key: str = "none") -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{running.url}/v1", api_key=key, max_retries=0, timeout=30)


def opened(text: str) -> Image.Image:
    image = Image.open(io.BytesIO(base64.b64decode(text)))
    image.load()
    return image


def png(size: tuple[int, int] = (20, 30)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, "red").save(buffer, "PNG")
    return buffer.getvalue()


def test_images_are_those_of_the_library_and_say_how_they_were_made(
    services: Services, alone: Model, tmp_path: Path
) -> None:
    images = client(services()).images
    options = {"steps": 2, "guidance": 1.0, "seed": 5}
    answer = images.generate(prompt="a whale", model="tiny", n=2, size="24x16", extra_body=options)
    assert answer.size == "24x16"
    assert answer.data is not None
    for number, data in enumerate(answer.data):
        assert data.model_extra is not None
        assert (data.model_extra["seed"], data.model_extra["nfe"]) == (5 + number, 2)
        expected = alone("a whale", 2, 5 + number, size=(24, 16), guidance=1.0)[0]
        assert opened(data.b64_json or "").tobytes() == expected.tobytes()
    path = tmp_path / "image.png"
    path.write_bytes(base64.b64decode(answer.data[0].b64_json or ""))
    settings = read_settings(path)
    assert (settings.prompts, settings.seeds, settings.steps, settings.size) == (("a whale",), (5,), (2,), (24, 16))


def test_both_names_of_steps_and_guidance_mean_the_same(services: Services) -> None:
    images = client(services()).images
    long, short = (
        images.generate(prompt="a whale", extra_body={"seed": 1, **options}).data
        for options in ({"num_inference_steps": 3, "guidance_scale": 2}, {"steps": 3, "guidance": 2})
    )
    assert long is not None
    assert short is not None
    assert long[0].b64_json == short[0].b64_json


@pytest.mark.parametrize("form", ["png", "jpeg", "webp"])
def test_formats_and_urls_with_the_data_in_them(services: Services, form: str) -> None:
    images = client(services()).images
    answer = images.generate(
        prompt="a whale", output_format=form, response_format="url", quality="high", user="somebody",  # type: ignore[call-overload]
        extra_body={"steps": 1},
    )  # fmt: skip
    head, _, text = answer.data[0].url.partition(",")
    assert head == f"data:image/{form};base64"
    assert opened(text).format == form.upper()


def test_a_stream_sends_every_transition_and_then_the_image(services: Services) -> None:
    images = client(services()).images
    options: dict[str, Any] = {"steps": 4, "seed": 2}
    events = list(images.generate(prompt="a whale", stream=True, extra_body=options))
    assert [event.type for event in events] == ["image_generation.partial_image"] * 3 + ["image_generation.completed"]
    assert [event.partial_image_index for event in events[:-1]] == [0, 1, 2]  # type: ignore[union-attr]
    assert all(opened(event.b64_json).size == (16, 16) for event in events)
    plain = images.generate(prompt="a whale", extra_body=options)
    assert plain.data is not None
    assert events[-1].b64_json == plain.data[0].b64_json
    few = list(images.generate(prompt="a whale", stream=True, partial_images=1, n=2, extra_body=options))
    kinds = [event.type.removeprefix("image_generation.") for event in few]
    assert sorted(kinds) == ["completed", "completed", "partial_image", "partial_image"]


def test_an_edit_starts_from_the_image(services: Services, alone: Model) -> None:
    images = client(services()).images
    options: dict[str, Any] = {"strength": 0.5, "steps": 2, "seed": 1, "guidance": 1}
    answer = images.edit(image=("red.png", png()), prompt="a whale", size="16x16", extra_body=options)  # type: ignore[call-overload]
    start = Image.open(io.BytesIO(png()))
    expected = alone("a whale", 2, 1, guidance=1.0, image=start, strength=0.5)[0]
    assert opened(answer.data[0].b64_json).tobytes() == expected.tobytes()
    (*partial, last) = images.edit(image=[png()], prompt="a whale", stream=True, extra_body=options)  # type: ignore[call-overload]
    assert {event.type for event in partial} == {"image_edit.partial_image"}
    assert last.type == "image_edit.completed"


@pytest.mark.parametrize("name", ["guidance_interval", "guidance_interval[]"])
def test_a_form_gives_two_numbers_as_a_field_twice(name: str) -> None:
    image = UploadFile(io.BytesIO(png()), filename="red.png")
    form = [("image", image), ("prompt", "a whale"), (name, "0.1"), (name, "0.5")]
    assert parse_form(form)[0].guidance_interval == (0.1, 0.5)
    for wrong in (["[0.1, 0.5]"], ["0.1", "0.5", "0.7"]):
        told = f"guidance_interval '{', '.join(wrong)}': expected the field twice, a number each"
        with pytest.raises(InputError, match=re.escape(told)):
            parse_form([*form[:2], *((name, each) for each in wrong)])


def test_models_are_listed_and_found(services: Services) -> None:
    models = client(services()).models
    assert [each.id for each in models.list()] == ["tiny", "classes"]
    assert models.retrieve("classes").owned_by == "anystep"
    with pytest.raises(openai.NotFoundError):
        models.retrieve("dall-e-3")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompt": ""}, "prompt: "),
        ({"prompt": " "}, "empty prompt"),
        ({"n": 0}, "n: "),
        ({"size": "17x16"}, "multiples of"),
        ({"size": "big"}, "size: "),
        ({"size": "4096x4096"}, "at most 4,096 pixels"),
        ({"extra_body": {"steps": 129}}, "steps 129: expected at most 128"),
        ({"extra_body": {"steps": "4"}}, "steps: "),
        ({"extra_body": {"steps": 4, "num_inference_steps": 4}}, "are the same"),
        ({"extra_body": {"stepps": 4}}, "stepps: "),
        ({"extra_body": {"seed": -1}}, "seed: "),
        ({"extra_body": {"guidance_interval": [1, 0]}}, "guidance_interval"),
        ({"background": "transparent"}, "background: "),
    ],
    ids=str,
)
def test_bad_values_are_told(service: Running, options: dict[str, Any], message: str) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client(service).images.generate(**{"prompt": "a whale", **options})
    said = refused.value.body
    assert isinstance(said, dict)
    assert message in said["message"]
    assert said["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("image", "options", "message"),
    [
        (b"no image", {}, "expected a PNG, JPEG or WebP file"),
        (png()[:60], {}, "expected a PNG, JPEG or WebP file"),
        (png(), {"mask": png()}, "without mask"),
        ([png(), png()], {}, "2 files as image"),
        (png(), {"extra_body": {"strength": 1.5}}, "strength: "),
    ],
    ids=["text", "half", "mask", "two", "strength"],
)
def test_bad_images_are_told(service: Running, image: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(openai.BadRequestError, match=message):
        client(service).images.edit(image=image, prompt="a whale", **options)


def test_concurrent_requests_get_each_its_own_image(services: Services, engines: Engines, alone: Model) -> None:
    images = client(services(engines(window=0.05, workers=2))).images

    def ask(seed: int) -> bool:
        options = {"steps": 1 + seed % 2, "seed": seed, "guidance": 1}
        answer = images.generate(prompt=f"whale {seed % 3}", extra_body=options)
        assert answer.data is not None
        expected = alone(f"whale {seed % 3}", 1 + seed % 2, seed, guidance=1.0)[0]
        return opened(answer.data[0].b64_json or "").tobytes() == expected.tobytes()

    with ThreadPoolExecutor(8) as clients:
        assert all(clients.map(ask, range(24)))


def test_a_full_queue_is_told_with_when_to_ask_again(
    services: Services, engines: Engines, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened_again = hold(monkeypatch)
    engine = engines(waiting=1, batch=1, window=0.0)
    images = client(services(engine)).images
    with ThreadPoolExecutor(2) as clients:
        answers = []
        for running, waiting in ((1, 0), (1, 1)):  # the first must not wait any more when the second comes
            answers.append(clients.submit(images.generate, prompt="a whale", extra_body={"steps": 1}))
            until(lambda now=(running, waiting): (engine.running, engine.waiting) == now)  # type: ignore[misc]
        with pytest.raises(openai.RateLimitError) as full:
            images.generate(prompt="a whale")
        assert 1 <= int(full.value.response.headers["Retry-After"]) <= 60
        opened_again.set()
        assert all(each.result().data for each in answers)


@pytest.mark.parametrize("stream", [False, True])
def test_a_deadline_is_an_answer(services: Services, monkeypatch: pytest.MonkeyPatch, stream: bool) -> None:
    opened_again = hold(monkeypatch)
    running = services()
    images = client(running).images
    with pytest.raises(openai.APIError, match="deadline") as late:
        list(images.generate(prompt="a whale", stream=stream, extra_body={"deadline": 0.2}))  # type: ignore[call-overload]
    assert stream or (isinstance(late.value, openai.InternalServerError) and late.value.status_code == 504)
    opened_again.set()
    until(lambda: b'outcome="TimeoutError"} 1.0' in running.service.metrics.text())
    assert b"Cancelled" not in running.service.metrics.text()


@pytest.mark.parametrize("stream", [False, True])
def test_a_fault_of_the_server_is_in_its_log(
    services: Services,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
    stream: bool,
) -> None:
    monkeypatch.setattr(images_routes, "image_data", lambda fields, drawn: 1 // 0)
    with pytest.raises(openai.APIError, match="a fault of this server"):
        list(client(services()).images.generate(prompt="a whale", stream=stream, extra_body={"steps": 1}))  # type: ignore[call-overload]
    until(lambda: "ZeroDivisionError" in caplog.text + capsys.readouterr().err)


@pytest.mark.parametrize("stream", [False, True])
def test_what_a_client_that_goes_away_asked_for_is_cancelled(
    services: Services, engines: Engines, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    opened_again = hold(monkeypatch)
    engine = engines(batch=1, window=0.0)
    running = services(engine)
    body = json.dumps({"prompt": "a whale", "n": 3, "stream": stream}).encode()
    head = f"Host: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", running.port)) as gone:
        gone.sendall(b"POST /v1/images/generations HTTP/1.1\r\n" + head.encode() + body)
        until(lambda: engine.waiting == 2)
    until(lambda: engine.waiting == 0)
    opened_again.set()
    until(lambda: engine.running == 0)
    assert b'outcome="Cancelled"} 3.0' in running.service.metrics.text()


def hold(monkeypatch: pytest.MonkeyPatch) -> Flag:
    """Holds up what is drawn until the flag is set."""
    draw, flag = Painter.draw, Flag()
    monkeypatch.setattr(Painter, "draw", lambda *arguments: (flag.wait(30), draw(*arguments))[1])
    return flag


def until(condition: Callable[[], bool]) -> None:
    """Wait for what another thread does."""
    begin = time.monotonic()
    while not condition():
        assert time.monotonic() < begin + 30
        time.sleep(0.01)
