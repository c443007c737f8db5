"""Shield inside a Python web application, in front of its handlers.

`shield.middleware.asgi` is for Starlette, FastAPI and any ASGI application, `shield.middleware.wsgi` for Flask, Django
and any WSGI application, `shield.middleware.aiohttp` for aiohttp. What a handler may say about itself is here.
"""

from shield.middleware.limiting import limit
from shield.middleware.marks import attributes, cost, exempt
from shield.middleware.turn import Turn, current

__all__ = ["Turn", "attributes", "cost", "current", "exempt", "limit"]
