"""`anystep studio` as a process, and what it does not do."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import httpx2
import pytest
from helpers import refused
from starlette.testclient import TestClient

from anystep.cli import main
from anystep.cli.studio import on_a_desktop
from anystep.studio.app import Service
from anystep.studio.server import listen


@pytest.mark.slow  # a process that loads a model
def test_it_says_its_address_serves_the_page_beside_the_api_and_ends_at_a_signal(
    tiny_model: Path, tiny_classes: Path, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "anystep", "studio", "--model", str(tiny_model), str(tiny_classes), "--port", "0"]
    process = subprocess.Popen([*command, "--no-open"], stdout=subprocess.PIPE, text=True, cwd=tmp_path)
    assert process.stdout is not None
    try:
        url = next(line for line in process.stdout if "http://" in line).split("at ")[1].split()[0]
        assert "<title>anystep studio</title>" in httpx2.get(url).text
        names = [each["name"] for each in httpx2.get(f"{url}/studio/models").json()]
        assert names == [tiny_model.name, tiny_classes.name]
        assert [each["id"] for each in httpx2.get(f"{url}/v1/models").json()["data"]] == names
        assert httpx2.get(f"{url}/studio/runs").json() == []
        assert httpx2.get(url, headers={"Host": "evil.test"}).status_code == 403
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
        assert list(tmp_path.iterdir()) == []  # the gallery is made with its first picture
    finally:
        process.kill()
        process.communicate()


def test_a_browser_is_opened_on_a_screen_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    assert not on_a_desktop()
    monkeypatch.setitem(os.environ, "DISPLAY", ":0")
    assert on_a_desktop()


def test_the_page_is_used_behind_a_proxy_whose_address_is_allowed(
    tiny_classes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    services: list[Service] = []
    monkeypatch.setattr("anystep.studio.server.serve", lambda service, listener, *_: services.append(service))
    words = ["--model", str(tiny_classes), "--gallery", str(tmp_path / "gallery"), "--device", "cpu", "--port", "0"]
    assert main(["studio", *words, "--no-open", "--allow-origin", "https://studio.example.org"]) == 0
    client = TestClient(services[0].asgi, base_url="http://localhost")
    for origin, code in (("https://studio.example.org", 400), ("https://evil.test", 403)):
        assert client.post("/studio/draw", json={}, headers={"Origin": origin}).status_code == code


def test_a_port_that_is_taken_is_told_before_a_model_is_loaded(capsys: pytest.CaptureFixture[str]) -> None:
    with listen("127.0.0.1", 0) as taken:
        said = refused(capsys, "studio", "--port", str(taken.getsockname()[1]), "--model", "nothing/there")
    assert "cannot be listened on" in said
