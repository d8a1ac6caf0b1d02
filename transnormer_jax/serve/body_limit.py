"""Limits the size of a request's body before it is parsed."""

from starlette.types import ASGIApp, Message, Receive, Scope, Send


class BodyLimit:
    """ASGI middleware that answers 413 to a body of more than so many bytes."""

    def __init__(self, app: ASGIApp, max_bytes: int, refusal: ASGIApp):
        """Wraps `app`; `refusal` answers in its place."""
        self._app, self._max_bytes, self._refusal = app, max_bytes, refusal

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Reads the body first; then the app has it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        body: list[Message] = []
        size = 0
        while True:
            message = await receive()
            size += len(message.get("body", b""))
            if size > self._max_bytes:
                await self._refusal(scope, receive, send)
                return
            body.append(message)
            if not message.get("more_body"):
                break

        async def again() -> Message:
            return body.pop(0) if body else await receive()

        await self._app(scope, again, send)
