"""Server-sent events as an answer that ends with its client."""

import json
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import Any

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

WITHOUT: AbstractAsyncContextManager[Any] = nullcontext()
HEARD = ": waiting\n\n"  # a comment, so that the client learns at once that it is heard


def event_text(name: str, data: Any) -> str:
    """One event as it is sent."""
    return f"event: {name}\ndata: {json.dumps(data, allow_nan=False)}\n\n"


class EventStream(StreamingResponse):
    """Events as they come.

    Args:
        texts: the events.
        context: what is left when the client has gone, or all is sent.
    """

    def __init__(self, texts: AsyncIterator[str], context: AbstractAsyncContextManager[Any] = WITHOUT) -> None:
        self.context = context
        super().__init__(texts, media_type="text/event-stream", headers={"Cache-Control": "no-store"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self.context.__aexit__(None, None, None)
