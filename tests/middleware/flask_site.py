"""A Flask application for gunicorn: SITE_STORE and SITE_POLICY say where and what it counts."""

from __future__ import annotations

import os
import time
import uuid

from flask import Flask, Response, request

from shield import Policy
from shield.middleware import cost, current, exempt, limit
from shield.middleware.wsgi import ShieldMiddleware

app = Flask(__name__)
shield = ShieldMiddleware(
    app.wsgi_app, Policy.parse(os.environ["SITE_POLICY"]), store=os.environ["SITE_STORE"], gateway=True
)
app.wsgi_app = shield


@app.get("/up")
@exempt
def up():
    return "up"


@app.get("/")
def plain():
    return "hello"


@app.get("/caf\u00e9/<name>")
def cafe(name):
    return name


@app.post("/echo")
def echo():
    return str(len(request.get_data()))


@app.post("/lines")
def lines():
    return str(sum(len(line) for line in request.stream))


@app.get("/stream")
def stream():
    return Response((b"x" * 1000 for _ in range(3)), content_type="text/plain")


@app.get("/broken")
def broken():
    def parts():
        yield b"x"
        raise RuntimeError("in the middle")

    return Response(parts(), content_type="text/plain")


@app.get("/fails")
def fails():
    raise RuntimeError("the handler's own")


@app.post("/write")
def write():
    time.sleep(0.05)
    return {"number": uuid.uuid4().hex}, 201


@app.get("/slow")
def slow():
    time.sleep(0.4)
    return "slow"


@app.get("/costly")
@cost(40)
def costly():
    current().cost = 10
    return "dear"


@app.get("/limited")
@limit("2/h", key="ip")
def limited():
    return "limited"
