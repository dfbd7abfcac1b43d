"""What every request passes before the app sees it: who may ask, from where, how much, and how slowly."""

import asyncio
import hashlib
import hmac
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from urllib.parse import SplitResult, urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from anystep.bounds import shown
from anystep.studio.answers import Refusal

OPEN = ("/healthz", "/readyz")  # asked by what starts and stops servers, without a key
LOOPBACK = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class GuardOptions:
    """Who may ask what.

    Attributes:
        keys: API keys, of which each request must have one; none is asked for where there are none.
        hosts: names under which the server may be asked; empty: any. It keeps pages of others from reaching a server
            without keys through a name of theirs (DNS rebinding).
        origins: web pages beside those of the server itself that may ask, as browsers name them: `https://host`, with a
            port that is not the usual one.
        body: most bytes of a request.
        seconds: for a request's body to come, and for each part of an answer to be taken.
    """

    keys: Sequence[str] = ()
    hosts: Sequence[str] = ()
    origins: Sequence[str] = ()
    body: int = 20 * 2**20
    seconds: float = 30.0
    digests: tuple[bytes, ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "digests", tuple(_digest(key) for key in self.keys))


class Guard:
    """An ASGI middleware that answers for the app what the app must not see."""

    def __init__(self, app: ASGIApp, options: GuardOptions) -> None:
        self.app, self.options = app, options

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        if scope["type"] != "http":
            return await send({"type": "websocket.close", "code": 1008})
        try:
            scope.setdefault("state", {})["user"] = self._check(scope, Headers(scope=scope))
        except Refusal as refused:
            return await refused.response()(scope, receive, send)
        if scope["method"] == "HEAD":  # an answer to wherever GET has one; the server leaves its body out
            scope = {**scope, "method": "GET"}
        await self.app(scope, self._bounded(receive), self._patient(send))

    def _check(self, scope: Scope, headers: Headers) -> str:
        """Whose request it is: its key, or else where it comes from."""
        options, host = self.options, _address(f"//{headers.get('host', '')}", "host")
        if options.hosts and host.hostname not in options.hosts:
            raise Refusal(403, f"host {shown(headers.get('host', ''))}: this server is asked as {options.hosts[0]}")
        origin = headers.get("origin")
        if origin is not None and origin not in options.origins and _address(origin, "origin").netloc != host.netloc:
            raise Refusal(403, f"origin {shown(origin)}: pages of other servers may not ask; --allow-origin lets one")
        user = (scope.get("client") or ("",))[0]
        if options.keys and scope["path"] not in OPEN:
            user = self._user(headers.get("authorization", ""))
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length[:20]) > options.body:
            raise Refusal(413, f"a body of {length[:20]} bytes: expected at most {options.body:,}")
        return user

    def _user(self, authorization: str) -> str:
        """The digest of the key. All keys are compared, each in the same time, so that time tells nothing of them."""
        scheme, _, key = authorization.partition(" ")
        given = _digest(key.strip())
        known = [hmac.compare_digest(given, digest) for digest in self.options.digests]
        if scheme.lower() != "bearer" or not any(known):
            message = "expected a valid API key in the header Authorization: Bearer KEY"
            raise Refusal(401, message, headers={"WWW-Authenticate": "Bearer"})
        return given.hex()

    def _bounded(self, receive: Receive) -> Receive:
        """Receive no more than the most bytes, and wait for them no longer than the time there is."""
        begin, taken, whole = asyncio.get_running_loop().time(), 0, False

        async def bounded() -> Message:
            nonlocal taken, whole
            if whole:  # what may still come is that the client has gone
                return await receive()
            left = begin + self.options.seconds - asyncio.get_running_loop().time()
            try:
                message = await asyncio.wait_for(receive(), max(left, 0.001))
            except TimeoutError:
                late = f"the body did not come within {self.options.seconds:g} seconds"
                raise Refusal(408, late, headers={"Connection": "close"}) from None
            taken += len(message.get("body", b""))
            whole = not message.get("more_body", False)
            if taken > self.options.body:
                too_large = f"a body of more than {self.options.body:,} bytes"
                raise Refusal(413, too_large, headers={"Connection": "close"})
            return message

        return bounded

    def _patient(self, send: Send) -> Send:
        """Send, but give up a client that does not take what it is sent."""

        async def patient(message: Message) -> None:
            await asyncio.wait_for(send(message), self.options.seconds)

        return patient


def _address(url: str, header: str) -> SplitResult:
    try:
        return urlsplit(url)
    except ValueError:  # brackets that hold no IPv6 address
        raise Refusal(400, f"{header} {shown(url.removeprefix('//'))}: no address") from None


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()


def served_hosts(host: str, keys: Iterable[str]) -> list[str]:
    """The names under which a server may be asked: those of this machine where no key protects it."""
    return [] if list(keys) else [*dict.fromkeys((host, *LOOPBACK))]
