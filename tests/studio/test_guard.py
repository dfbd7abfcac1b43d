"""Who may ask, from where, how much and how slowly: raw requests at the socket."""

import gzip
import json
import socket
import time
from collections.abc import Callable

import httpx2
import pytest

from anystep.studio import server

from .conftest import Running

Services = Callable[..., Running]
KEY, OTHER = "a-key-that-nobody-guesses", "another-key-of-someone"
JSON = {"Content-Type": "application/json"}


def asked(running: Running, method: str = "GET", path: str = "/v1/models", **options: object) -> httpx2.Response:
    return httpx2.request(method, running.url + path, timeout=30, **options)  # type: ignore[arg-type]


def reason(response: httpx2.Response) -> str:
    """The message, of what must be a JSON reason in one line."""
    message = response.json()["error"]["message"]
    assert message
    assert "\n" not in message
    return str(message)


@pytest.mark.parametrize("key", [None, "", "Bearer", f"Bearer {KEY}x", f"Basic {KEY}", "Bearer é".encode()], ids=str)
def test_without_a_right_key_nothing_but_health_is_told(services: Services, key: object) -> None:
    running = services(keys=[KEY, OTHER])
    headers = {} if key is None else {"Authorization": key}
    for path in ("/v1/models", "/metrics", "/openapi.json", "/nothing"):
        assert asked(running, path=path, headers=headers).status_code == 401
    assert asked(running, "POST", "/v1/images/generations", headers=headers, json={"prompt": "x"}).status_code == 401
    for path in ("/healthz", "/readyz"):
        assert asked(running, path=path, headers=headers).status_code == 200
    for right in (KEY, OTHER):
        assert asked(running, headers={"Authorization": f"Bearer {right}"}).status_code == 200


def test_a_page_of_another_server_may_not_ask_unless_it_is_allowed(services: Services) -> None:
    closed, other = services(), {"Origin": "https://example.com"}
    assert asked(closed, headers=other).status_code == 403
    assert asked(closed, headers={"Origin": closed.url}).status_code == 200
    preflight = {**other, "Access-Control-Request-Method": "POST"}
    assert "access-control-allow-origin" not in asked(closed, "OPTIONS", headers=preflight).headers
    opened = services(origins=["https://example.com"])
    assert asked(opened, headers=other).headers["access-control-allow-origin"] == "https://example.com"
    assert asked(opened, headers={"Origin": "https://example.org"}).status_code == 403


def test_a_server_without_keys_is_asked_by_its_own_names_only(services: Services) -> None:
    running = services(hosts=["127.0.0.1", "localhost"])
    assert asked(running, headers={"Host": "rebound.example.com"}).status_code == 403
    assert asked(running, headers={"Host": f"localhost:{running.port}"}).status_code == 200


@pytest.mark.parametrize("header", ["Host", "Origin"])
def test_addresses_that_are_none_are_refused(service: Running, header: str) -> None:
    address = "http://[x" if header == "Origin" else "["
    answer = asked(service, headers={header: address})
    assert answer.status_code == 400
    assert reason(answer).endswith("no address")


