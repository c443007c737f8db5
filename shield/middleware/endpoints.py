"""Which handler a request will reach, asked of the framework's own routes before it is decided.

Frameworks are told by their shape and imported only where they are already in use. Whatever goes wrong in there means
that no handler is found, which never makes a request cheaper than the policy says.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, MutableMapping, Sequence
from typing import Any

from shield.middleware.marks import Mark, mark_of

Finder = Callable[[Any], object]
"""From a scope, an environ or an aiohttp request to its handler, or None."""

MAX_NESTING = 32
"""Routes within routes are followed so far: nobody nests deeper on purpose."""


class Endpoints:
    """The marks of one application. `find` is the caller's own way to a handler, where it has one."""

    def __init__(self, app: object, find: Finder | None = None) -> None:
        self._app = app
        self._find = find
        self._seen: tuple[object, int] | None = None
        self._any = False

    def mark_of_scope(self, scope: MutableMapping[str, Any]) -> Mark | None:
        """The mark of the handler that an ASGI scope will reach."""
        if self._find is not None:
            return mark_of(self._find(scope))
        app = scope.get("app", self._app)
        routes = getattr(app, "routes", None)
        if isinstance(routes, list):
            # Looked at again when routes were added: looking takes a while, and few applications mark any.
            if self._seen != (app, len(routes)):
                self._seen, self._any = (app, len(routes)), _any_marked(routes)
            return mark_of(_starlette(routes, scope, 0)) if self._any else None
        if _is_django(self._app):
            return mark_of(_django(scope["path"], scope.get("root_path", "")))
        return None

    def mark_of_environ(self, environ: MutableMapping[str, Any]) -> Mark | None:
        """The mark of the handler that a WSGI environ will reach."""
        if self._find is not None:
            return mark_of(self._find(environ))
        # `app.wsgi_app` is what Flask's middlewares are given: a method that knows its application.
        flask = getattr(self._app, "__self__", self._app)
        if hasattr(flask, "url_map") and hasattr(flask, "view_functions"):
            return mark_of(_flask(flask, environ))
        if _is_django(self._app):
            return mark_of(_django(environ.get("PATH_INFO", "").encode("latin-1").decode("utf-8", "replace"), ""))
        return None


def _any_marked(routes: Iterable[Any], nesting: int = 0) -> bool:
    return any(
        mark_of(getattr(route, "endpoint", None)) is not None
        or (nesting < MAX_NESTING and _any_marked(_within(route), nesting + 1))
        for route in routes
    )


def _within(route: Any) -> Sequence[Any]:
    """The routes below one that is mounted or included."""
    included = getattr(route, "effective_candidates", None)  # FastAPI's, which resolves them when they are asked for
    if callable(included):
        return tuple(included())
    routes = getattr(getattr(route, "starlette_route", None) or route, "routes", None)
    return routes if isinstance(routes, list) else ()


def _starlette(routes: Sequence[Any], scope: MutableMapping[str, Any], nesting: int) -> object:
    """The endpoint of the first route that matches path and method."""
    for route in routes:
        try:
            match, child = route.matches(scope)
        except Exception:
            return None  # a converter or a host that raises: routing will say so itself
        if getattr(match, "name", "") != "FULL":
            continue
        below = _within(route)
        if below and nesting < MAX_NESTING:
            return _starlette(below, {**scope, **child}, nesting + 1)
        return child.get("endpoint") or getattr(route, "endpoint", None)
    return None


def _flask(app: Any, environ: MutableMapping[str, Any]) -> object:
    try:
        endpoint, _ = app.url_map.bind_to_environ(environ).match()
    except Exception:
        return None  # not found, another method, a redirect
    return _view(app.view_functions.get(endpoint))


def _is_django(app: object) -> bool:
    return type(app).__module__.startswith("django.core.handlers.")


def _django(path: str, root_path: str) -> object:
    resolve = getattr(sys.modules.get("django.urls"), "resolve", None)
    try:
        return None if resolve is None else _view(resolve(path.removeprefix(root_path) or "/").func)
    except Exception:
        return None


def _view(handler: Any) -> object:
    """The class of a class-based view, where its function has no mark of its own."""
    return handler if mark_of(handler) is not None else getattr(handler, "view_class", handler)
