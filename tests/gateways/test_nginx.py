"""What holds behind nginx only."""

from __future__ import annotations

import contextlib
import http.server
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.gateway_processes import Gateway, patient
from tests.gateways.client import Client, ask
from tests.gateways.conftest import need

NewClient = Callable[[], str]


class _Refusing(http.server.BaseHTTPRequestHandler):
    """Refuses as `?deny=403` has it, with the status that the client's path names: "/429"."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """Called by http.server."""
        self.send_response(403)
        if status := self.headers["X-Original-URI"].removeprefix("/"):
            self.send_header("Shield-Status", status)
        self.send_header("Shield-Reason", "made-up")
        self.send_header("RateLimit", '"a";r=0;t=7')
        self.send_header("Retry-After", "7")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Nothing on the test's output."""


@contextlib.contextmanager
def refusing() -> Iterator[int]:
    """The port of a stand-in for Shield that refuses everything."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Refusing) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


def test_every_refusal_is_turned_back_into_its_own_status(new_client: NewClient, tmp_path: Path) -> None:
    """nginx sees 403 each time; the client sees what Shield meant."""
    meant = [400, 401, 403, 404, 409, 413, 415, 422, 429, 503]
    start = need("nginx")
    with refusing() as port, start(tmp_path, port, patient) as gateway:
        answers = {status: ask(gateway.port, new_client(), f"/{status}") for status in meant}
        bare = ask(gateway.port, new_client(), "/")
    for status, answer in answers.items():
        assert (answer.status, answer.json()["status"], answer.json()["reason"]) == (
            status,
            status,
            "made-up",
        )
        assert answer.headers["Content-Type"] == "application/problem+json"
        assert answer.headers["Retry-After"] == "7"
        assert answer.headers.get_all("RateLimit") == ['"a";r=0;t=7']
        assert answer.json()["request_id"] == answer.headers["X-Request-Id"]
    # A refusal without a status, as nginx itself makes them, stays one.
    assert bare.status == 403


def test_a_check_has_no_body_and_no_length(nginx: Gateway, new_client: NewClient) -> None:
    """The same connection serves request after request: no check waits for a body that never comes."""
    json = ("Content-Type", "application/json")
    with Client(nginx.port, new_client()) as client:
        statuses = [
            client.ask("/a", "POST", [json], b"x" * 50_000).status,
            client.ask("/a", "PUT", [json, ("Transfer-Encoding", "chunked")], b"y" * 50_000).status,
            client.ask("/a", "POST", [json, ("Expect", "100-continue")], b"z").status,
        ]
    assert statuses == [200, 200, 200]
