"""A service on an address: what it says when it begins, clients that never end a request, and an end without loss."""

import asyncio
import math
import socket
from collections.abc import Callable
from types import FrameType
from typing import Any

import uvicorn
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from anystep.bounds import cut
from anystep.errors import InputError, first_line
from anystep.studio.answers import refusal
from anystep.studio.app import Service
from anystep.studio.engine import Draining

HEADER_SECONDS = 20.0  # for the first line and the headers of a request
LAST_SECONDS = 1  # for refusals to be sent once there is no more time to drain


class PatientProtocol(H11Protocol):
    """HTTP/1.1 that closes a connection whose next request does not come in time."""

    _watch: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._expect_request()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._expect_request()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._watch is not None:
            self._watch.cancel()
        super().connection_lost(exc)

    def _expect_request(self) -> None:
        if self._watch is not None:
            self._watch.cancel()
        self._watch = self.loop.call_later(HEADER_SECONDS, self._close_silent)

    def _close_silent(self) -> None:
        if (self.cycle is None or self.cycle.response_complete) and not self.transport.is_closing():
            self.transport.close()


class DrainingServer(uvicorn.Server):
    """A server that at SIGTERM or Ctrl-C takes no more connections, and ends when what it has accepted is answered.

    A second signal ends it at once. What is not answered by then is refused.

    Args:
        drain: seconds that accepted requests have after the signal.
        on_start: called with the address when it is answered.
    """

    def __init__(self, service: Service, drain: float, on_start: Callable[[str], None] = lambda address: None) -> None:
        config = uvicorn.Config(
            refusing_at_the_end(service.asgi), http=PatientProtocol, ws="none", lifespan="off", log_level="warning",
            access_log=False, server_header=False, timeout_graceful_shutdown=math.ceil(drain) + LAST_SECONDS,
        )  # fmt: skip
        super().__init__(config)
        self.should_exit = False
        self.service, self.drain, self.on_start = service, drain, on_start

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.service.ready = False
        if self.should_exit:
            self.force_exit = True
        self.should_exit = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for listener in sockets or []:
            host, port, *_ = listener.getsockname()
            self.on_start(f"http://{f'[{host}]' if ':' in host else host}:{port}")

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        ending = asyncio.get_running_loop().call_later(self.drain, self.service.engine.end)
        await super().shutdown(sockets)
        ending.cancel()


def refusing_at_the_end(app: ASGIApp) -> ASGIApp:
    """The app, which refuses as others what the server cancels when it ends, such as a body that is still to come."""

    async def refusing(scope: Scope, receive: Receive, send: Send) -> None:
        begun = False

        async def noted(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await app(scope, receive, noted)
        except asyncio.CancelledError:
            if not begun:
                await refusal(Draining()).response()(scope, receive, send)

    return refusing


def listen(host: str, port: int) -> socket.socket:
    """A socket that is bound to an address. Raises `InputError` where it cannot be."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        return socket.create_server(address[:2], family=family, backlog=1024)
    except (OSError, UnicodeError) as error:
        reason = f"{first_line(error)}; expected an address of this machine and a free port"
        raise InputError(f"--host {cut(host)} --port {port}: cannot be listened on: {reason}") from None


def serve(service: Service, listener: socket.socket, drain: float, on_start: Callable[[str], None]) -> None:
    """Answer at a `listen`ing socket until a signal ends it: see `DrainingServer`."""
    try:
        DrainingServer(service, drain, on_start).run([listener])
    finally:
        service.engine.close()
