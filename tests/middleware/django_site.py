"""The same in Django, as WSGI (`app`) and as ASGI (`asgi`)."""

from __future__ import annotations

import os

import django
from django.conf import settings
from django.core.asgi import get_asgi_application
from django.core.wsgi import get_wsgi_application
from django.http import HttpResponse, StreamingHttpResponse
from django.urls import path

from shield import Policy
from shield.middleware import cost, current, exempt, limit
from shield.middleware.asgi import ShieldMiddleware as ForASGI
from shield.middleware.wsgi import ShieldMiddleware as ForWSGI

if not settings.configured:
    settings.configure(ROOT_URLCONF=__name__, ALLOWED_HOSTS=["*"], SECRET_KEY="for tests", MIDDLEWARE=[])
    django.setup()


@exempt
def up(request):
    return HttpResponse("up")


def plain(request):
    return HttpResponse("hello")


def echo(request):
    return HttpResponse(str(len(request.body)))


def lines(request):
    return HttpResponse(str(sum(len(line) for line in request)))


def stream(request):
    return StreamingHttpResponse((b"x" * 1000 for _ in range(3)), content_type="text/plain")


def fails(request):
    raise RuntimeError("the handler's own")


@cost(40)
def costly(request):
    current().cost = 10
    return HttpResponse("dear")


@limit("2/h", key="ip")
def limited(request):
    return HttpResponse("limited")


urlpatterns = [
    path("", plain),
    *(path(view.__name__, view) for view in (up, echo, lines, stream, fails, costly, limited)),
]


def policy() -> Policy:
    return Policy.parse(os.environ["SITE_POLICY"])


if "SITE_POLICY" in os.environ:
    app = ForWSGI(get_wsgi_application(), policy(), store=os.environ["SITE_STORE"])
    asgi = ForASGI(get_asgi_application(), policy(), store=os.environ["SITE_STORE"])
