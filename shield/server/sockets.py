"""Where the server listens: addresses as given on the command line, bound sockets, TLS."""

from __future__ import annotations

import errno
import os
import socket
import ssl
import stat
import sys
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

from shield.errors import ShieldError
from shield.server.bounds import BACKLOG


class StartError(ShieldError):
    """The server cannot start as it was told to; the message says what is in the way."""


class UsageError(StartError):
    """It was told something that cannot be right; the message says what to change."""


@dataclass(frozen=True, slots=True)
class Address:
    """`HOST:PORT`, `[IPV6]:PORT` or `unix:PATH`."""

    host: str = ""
    port: int = 0
    path: str = ""

    @classmethod
    def parse(cls, text: str) -> Address:
        """ValueError says what an address looks like."""
        if text.startswith("unix:"):
            path = text.removeprefix("unix:").removeprefix("//")
            if not path:
                raise ValueError("unix: needs a path, as in unix:/run/shield.sock")
            return cls(path=path)
        host, colon, port = text.rpartition(":")
        if host.startswith("[") and host.endswith("]"):
            host = host[1:-1]
        elif ":" in host:
            raise ValueError(f"{text!r}: an IPv6 address needs brackets, as in [::1]:8080")
        if not colon or not host:
            raise ValueError(f"{text!r} is no address; allowed: HOST:PORT, [IPV6]:PORT or unix:PATH")
        if not (port.isascii() and port.isdigit() and int(port) <= 65_535):
            raise ValueError(f"{text!r}: the port is a number from 0 to 65535")
        return cls(host=host, port=int(port))

    def __str__(self) -> str:
        if self.path:
            return f"unix:{self.path}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach it: a unix socket, or a name for loopback and nothing else."""
        if self.path:
            return True
        try:
            return ip_address(self.host).is_loopback
        except ValueError:
            return all(ip_address(found).is_loopback for found in self._resolve())

    def _resolve(self) -> list[str]:
        try:
            infos = socket.getaddrinfo(self.host, None, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            reason = getattr(error, "strerror", None) or error
            raise StartError(f"cannot listen on {self}: {self.host!r} has no address: {reason}") from None
        return [str(info[4][0]).partition("%")[0] for info in infos]


class Bound:
    """A listening socket, and the address it was given (its own port where 0 was asked for)."""

    def __init__(self, socket: socket.socket, address: Address) -> None:
        self.socket = socket
        self.address = address
        self._inode = _inode(address.path) if address.path else None

    def reached_by(self, tls: ssl.SSLContext | None) -> str:
        """How a caller names it: a URL, or the unix socket."""
        if self.address.path:
            return str(self.address)
        return f"{'https' if tls else 'http'}://{self.address}"

    def close(self) -> None:
        """Closes it, and removes the unix socket's file if it still is the one made here."""
        self.socket.close()
        if self._inode is not None and _inode(self.address.path) == self._inode:
            os.unlink(self.address.path)


def listen(address: Address) -> list[Bound]:
    """The sockets for one address: a name may have one for IPv4 and one for IPv6. StartError."""
    if address.path:
        return [_listen_unix(address)]
    hosts = list(dict.fromkeys(address._resolve()))
    bound: list[Bound] = []
    failed: OSError | None = None
    for host in hosts:
        # Both families of a name share a port that the kernel chose.
        port = address.port or (bound[0].address.port if bound else 0)
        try:
            bound.append(_listen_tcp(host, port))
        except OSError as error:
            failed = error
            if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                break
    else:
        # Names stand for ::1 also where IPv6 is switched off: one family is enough.
        if bound:
            return bound
    for one in bound:
        one.close()
    assert failed is not None
    raise StartError(f"cannot listen on {address}: {_why(failed, address)}")


def listen_for(address: Address, workers: int) -> list[tuple[Bound, int | None]]:
    """Sockets for several processes: for a TCP address one for each worker, from 0, among which the kernel spreads
    connections; None for one that all of them share. StartError, also where another server of ours listens.
    """
    shared = listen(address)
    if address.path or sys.platform != "linux":  # elsewhere the kernel does not spread them
        return [(bound, None) for bound in shared]
    found: list[tuple[Bound, int | None]] = []
    try:
        for claim in shared:
            # It was bound without the option, which is how the kernel tells whether somebody else listens; with
            # it, others of ours may join. It listens until they do, so nobody can come between.
            claim.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            for worker in range(workers):
                found.append((_listen_tcp(claim.address.host, claim.address.port, reuse_port=True), worker))
    except OSError as error:
        for bound, _ in found:
            bound.close()
        raise StartError(f"cannot listen on {address}: {_why(error, address)}") from None
    finally:
        for claim in shared:
            claim.close()
    return found


def _listen_tcp(host: str, port: int, *, reuse_port: bool = False) -> Bound:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if reuse_port:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind((host, port))
        sock.listen(BACKLOG)
        sock.setblocking(False)
    except OSError:
        sock.close()
        raise
    return Bound(sock, Address(host=host, port=sock.getsockname()[1]))


def _why(error: OSError, address: Address) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"another program listens there already; stop it or choose another port than {address.port}"
    if error.errno == errno.EACCES:
        return "not permitted; ports below 1024 need privileges, choose another one"
    if error.errno == errno.EADDRNOTAVAIL:
        return f"{address.host} is no address of this machine"
    return error.strerror or str(error)


def _listen_unix(address: Address) -> Bound:
    _remove_stale(address)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.bind(address.path)
        sock.listen(BACKLOG)
        sock.setblocking(False)
    except OSError as error:
        sock.close()
        reason = "the path is too long for a socket" if "too long" in str(error) else error.strerror or error
        raise StartError(f"cannot listen on {address}: {reason}") from None
    return Bound(sock, address)


def _remove_stale(address: Address) -> None:
    """Removes what a crashed server left; never a socket that somebody listens on, nor another file."""
    try:
        if not stat.S_ISSOCK(os.stat(address.path).st_mode):
            raise StartError(f"cannot listen on {address}: a file that is no socket is there; it is left alone")
    except FileNotFoundError:
        return
    except OSError as error:
        raise StartError(f"cannot listen on {address}: {error.strerror or error}") from None
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(address.path)
        except ConnectionRefusedError:
            os.unlink(address.path)
        except OSError as error:
            raise StartError(f"cannot listen on {address}: {error.strerror or error}") from None
        else:
            raise StartError(f"cannot listen on {address}: another program listens there already")


def _inode(path: str) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files. With `client_ca` every caller needs a certificate that it signed (mutual TLS)."""

    cert: Path
    key: Path
    client_ca: Path | None = None

    def context(self) -> ssl.SSLContext:
        """UsageError names the file that does not do."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        self.load_into(context)
        if self.client_ca is not None:
            try:
                context.load_verify_locations(cafile=self.client_ca)
            except (OSError, ssl.SSLError) as error:
                raise UsageError(f"--tls-client-ca {self.client_ca}: {_tls_reason(error)}") from None
            context.verify_mode = ssl.CERT_REQUIRED
        return context

    def load_into(self, context: ssl.SSLContext) -> None:
        """The certificate and key for connections from now on. UsageError."""
        try:
            # An empty password, or OpenSSL would ask the terminal for that of an encrypted key.
            context.load_cert_chain(self.cert, self.key, password="")
        except (OSError, ssl.SSLError) as error:
            raise UsageError(f"--tls-cert {self.cert}, --tls-key {self.key}: {_tls_reason(error)}") from None


def _tls_reason(error: OSError) -> str:
    if isinstance(error, ssl.SSLError):
        reason = (error.reason or "not a PEM file").replace("_", " ").lower()
        return f"cannot be used: {reason}"
    return f"cannot be read: {error.strerror or error}"
