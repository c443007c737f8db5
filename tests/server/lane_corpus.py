"""Bytes that servers and proxies have read in different ways: what request smuggling is made of, and plain odd input.

Each entry is what follows on a connection after well-formed requests. Names say what is odd about it.
"""

from __future__ import annotations

BODY = b'{"ip":"203.0.113.7"}'
LENGTH = b"Content-Length: %d\r\n" % len(BODY)
LINE = b"POST /v1/check HTTP/1.1\r\n"
HOST = b"Host: shield\r\n"
NEXT = b"GET /v1/authz HTTP/1.1\r\nHost: shield\r\nX-Smuggled: 1\r\n\r\n"
CHUNKED = b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY)


def post(*fields: bytes, body: bytes = BODY, line: bytes = LINE) -> bytes:
    """A request of these fields, each with its line end."""
    return line + b"".join(fields) + b"\r\n" + body


CORPUS: dict[str, bytes] = {
    # Who says how long a body is?
    "cl-te": post(HOST, LENGTH, b"Transfer-Encoding: chunked\r\n", body=b"0\r\n\r\n" + NEXT),
    "te-cl": post(HOST, b"Transfer-Encoding: chunked\r\n", b"Content-Length: 4\r\n", body=CHUNKED + NEXT),
    "te-alone": post(HOST, b"Transfer-Encoding: chunked\r\n", body=CHUNKED) + NEXT,
    "te-trailers": post(
        HOST,
        b"Transfer-Encoding: chunked\r\nTrailer: X-T\r\n",
        body=CHUNKED[:-2] + b"X-T: 1\r\nContent-Length: 9\r\n\r\n",
    )
    + NEXT,
    "te-extension": post(HOST, b"Transfer-Encoding: chunked\r\n", body=b"14;a=b\r\n" + BODY + b"\r\n0;x\r\n\r\n")
    + NEXT,
    "te-te": post(HOST, b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n", body=CHUNKED) + NEXT,
    "te-list": post(HOST, b"Transfer-Encoding: gzip, chunked\r\n", body=CHUNKED) + NEXT,
    "te-odd-name": post(HOST, LENGTH, b"Transfer_Encoding: chunked\r\n") + NEXT,
    "te-space": post(HOST, LENGTH, b"Transfer-Encoding : chunked\r\n") + NEXT,
    "te-tab": post(HOST, b"Transfer-Encoding:\tchunked\r\n", body=CHUNKED) + NEXT,
    "te-vertical-tab": post(HOST, LENGTH, b"Transfer-Encoding: \x0bchunked\r\n") + NEXT,
    "te-upper": post(HOST, b"TRANSFER-ENCODING: CHUNKED\r\n", body=CHUNKED) + NEXT,
    "te-not-chunked": post(HOST, LENGTH, b"Transfer-Encoding: xchunked\r\n") + NEXT,
    "te-folded": post(HOST, LENGTH, b"X: y\r\n Transfer-Encoding: chunked\r\n") + NEXT,
    "te-after-bare-lf": post(HOST, LENGTH, b"X: y\nTransfer-Encoding: chunked\r\n") + NEXT,
    "te-after-bare-cr": post(HOST, LENGTH, b"X: y\rTransfer-Encoding: chunked\r\n") + NEXT,
    "chunk-size-hex": post(HOST, b"Transfer-Encoding: chunked\r\n", body=b"0x14\r\n" + BODY + b"\r\n0\r\n\r\n"),
    "chunk-size-huge": post(HOST, b"Transfer-Encoding: chunked\r\n", body=b"f" * 40 + b"\r\n" + BODY),
    "chunk-bare-lf": post(HOST, b"Transfer-Encoding: chunked\r\n", body=b"14\n" + BODY + b"\n0\n\n"),
    "cl-cl-same": post(HOST, LENGTH, LENGTH) + NEXT,
    "cl-cl-other": post(HOST, LENGTH, b"Content-Length: 0\r\n") + NEXT,
    "cl-list": post(HOST, b"Content-Length: 20, 20\r\n") + NEXT,
    "cl-plus": post(HOST, b"Content-Length: +20\r\n") + NEXT,
    "cl-minus": post(HOST, b"Content-Length: -20\r\n") + NEXT,
    "cl-space": post(HOST, b"Content-Length : 20\r\n") + NEXT,
    "cl-spaces": post(HOST, b"Content-Length:   20  \r\n") + NEXT,
    "cl-tab": post(HOST, b"Content-Length:\t20\t\r\n") + NEXT,
    "cl-no-space": post(HOST, b"Content-Length:20\r\n") + NEXT,
    "cl-zeros": post(HOST, b"Content-Length: 0020\r\n") + NEXT,
    "cl-hex": post(HOST, b"Content-Length: 0x14\r\n") + NEXT,
    "cl-decimal": post(HOST, b"Content-Length: 20.0\r\n") + NEXT,
    "cl-underscore": post(HOST, b"Content-Length: 2_0\r\n") + NEXT,
    "cl-empty": post(HOST, b"Content-Length:\r\n") + NEXT,
    "cl-inner-space": post(HOST, b"Content-Length: 2 0\r\n") + NEXT,
    "cl-huge": post(HOST, b"Content-Length: 18446744073709551636\r\n") + NEXT,
    "cl-arabic": post(HOST, "Content-Length: ٢٠\r\n".encode()) + NEXT,
    "cl-odd-name": post(HOST, b"Content_Length: 20\r\n") + NEXT,
    "cl-folded": post(HOST, b"Content-Length:\r\n 20\r\n") + NEXT,
    "cl-of-get": post(HOST, LENGTH, line=b"GET /v1/authz HTTP/1.1\r\n") + NEXT,
    "cl-missing": post(HOST) + NEXT,
    "body-short": post(HOST, b"Content-Length: 99\r\n"),
    "body-long": post(HOST, b"Content-Length: 5\r\n") + NEXT,
    "body-none": post(HOST, LENGTH, body=b"") + NEXT,
    # Where does a line end, and a name?
    "obs-fold": post(HOST, LENGTH, b"X-A: a\r\n b\r\n") + NEXT,
    "obs-fold-tab": post(HOST, LENGTH, b"X-A: a\r\n\tb\r\n") + NEXT,
    "obs-fold-first": post(b" X: y\r\n", HOST, LENGTH) + NEXT,
    "bare-lf": post(HOST, LENGTH).replace(b"\r\n", b"\n") + NEXT,
    "bare-lf-line": post(HOST, LENGTH).replace(b"\r\n", b"\n", 1) + NEXT,
    "bare-lf-end": post(HOST, LENGTH[:-2] + b"\r\n\n", body=b"") + BODY + NEXT,
    "bare-lf-between-fields": post(HOST, LENGTH, b"X-A: a\nX-B: b\r\n") + NEXT,
    "bare-lf-after-length": post(HOST, LENGTH[:-2] + b"\n", b"X-B: b\r\n") + NEXT,
    "bare-cr-between-fields": post(HOST, LENGTH, b"X-A: a\rX-B: b\r\n") + NEXT,
    "bare-cr": post(HOST, LENGTH).replace(b"\r\n", b"\r", 1) + NEXT,
    "bare-cr-in-value": post(HOST, LENGTH, b"X-A: a\rb\r\n") + NEXT,
    "cr-cr-lf": post(HOST, LENGTH, b"X-A: a\r\r\n") + NEXT,
    "lf-cr": post(HOST, LENGTH, b"X-A: a\n\r") + NEXT,
    "nul-in-value": post(HOST, LENGTH, b"X-A: a\0b\r\n") + NEXT,
    "nul-in-name": post(HOST, LENGTH, b"X\0A: b\r\n") + NEXT,
    "delete-in-value": post(HOST, LENGTH, b"X-A: a\x7fb\r\n") + NEXT,
    "escape-in-value": post(HOST, LENGTH, b"X-A: \x1b[1m\r\n") + NEXT,
    "obs-text": post(HOST, LENGTH, b"X-A: \xe9\xff\r\n") + NEXT,
    "obs-text-in-name": post(HOST, LENGTH, b"X-\xe9: a\r\n") + NEXT,
    "name-space": post(HOST, LENGTH, b"X A: b\r\n") + NEXT,
    "name-empty": post(HOST, LENGTH, b": b\r\n") + NEXT,
    "name-missing": post(HOST, LENGTH, b"X-A\r\n") + NEXT,
    "name-quoted": post(HOST, LENGTH, b'"X": b\r\n') + NEXT,
    "value-empty": post(HOST, LENGTH, b"X-A:\r\n") + NEXT,
    "value-spaces": post(HOST, LENGTH, b"X-A: \t \r\n") + NEXT,
    "no-fields": LINE + b"\r\n" + NEXT,
    "leading-crlf": b"\r\n" + post(HOST, LENGTH) + NEXT,
    "leading-lf": b"\n" + post(HOST, LENGTH) + NEXT,
    "leading-spaces": b"  " + post(HOST, LENGTH) + NEXT,
    "trailing-crlf": post(HOST, LENGTH) + b"\r\n" + NEXT,
    # The request line.
    "line-two-spaces": post(HOST, LENGTH, line=b"POST  /v1/check HTTP/1.1\r\n") + NEXT,
    "line-tab": post(HOST, LENGTH, line=b"POST\t/v1/check\tHTTP/1.1\r\n") + NEXT,
    "line-trailing-space": post(HOST, LENGTH, line=b"POST /v1/check HTTP/1.1 \r\n") + NEXT,
    "line-space-in-target": post(HOST, LENGTH, line=b"POST /v1/check /x HTTP/1.1\r\n") + NEXT,
    "line-no-version": post(HOST, LENGTH, line=b"POST /v1/check\r\n") + NEXT,
    "line-lower-version": post(HOST, LENGTH, line=b"POST /v1/check http/1.1\r\n") + NEXT,
    "line-version-10": post(HOST, LENGTH, line=b"POST /v1/check HTTP/1.0\r\n") + NEXT,
    "line-version-10-kept": post(HOST, LENGTH, b"Connection: keep-alive\r\n", line=b"POST /v1/check HTTP/1.0\r\n")
    + NEXT,
    "line-version-09": b"GET /v1/authz\r\n" + NEXT,
    "line-version-12": post(HOST, LENGTH, line=b"POST /v1/check HTTP/1.2\r\n") + NEXT,
    "line-version-20": post(HOST, LENGTH, line=b"POST /v1/check HTTP/2.0\r\n") + NEXT,
    "line-version-long": post(HOST, LENGTH, line=b"POST /v1/check HTTP/1.10\r\n") + NEXT,
    "method-lower": post(HOST, LENGTH, line=b"post /v1/check HTTP/1.1\r\n") + NEXT,
    "method-unknown": post(HOST, LENGTH, line=b"POSTS /v1/check HTTP/1.1\r\n") + NEXT,
    "method-other": post(HOST, LENGTH, line=b"PROPFIND /v1/authz HTTP/1.1\r\n") + NEXT,
    "method-of-check": post(HOST, LENGTH, line=b"PUT /v1/check HTTP/1.1\r\n") + NEXT,
    "connect": b"CONNECT shield:443 HTTP/1.1\r\nHost: shield:443\r\n\r\n" + NEXT,
    "trace": post(HOST, line=b"TRACE /v1/authz HTTP/1.1\r\n", body=b"") + NEXT,
    "asterisk": b"OPTIONS * HTTP/1.1\r\nHost: shield\r\n\r\n" + NEXT,
    "absolute": post(HOST, LENGTH, line=b"POST http://shield/v1/check HTTP/1.1\r\n") + NEXT,
    "absolute-other": post(HOST, LENGTH, line=b"POST http://evil/v1/check HTTP/1.1\r\n") + NEXT,
    "target-no-slash": post(HOST, LENGTH, line=b"POST v1/check HTTP/1.1\r\n") + NEXT,
    "target-two-slashes": post(HOST, LENGTH, line=b"POST //v1/check HTTP/1.1\r\n") + NEXT,
    "target-dots": post(HOST, LENGTH, line=b"POST /v1/../v1/check HTTP/1.1\r\n") + NEXT,
    "target-encoded": post(HOST, LENGTH, line=b"POST /v1%2fcheck HTTP/1.1\r\n") + NEXT,
    "target-semicolon": post(HOST, LENGTH, line=b"POST /v1/check;x HTTP/1.1\r\n") + NEXT,
    "target-fragment": post(HOST, LENGTH, line=b"POST /v1/check#x HTTP/1.1\r\n") + NEXT,
    "target-obs-text": post(HOST, LENGTH, line=b"POST /v1/check?\xe9 HTTP/1.1\r\n") + NEXT,
    "target-nul": post(HOST, LENGTH, line=b"POST /v1/check\0 HTTP/1.1\r\n") + NEXT,
    "target-odd": post(HOST, line=b'GET /v1/authz/envoy/"<>[]\\^`{|} HTTP/1.1\r\n', body=b"") + NEXT,
    "target-long": post(HOST, LENGTH, line=b"POST /v1/check?" + b"a" * 16_400 + b" HTTP/1.1\r\n") + NEXT,
    # Fields that change what a connection is, or must be there once.
    "host-missing": post(LENGTH) + NEXT,
    "host-twice": post(HOST, HOST, LENGTH) + NEXT,
    "host-empty": post(b"Host:\r\n", LENGTH) + NEXT,
    "host-odd": post(b"Host: a b, c\r\n", LENGTH) + NEXT,
    "expect": post(HOST, LENGTH, b"Expect: 100-continue\r\n") + NEXT,
    "expect-other": post(HOST, LENGTH, b"Expect: the-spanish-inquisition\r\n") + NEXT,
    "upgrade-websocket": post(
        HOST, b"Connection: Upgrade\r\nUpgrade: websocket\r\n", line=b"GET /v1/authz HTTP/1.1\r\n", body=b""
    )
    + NEXT,
    "upgrade-h2c": post(
        HOST,
        b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n",
        line=b"GET /v1/authz HTTP/1.1\r\n",
        body=b"",
    )
    + NEXT,
    "websocket-key": post(HOST, LENGTH, b"Sec-WebSocket-Key1: x\r\n") + NEXT,
    "connection-list": post(HOST, LENGTH, b"Connection: keep-alive, close\r\n") + NEXT,
    "connection-twice": post(HOST, LENGTH, b"Connection: keep-alive\r\nConnection: close\r\n") + NEXT,
    "connection-names": post(HOST, LENGTH, b"Connection: Content-Length\r\n") + NEXT,
    "connection-close": post(HOST, LENGTH, b"Connection: close\r\n"),
    "connection-close-upper": post(HOST, LENGTH, b"CONNECTION: CLOSE\r\n"),
    "connection-empty": post(HOST, LENGTH, b"Connection:\r\n") + NEXT,
    "proxy-connection": post(HOST, LENGTH, b"Proxy-Connection: close\r\n") + NEXT,
    "type-twice": post(HOST, LENGTH, b"Content-Type: a/b\r\nContent-Type: a/b\r\n") + NEXT,
    "agent-twice": post(HOST, LENGTH, b"User-Agent: a\r\nUser-Agent: b\r\n") + NEXT,
    "etag-twice": post(HOST, LENGTH, b"ETag: a\r\nETag: b\r\n") + NEXT,
    "encoding": post(HOST, LENGTH, b"Content-Encoding: gzip\r\n") + NEXT,
    # Bounds.
    "head-1-mb": post(HOST, LENGTH, b"X-A: " + b"a" * 1_048_576 + b"\r\n") + NEXT,
    "head-1-mb-of-fields": post(HOST, LENGTH, *(b"X-%d: %b\r\n" % (i, b"a" * 8_000) for i in range(130))) + NEXT,
    "head-20-kb": post(HOST, LENGTH, *(b"X-%d: %b\r\n" % (i, b"a" * 2_000) for i in range(10))) + NEXT,
    "field-long": post(HOST, LENGTH, b"X-A: " + b"a" * 16_384 + b"\r\n") + NEXT,
    "fields-128": post(HOST, LENGTH, *(b"X-%d: 1\r\n" % i for i in range(126))) + NEXT,
    "fields-129": post(HOST, LENGTH, *(b"X-%d: 1\r\n" % i for i in range(127))) + NEXT,
    "fields-161": post(HOST, LENGTH, *(b"X-%d: 1\r\n" % i for i in range(159))) + NEXT,
    "body-70-kb": post(HOST, b"Content-Length: 70000\r\n", body=b'{"user":"' + b"u" * 69_989 + b'"}') + NEXT,
    "body-too-large": post(HOST, b"Content-Length: 3000000\r\n", body=b"x" * 10),
    # Not HTTP at all.
    "http2-preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0",
    "tls": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(64)),
    "proxy-v1": b"PROXY TCP4 203.0.113.7 127.0.0.1 4711 8080\r\n" + NEXT,
    "proxy-v2": b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x00\x0c" + bytes(12) + NEXT,
    "redis": b"*1\r\n$4\r\nPING\r\n",
    "ssh": b"SSH-2.0-OpenSSH_9.6\r\n",
    "zeros": bytes(300),
    "nothing-but-lines": b"\r\n" * 20,
    "answer": b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n" + NEXT,
}
