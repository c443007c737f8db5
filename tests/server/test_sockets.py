"""Addresses, bound sockets, and unix sockets that crashed servers left behind."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from shield.server.sockets import Address, StartError, TlsFiles, UsageError, listen


@pytest.mark.parametrize(
    ("text", "shown", "local"),
    [
        ("127.0.0.1:8080", "127.0.0.1:8080", True),
        ("127.9.9.9:0", "127.9.9.9:0", True),
        ("[::1]:80", "[::1]:80", True),
        ("localhost:80", "localhost:80", True),
        ("unix:/run/x.sock", "unix:/run/x.sock", True),
        ("unix:///run/x.sock", "unix:/run/x.sock", True),
        ("0.0.0.0:80", "0.0.0.0:80", False),
        ("[::]:80", "[::]:80", False),
        ("10.1.2.3:80", "10.1.2.3:80", False),
    ],
)
def test_addresses(text: str, shown: str, local: bool) -> None:
    address = Address.parse(text)
    assert str(address) == shown
    assert address.is_local is local


@pytest.mark.parametrize(
    "text", ["", "8080", ":8080", "host:", "host:http", "host:70000", "::1:80", "unix:", "host:-1", "host:٣"]
)
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(ValueError):
        Address.parse(text)


def test_a_name_that_is_not_only_loopback_is_not_local(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Address, "_resolve", lambda self: ["127.0.0.1", "10.0.0.1"])
    assert not Address.parse("mixed.example:80").is_local


def test_a_name_without_an_address_is_said() -> None:
    with pytest.raises(StartError, match="has no address"):
        listen(Address(host="no such host.invalid", port=80))


def test_a_port_in_use_is_said() -> None:
    [first] = listen(Address.parse("127.0.0.1:0"))
    assert first.address.port > 0
    try:
        with pytest.raises(StartError, match="another program listens there already"):
            listen(first.address)
    finally:
        first.close()


def test_an_address_of_another_machine_is_said() -> None:
    with pytest.raises(StartError, match="no address of this machine"):
        listen(Address.parse("192.0.2.1:0"))


def test_one_family_of_a_name_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Address, "_resolve", lambda self: ["127.0.0.1", "192.0.2.1"])
    bound = listen(Address.parse("half:0"))
    assert [one.address.host for one in bound] == ["127.0.0.1"]
    bound[0].close()


def test_a_unix_socket_is_removed_when_it_is_closed(tmp_path: Path) -> None:
    path = tmp_path / "s"
    [bound] = listen(Address(path=str(path)))
    assert path.is_socket()
    bound.close()
    assert not path.exists()


def test_a_stale_socket_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "s"
    crashed = socket.socket(socket.AF_UNIX)
    crashed.bind(str(path))
    crashed.close()
    [bound] = listen(Address(path=str(path)))
    bound.close()


def test_a_socket_in_use_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "s"
    [first] = listen(Address(path=str(path)))
    with pytest.raises(StartError, match="another program listens there already"):
        listen(Address(path=str(path)))
    assert path.is_socket()
    first.close()


def test_the_socket_of_a_successor_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "s"
    [first] = listen(Address(path=str(path)))
    path.unlink()
    [second] = listen(Address(path=str(path)))
    first.close()
    assert path.is_socket()
    second.close()


def test_a_file_that_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "policy.toml"
    path.write_text("precious")
    with pytest.raises(StartError, match="no socket"):
        listen(Address(path=str(path)))
    assert path.read_text() == "precious"


@pytest.mark.parametrize(("name", "message"), [("absent/s", "No such file"), ("x" * 200, "too long")])
def test_a_path_that_does_not_do_is_said(tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(StartError, match=message):
        listen(Address(path=str(tmp_path / name)))


def test_tls_files_that_do_not_do_are_said(tmp_path: Path) -> None:
    nonsense = tmp_path / "cert.pem"
    nonsense.write_text("nonsense")
    with pytest.raises(UsageError, match=r"--tls-cert .*cannot be used"):
        TlsFiles(nonsense, nonsense).context()
    with pytest.raises(UsageError, match="cannot be read"):
        TlsFiles(tmp_path / "absent", nonsense).context()