def test_head_is_answered_wherever_get_is_and_has_no_body(service: Running) -> None:
    for path in ("/v1/models", "/healthz", "/metrics"):
        answer = raw(service, f"HEAD {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert answer.endswith(b"\r\n\r\n")
    assert asked(service, "HEAD", "/v1/images/generations").status_code == 405


def test_a_compressed_body_is_refused_as_such(service: Running) -> None:
    headers = {**JSON, "Content-Encoding": "gzip"}
    answer = asked(service, "POST", "/v1/images/generations", content=gzip.compress(b"{}"), headers=headers)
    assert answer.status_code == 415
    assert reason(answer) == "content encoding gzip: expected none"


@pytest.mark.parametrize(
    ("content", "kind", "status"),
    [
        (b"", "application/json", 400),
        (b"{", "application/json", 400),
        (b"[]", "application/json", 400),
        (b'{"prompt": "\\ud800"}', "application/json", 400),
        (b'{"prompt": "x", "guidance": NaN}', "application/json", 400),
        (b'{"prompt": "x", "guidance": 1e999}', "application/json", 400),
        (b'{"prompt": ' + b"[" * 10_000, "application/json", 400),
        (b"\xff\xfe", "application/json", 400),
        (b'{"prompt": "x"}', "text/plain", 415),
        (b'{"prompt": "x"}', "", 415),
        (b" " * (2**20 + 1), "application/json", 413),
    ],
    ids=["empty", "open", "list", "surrogate", "nan", "huge", "deep", "bytes", "text", "none", "large"],
)
def test_malformed_bodies_are_refused(service: Running, content: bytes, kind: str, status: int) -> None:
    answer = asked(service, "POST", "/v1/images/generations", content=content, headers={"Content-Type": kind})
    assert answer.status_code == status
    assert reason(answer)


@pytest.mark.parametrize(
    "content", [b"", b"--x", b'--x\r\nContent-Disposition: form-data; name="image"\r\n\r\n'], ids=str
)
def test_malformed_forms_are_refused(service: Running, content: bytes) -> None:
    kind = {"Content-Type": "multipart/form-data; boundary=x"}
    answer = asked(service, "POST", "/v1/images/edits", content=content, headers=kind)
    assert answer.status_code == 400
    assert reason(answer)


@pytest.mark.parametrize(
    "path", ["/../etc/passwd", "/v1/models/../../etc/passwd", "/v1/models/%2e%2e%2fx", "/%00", "/x"]
)
def test_there_is_nothing_at_other_paths(service: Running, path: str) -> None:
    answer = raw(service, f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
    assert answer.startswith((b"HTTP/1.1 404", b"HTTP/1.1 400"))
    assert b"root:" not in answer


def test_a_body_that_grows_beyond_the_limit_is_cut_off(service: Running) -> None:
    def endless() -> object:
        while True:
            yield b" " * 65536

    try:
        answer = asked(service, "POST", "/v1/images/generations", content=endless(), headers=JSON)
        assert answer.status_code == 413
    except httpx2.TransportError:  # it was closed while we were sending
        pass
    assert asked(service).status_code == 200


def test_who_sends_slowly_is_told_and_does_not_hold_up_others(services: Services) -> None:
    running = services(seconds=0.5)
    with socket.create_connection(("127.0.0.1", running.port)) as slow:
        slow.sendall(b"POST /v1/images/generations HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n")
        slow.sendall(b"Content-Length: 1000\r\n\r\n{")
        assert asked(running).status_code == 200
        slow.settimeout(20)
        answer = slow.recv(1000)
    assert answer.startswith(b"HTTP/1.1 408")


def test_who_never_ends_the_headers_is_closed(services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "HEADER_SECONDS", 0.3)
    running = services()
    for sent in (b"", b"GET / HT", b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\nGET /hea"):
        with socket.create_connection(("127.0.0.1", running.port)) as silent:
            silent.settimeout(20)
            silent.sendall(sent)
            while silent.recv(1000):
                pass


def test_who_takes_the_answer_slowly_does_not_hold_up_others(services: Services) -> None:
    running = services(seconds=0.5)
    body = json.dumps({"prompt": "a whale", "stream": True, "steps": 100, "n": 10}).encode()
    with socket.socket() as lazy:
        lazy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        lazy.connect(("127.0.0.1", running.port))
        head = f"POST /v1/images/generations HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n".encode()
        lazy.sendall(head + b"Content-Type: application/json\r\n\r\n" + body)
        for _ in range(3):
            begin = time.monotonic()
            assert asked(running).status_code == 200
            assert time.monotonic() - begin < 20
    running.service.engine.drain(60.0)
    assert running.service.engine.running == 0


def test_no_path_is_read_from_what_is_asked(service: Running) -> None:
    for model in ("/etc/passwd", "../tiny", "tiny/../tiny", "\0"):
        body = {"prompt": "a whale", "model": model}
        answer = asked(service, "POST", "/v1/images/generations", json=body)
        assert answer.status_code == 404
        assert reason(answer).startswith("unknown model")


def raw(running: Running, sent: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", running.port)) as connection:
        connection.settimeout(20)
        connection.sendall(sent)
        received = b""
        while part := connection.recv(65536):
            received += part
    return received
