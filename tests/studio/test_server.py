"""`anystep serve` as a process: its address, its end without loss, and clients that survive its death."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from helpers import refused

from anystep.cli.serve import api_keys
from anystep.errors import InputError
from anystep.pipelines.load import Model
from anystep.studio.server import listen, refusing_at_the_end

from .conftest import Running
from .test_images_routes import hold, opened, until


@contextmanager
def serving(model: Path, port: int = 0, *more: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The process and its address."""
    command = [sys.executable, "-m", "anystep", "serve", "--model", str(model), "--port", str(port), *more]
    environment = {name: value for name, value in os.environ.items() if name != "ANYSTEP_API_KEYS"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    try:
        lines = iter(process.stdout.readline, "")
        line = next(each for each in lines if each.startswith("serving "))
        yield process, line.split()[-1]
    finally:
        process.kill()
        process.communicate()


def client(url: str, retries: int = 0) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=retries, timeout=60)


@pytest.mark.slow  # a process that loads a model
def test_at_sigterm_accepted_work_is_answered_and_the_process_ends_well(tiny_model: Path, alone: Model) -> None:
    with serving(tiny_model, 0, "--batch", "2", "--window", "0") as (process, url):
        images = client(url).images
        images.generate(prompt="a whale", extra_body={"steps": 1})
        with ThreadPoolExecutor(6) as clients:
            options = [{"steps": 20, "seed": seed, "guidance": 1} for seed in range(6)]
            begun = [clients.submit(images.generate, prompt="a whale", extra_body=each) for each in options]
            until_waiting(url)
            process.send_signal(signal.SIGTERM)
            answers = [each.result() for each in begun]
        assert process.wait(60) == 0
    for seed, answer in enumerate(answers):
        assert answer.data is not None
        expected = alone("a whale", 20, seed, guidance=1.0)[0]
        assert opened(answer.data[0].b64_json or "").tobytes() == expected.tobytes()


def until_waiting(url: str) -> None:
    """Until all six requests are in the engine."""
    begin = time.monotonic()
    while time.monotonic() < begin + 60:
        lines = httpx2.get(f"{url}/metrics").text.splitlines()
        counts = [float(line.split()[1]) for line in lines if line.startswith(("anystep_queue_len", "anystep_running"))]
        if sum(counts) == 6:
            return
    pytest.fail("the requests did not come")


@pytest.mark.slow
def test_killed_and_started_again_under_load_every_client_gets_its_image(tiny_model: Path, alone: Model) -> None:
    with serving(tiny_model) as (process, url):
        port = int(url.rpartition(":")[2])
        images = client(url, retries=30).images
        done = [0]

        def ask(seed: int) -> bool:
            answer = images.generate(prompt="a whale", extra_body={"steps": 8, "seed": seed, "guidance": 1})
            done[0] += 1
            assert answer.data is not None
            expected = alone("a whale", 8, seed, guidance=1.0)[0]
            return opened(answer.data[0].b64_json or "").tobytes() == expected.tobytes()

        with ThreadPoolExecutor(8) as clients:
            asked = [clients.submit(ask, seed) for seed in range(60)]
            until(lambda: done[0] >= 10)
            process.kill()
            process.wait()
            with serving(tiny_model, port):
                assert all(each.result() for each in asked)


def test_what_is_not_done_when_the_time_to_drain_is_over_is_refused(
    services: Callable[..., Running], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    opened_again = hold(monkeypatch)
    running = services(drain=0.1)
    url, engine = f"{running.url}/v1/images/generations", running.service.engine
    with ThreadPoolExecutor(2) as clients:
        asked = [
            clients.submit(httpx2.post, url, json={"prompt": "a whale", "steps": 1, "stream": stream}, timeout=30)
            for stream in (False, True)
        ]
        until(lambda: engine.waiting + engine.running == 2)
        running.stop()
        plain, stream = [each.result() for each in asked]
    opened_again.set()
    assert (plain.status_code, plain.json()["error"]["code"]) == (503, "shutting_down")
    assert plain.headers["Retry-After"] == "1"
    assert [line for line in stream.text.splitlines() if line.startswith("event")] == ["event: error"]
    assert '"shutting_down"' in stream.text
    assert "Traceback" not in capsys.readouterr().err


def test_what_the_server_cancels_at_its_end_is_refused() -> None:
    sent: list[Any] = []

    async def waits(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.Event().wait()

    async def send(message: Any) -> None:
        sent.append(message)

    async def ended() -> None:
        asked = asyncio.ensure_future(refusing_at_the_end(waits)({"type": "http"}, asyncio.Event().wait, send))  # type: ignore[arg-type]
        await asyncio.sleep(0)
        asked.cancel()
        await asked

    asyncio.run(ended())
    assert (sent[0]["status"], b"shutting_down" in sent[1]["body"]) == (503, True)


@pytest.mark.parametrize(
    ("host", "keys", "message"),
    [
        ("0.0.0.0", "", "is reached by others: set API keys in ANYSTEP_API_KEYS"),
        ("::", "", "is reached by others"),
        ("example.com", "", "is reached by others"),
        ("127.0.0.1", "short", "a key of ANYSTEP_API_KEYS is too short"),
    ],
)
def test_an_address_that_others_reach_takes_keys(
    monkeypatch: pytest.MonkeyPatch, host: str, keys: str, message: str
) -> None:
    monkeypatch.setenv("ANYSTEP_API_KEYS", keys)
    with pytest.raises(InputError, match=message):
        api_keys(host)


def test_keys_are_separated_by_commas_or_spaces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANYSTEP_API_KEYS", f"{'a' * 16},{'b' * 20} {'c' * 16}")
    assert api_keys("0.0.0.0") == ["a" * 16, "b" * 20, "c" * 16]
    monkeypatch.delenv("ANYSTEP_API_KEYS")
    assert api_keys("127.0.0.1") == api_keys("::1") == api_keys("localhost") == []


def test_a_port_that_is_taken_is_told_before_a_model_is_loaded(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ANYSTEP_API_KEYS", raising=False)
    with listen("127.0.0.1", 0) as taken:
        said = refused(capsys, "serve", "--port", str(taken.getsockname()[1]), "--model", "nothing/there")
    assert "cannot be listened on" in said
