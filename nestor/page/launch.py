"""The page from its socket to its last visitor: one process, on one address, that asks nobody else for anything."""

from __future__ import annotations

import os
import signal
import socket
import tempfile
import threading
from typing import TYPE_CHECKING

import uvicorn
from fastapi import FastAPI

from nestor.data.decode import quiet

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from nestor.page.view import View

MAX_BYTES = 32_000_000
# The page's own scripts build functions from text, and its pictures are addresses that hold all of themselves; whatever
# would come from another host, or go there, the browser refuses.
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; object-src 'none'; base-uri 'self'"
)


class Server(uvicorn.Server):
    """One process that shows a page until it is told to stop.

    Args:
        view: makes what the page shows.
        name: what the network is called.
        host: address to listen at.
        port: to listen at; 0 for any that is free.

    Raises:
        ImportError: gradio is missing.
        OSError: the address is taken.
    """

    def __init__(self, view: View, name: str, *, host: str = "127.0.0.1", port: int = 7860):
        self.socket = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
        # What visitors upload goes with the process.
        self.folder = tempfile.TemporaryDirectory(prefix="nestor-page-")
        # gradio reads both when it is imported, and takes them in no other way.
        os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_TEMP_DIR": self.folder.name}
        import gradio

        from nestor.page.layout import STYLE, build, theme

        app = gradio.mount_gradio_app(
            FastAPI(openapi_url=None),
            build(view, name),
            "/",
            server_name=host,
            server_port=self.socket.getsockname()[1],
            footer_links=[],
            run_history=False,
            max_file_size=MAX_BYTES,
            ssr_mode=False,
            mcp_server=False,
            pwa=False,
            theme=theme(),
            head=f"<style>{STYLE.read_text(encoding='utf-8')}</style>",
        )
        super().__init__(
            uvicorn.Config(
                _Guarded(app),
                log_level="warning",
                access_log=False,
                server_header=False,
                lifespan="on",
                ws="none",
                timeout_graceful_shutdown=2,
            )
        )

    @property
    def address(self) -> str:
        """Where it listens."""
        host, port = self.socket.getsockname()[:2]
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    def serve_until_told(self) -> None:
        """Show the page until SIGTERM or Ctrl-C."""
        if threading.current_thread() is threading.main_thread():
            # uvicorn stops at it, and raises it again when it is done; the folder is still to be removed then.
            signal.signal(signal.SIGTERM, lambda *_: None)
        with self.folder, quiet():
            self.run(sockets=[self.socket])


class _Guarded:
    """An application whose every answer tells the browser to stay with it."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                own = [(b"content-security-policy", POLICY.encode()), (b"x-content-type-options", b"nosniff")]
                message["headers"] = [*message.get("headers", ()), *own]
            await send(message)

        await self.app(scope, receive, guarded)
