"""One adapter a peer, each in the peer's documented best configuration, which its first lines say.

Those that limit have the same three names:

    NAME            what it is, and how it is configured
    DISTRIBUTION    what has to be installed
    make(rate_per_s) -> hit(key) -> bool, or a coroutine of it: may this key pass now?

`redis_py_pool` and `web_application` are measured against whole layers and have names of their own.
"""
