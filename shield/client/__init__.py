"""Clients of the decision endpoint, for services that ask another process.

async with Client("unix:/run/shield.sock", token=TOKEN, when_unreachable="allow") as shield:
    decision = await shield.check(Request(tenant="acme", ip="203.0.113.7"))

BlockingClient("http://127.0.0.1:8080").check(...)        the same for threads
"""

from shield.client.blocking import BlockingClient
from shield.client.looped import Client
from shield.client.protocol import Decision, EndpointError, LimitEntry, Unreachable

__all__ = ["BlockingClient", "Client", "Decision", "EndpointError", "LimitEntry", "Unreachable"]
