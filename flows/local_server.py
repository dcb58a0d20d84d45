"""Serves pages to the person who started a command, and to nobody else."""

import logging
import secrets
import socket
import threading
import webbrowser
from collections.abc import Callable, Sequence
from contextlib import suppress

import uvicorn
from botocore.exceptions import BotoCoreError
from starlette.applications import Starlette
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tasks.errors import DedupError, StorageError, UnreadableImageError

logger = logging.getLogger(__name__)

LOOPBACK = "127.0.0.1"

PAGE_POLICY = "; ".join(
    [
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data: blob:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    ]
)

_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": PAGE_POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
_METHODS_THAT_CHANGE_NOTHING = ("GET", "HEAD")


class LocalServer:
    """A server on the loopback interface whose pages need the token of this very start."""

    def __init__(self, routes: Sequence[Route], port: int) -> None:
        """Take a port.

        Args:
            routes: What is served; anything but GET and HEAD is checked for its origin.
            port: Where, 0 for a free one.

        Raises:
            StorageError: Somebody else has the port, or this user may not take it.
        """
        self._socket = _listen(port)
        self.port: int = self._socket.getsockname()[1]
        token = secrets.token_urlsafe(32)
        self.url = f"http://{LOOPBACK}:{self.port}/?token={token}"
        pages = Starlette(
            # Browsers ask for an icon by themselves, and would report that there is none.
            routes=[Route("/favicon.ico", lambda _: Response(status_code=204)), *routes],
            exception_handlers={
                FileNotFoundError: _answer(404),
                UnreadableImageError: _answer(415),
                DedupError: _answer(502),
                OSError: _answer(502),
                BotoCoreError: _answer(502),
            },
        )
        self._server = uvicorn.Server(
            uvicorn.Config(
                _Guard(pages, token, self.port),
                lifespan="off",
                ws="none",
                # Its lines would carry the token.
                access_log=False,
                log_config=None,
                proxy_headers=False,
                server_header=False,
                timeout_graceful_shutdown=3,
            )
        )

    def run(self) -> None:
        """Serve until `stop` or Ctrl-C."""
        with suppress(KeyboardInterrupt):
            self._server.run(sockets=[self._socket])

    def stop(self) -> None:
        """Answer what has been asked, then end `run`."""
        self._server.should_exit = True

    def open_browser(self) -> None:
        """Show the page in the user's browser, if there is one."""
        # A browser for terminals would come back only when its user leaves it.
        threading.Thread(target=webbrowser.open, args=[self.url], daemon=True).start()


async def read_body(request: Request, max_bytes: int) -> bytes:
    """Read what a request carries, and no more than that.

    Raises:
        HTTPException: 413, it carries more.
    """
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > max_bytes:
            raise HTTPException(413, f"at most {max_bytes:,} bytes are taken")
    return bytes(body)


class _Guard:
    """Turns away whoever does not come from a page of this server with its token."""

    def __init__(self, pages: ASGIApp, token: str, port: int) -> None:
        self._pages, self._token = pages, token
        # Cookies know no ports: two servers at a time need two names.
        self._cookie = f"dedup_{port}"
        self._hosts = (f"{LOOPBACK}:{port}", f"localhost:{port}")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        answer = self._answer(Request(scope)) or self._pages
        await answer(scope, receive, send_with_headers)

    def _answer(self, request: Request) -> Response | None:
        hosts = request.headers.getlist("host")
        # A page of the web may give its own name to this address, but not our name to itself.
        if len(hosts) != 1 or hosts[0].lower() not in self._hosts:
            return _refusal("this server is known by another name")
        token = request.query_params.get("token")
        if token is not None and request.url.path == "/" and self._is_token(token):
            return self._with_cookie(request.headers.get("sec-fetch-site") == "cross-site")
        if not self._is_token(request.cookies.get(self._cookie, "")):
            return _refusal("open the address that the command has printed")
        is_from_here = request.headers.getlist("origin") == [f"http://{hosts[0].lower()}"]
        if request.method not in _METHODS_THAT_CHANGE_NOTHING and not is_from_here:
            return _refusal("only a page of this server may ask for that")
        return None

    def _is_token(self, said: str) -> bool:
        return secrets.compare_digest(said.encode(), self._token.encode())

    def _with_cookie(self, is_from_elsewhere: bool) -> Response:
        # So the token stays neither in the address bar nor in the history.
        response: Response = RedirectResponse("/", status_code=303)
        if is_from_elsewhere:
            # A strict cookie is not sent along a redirect that began with a link on another site,
            # such as a terminal in the browser. From here on it is this site that goes on.
            response = Response(headers={"Refresh": "0; url=/"})
        response.set_cookie(self._cookie, self._token, httponly=True, samesite="strict", path="/")
        return response


def _refusal(why: str) -> Response:
    return PlainTextResponse(f"{why}\n", status_code=403)


def _answer(status: int) -> Callable[[Request, Exception], Response]:
    def handle(_: Request, error: Exception) -> Response:
        if status >= 500:
            logger.warning("%s: %s", type(error).__name__, error)
        return PlainTextResponse(f"{error}\n", status_code=status)

    return handle


def _listen(port: int) -> socket.socket:
    try:
        return socket.create_server((LOOPBACK, port))
    except OSError as error:
        raise StorageError(f"cannot listen on port {port}: {error.strerror}") from None
