"""A web server for one person: the page of a run, on this machine only.

What a browser asks for names a step, a row and a column, never a file. Requests for another host
are refused, so that no page elsewhere can read it by a name that leads here.
"""

from __future__ import annotations

import errno
import json
import re
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock
from typing import Any

from jinja2 import Environment

from fewstep.report.live import LiveRun, page, parts
from fewstep.report.page import environment
from fewstep.utils.errors import FewstepError

HOST = "127.0.0.1"
_PICTURE = re.compile(r"/preview/(\d{1,9})/(\d{1,3})/(\d{1,3})")
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; img-src 'self' data:; connect-src 'self'; "
    "style-src 'unsafe-inline'; script-src 'self'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


def server(run: LiveRun, port: int) -> ThreadingHTTPServer:
    """A server that listens, and answers once its `serve_forever` runs.

    Args:
        run: What to show.
        port: Of this machine; 0 takes a free one.

    Raises:
        FewstepError: The port is in use, or may not be used.
    """
    try:
        made = ThreadingHTTPServer((HOST, port), partial(_Handler, run, environment(), Lock()))
    except (OSError, OverflowError) as error:
        busy = getattr(error, "errno", None) == errno.EADDRINUSE
        raise FewstepError(
            f"watch: port {port} {'is in use' if busy else 'cannot be used'}; "
            "give --port another one, or --port 0 for any that is free",
            code="no-access",
        ) from error
    made.daemon_threads = True
    return made


class _Handler(BaseHTTPRequestHandler):
    """Answers one request; looks at the run are made one at a time."""

    def __init__(self, run: LiveRun, templates: Environment, lock: Lock, *arguments: Any) -> None:
        self._run, self._templates, self._lock = run, templates, lock
        super().__init__(*arguments)

    def do_GET(self) -> None:
        """The page, what changes on it, or a picture."""
        if re.sub(r":\d+$", "", self.headers.get("Host", "")) not in (HOST, "localhost"):
            self._answer("text/plain", b"this page is for this machine only", HTTPStatus.FORBIDDEN)
            return
        path = self.path.partition("?")[0]
        with self._lock:
            if path == "/":
                self._answer("text/html; charset=utf-8", page(self._templates, self._run).encode())
            elif path == "/live":
                content = json.dumps(parts(self._templates, self._run))
                self._answer("application/json", content.encode())
            elif path == "/watch.js":
                script = self._templates.get_template("watch.js").render()
                self._answer("text/javascript; charset=utf-8", script.encode())
            elif (asked := _PICTURE.fullmatch(path)) and (
                picture := self._run.picture(*map(int, asked.groups()))
            ):
                self._answer("image/png", picture)
            else:
                self._answer("text/plain", b"there is no such page", HTTPStatus.NOT_FOUND)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Says nothing."""

    def _answer(self, kind: str, content: bytes, status: HTTPStatus = HTTPStatus.OK) -> None:
        try:
            self.send_response(status)
            for name, value in {"Content-Type": kind, **_HEADERS}.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)
        except ConnectionError:  # the browser has gone
            pass
