"""An HTTP client for odd requests: any path, any field twice, from any loopback address, kept alive."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

Fields = Iterable[tuple[str, str]]


@dataclass(frozen=True)
class Answer:
    """What the client got."""

    status: int
    headers: http.client.HTTPMessage
    body: bytes

    def json(self) -> dict[str, Any]:
        value: dict[str, Any] = json.loads(self.body)
        return value


class Client:
    """One client, known by its source address, on one keep-alive connection, made anew where it was ended."""

    def __init__(self, port: int, source: str) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10, source_address=(source, 0))

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exc: object) -> None:
        self._connection.close()

    def ask(self, path: str = "/", method: str = "GET", fields: Fields = (), body: bytes | None = None) -> Answer:
        """One request with these header fields, in this order. A body gets a Content-Length, unless `fields`
        has one or says that it is chunked."""
        fields = list(fields)
        names = {name.lower() for name, _ in fields}
        connection = self._connection
        connection.putrequest(method, path, skip_host="host" in names, skip_accept_encoding=True)
        for name, value in fields:
            connection.putheader(name, value)
        chunked = "transfer-encoding" in names
        if body is not None and not chunked and "content-length" not in names:
            connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(body, encode_chunked=chunked)
        response = connection.getresponse()
        return Answer(response.status, response.headers, response.read())


def ask(
    port: int,
    source: str,
    path: str = "/",
    method: str = "GET",
    fields: Fields = (),
    body: bytes | None = None,
) -> Answer:
    """One request on a connection of its own."""
    with Client(port, source) as client:
        return client.ask(path, method, fields, body)
