"""/metrics, /healthz and /readyz: what Prometheus, an orchestrator and an operator ask of a process."""

import errno
import json
from collections.abc import Callable
from contextlib import suppress
from http.client import HTTPException
from typing import Any
from wsgiref.types import WSGIApplication

import falcon
import gevent
from gevent import socket
from gevent.pywsgi import WSGIHandler, WSGIServer
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from callrec.errors import ConfigError

_BACKLOG = 128
_MOST = 256  # connections at once
_SILENCE = 10.0  # seconds that a peer may let us wait for its next bytes, or for taking ours
_REQUEST = 30.0  # seconds until it has to have sent the whole of a request
Readiness = dict[str, bool]  # what this process needs, by name, and whether it is there


class _Metrics:
    def __init__(self, registry: Callable[[], CollectorRegistry]) -> None:
        self._registry = registry

    def on_get(self, _request: falcon.Request, response: falcon.Response) -> None:
        response.content_type = CONTENT_TYPE_PLAIN_0_0_4
        response.data = generate_latest(self._registry())


class _Alive:
    def on_get(self, _request: falcon.Request, response: falcon.Response) -> None:
        response.text = json.dumps({"status": "ok"})


class _Ready:
    def __init__(self, readiness: Callable[[], Readiness]) -> None:
        self._readiness = readiness

    def on_get(self, _request: falcon.Request, response: falcon.Response) -> None:
        found = self._readiness()
        missing = sorted(name for name, there in found.items() if not there)
        response.status = falcon.HTTP_503 if missing or not found else falcon.HTTP_200
        response.text = json.dumps({"ready": not missing and bool(found), "missing": missing, "checked": sorted(found)})


def app(registry: Callable[[], CollectorRegistry], readiness: Callable[[], Readiness]) -> WSGIApplication:
    """The three pages. /readyz answers 503, naming what is missing, while anything is."""
    pages = falcon.App()
    pages.add_route("/metrics", _Metrics(registry))
    pages.add_route("/healthz", _Alive())
    pages.add_route("/readyz", _Ready(readiness))
    return pages


class _Handler(WSGIHandler):
    """Lets go of a peer that says nothing, or a byte now and then: pywsgi waits for ever."""

    def handle(self) -> None:
        self.socket.settimeout(_SILENCE)
        super().handle()

    def handle_one_request(self) -> Any:
        hangs_up = gevent.spawn_later(_REQUEST, self._hear_no_more, self.socket)
        try:
            return super().handle_one_request()
        finally:
            hangs_up.kill(block=False)

    def read_request(self, raw_requestline: str) -> Any:
        try:
            return super().read_request(raw_requestline)
        except HTTPException as error:  # too many headers: pywsgi prints whatever is no ValueError, with its traceback
            raise ValueError(type(error).__name__) from None

    @staticmethod
    def _hear_no_more(peer: socket.socket) -> None:
        """What is being answered is answered all the same."""
        with suppress(OSError):
            peer.shutdown(socket.SHUT_RD)


def serve(address: tuple[str, int], pages: WSGIApplication) -> WSGIServer:
    """Serve on `address` in the background. ConfigError when it can't be bound."""
    family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    try:
        listener = socket.create_server(address, family=family, backlog=_BACKLOG)
    except OSError as error:
        taken = "Another process has it: choose another. " * (error.errno == errno.EADDRINUSE)
        raise ConfigError(
            f"HTTP can't listen on {address[0]}:{address[1]}",
            detail=(error.strerror or "").partition(" (while")[0],  # the library's repr of the address follows
            hint=f"{taken}See [http] in the configuration, and --http",
        ) from None
    server = WSGIServer(listener, pages, log=None, error_log=None, handler_class=_Handler, spawn=_MOST)
    server.start()
    return server
