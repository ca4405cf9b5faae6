"""Addresses on which a command can't listen: one line that says what to do instead."""

from __future__ import annotations

import errno
import os
import pwd
import socket
from pathlib import Path

import pytest
import trio

from app.invoked import error_of, invoke
from shell import free_port
from trioserve import Address
from trioserve.app import _listening


def test_an_occupied_address_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        result = invoke("echo", f"127.0.0.1:{port}")
    assert f"127.0.0.1:{port} is already in use" in error_of(result)
    assert result.exit_code == 1


def test_all_interfaces_and_one_of_them_are_both_named() -> None:
    port = free_port()
    result = invoke("echo", f"0.0.0.0:{port}", "--listen", f"127.0.0.1:{port}")
    assert error_of(result) == (
        f"can't listen on both 127.0.0.1:{port} and 0.0.0.0:{port}: one of them is all"
        " interfaces, which includes the other; leave the other one out"
    )
    assert result.exit_code == 1


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_target_that_is_its_own_listener_is_refused(host: str) -> None:
    port = free_port()
    result = invoke("proxy", f"127.0.0.1:{port}", "127.0.0.1:1", f"{host}:{port}")
    assert error_of(result) == (
        f"TARGET {host}:{port} is a listener of this proxy, which would be a loop; give"
        " the address of another server"
    )
    assert result.exit_code == 2


def test_the_target_of_a_name_is_not_its_own_listener() -> None:
    port = free_port()
    target = f"127.0.0.1:{port}"
    result = invoke("proxy", f":{port}", "127.0.0.1:1", "--sni", f"a.example={target}")
    assert f"TARGET {target} is a listener of this proxy" in error_of(result)


def test_a_port_file_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "no" / "port"
    result = invoke("echo", "127.0.0.1:0", "--port-file", str(path))
    assert error_of(result) == (
        f"can't write the port to {path}: No such file or directory"
    )
    assert result.exit_code == 1


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("file", "{path} exists and is not a socket; use another path"),
        ("socket", "unix:{path} is already in use; stop what listens there"),
        ("folder", "can't listen on unix:{path}: directory {parent} does not exist"),
        (
            "rights",
            "no permission to listen on unix:{path}: can you write to {parent}?",
        ),
        ("other", "can't listen on unix:{path}: Read-only file system"),
    ],
)
def test_a_unix_socket_that_cannot_be_listened_on(
    kind: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as other:
        match kind:
            case "file":
                path.touch()
            case "socket":
                other.bind(str(path))
                other.listen()
            case "folder":
                path = tmp_path / "no" / "socket"
            case _:
                code = errno.EACCES if kind == "rights" else errno.EROFS
                _fail_to_listen(monkeypatch, code)
        result = invoke("echo", f"unix:{path}")
    assert error_of(result) == said.format(path=path, parent=path.parent)
    assert result.exit_code == 1


@pytest.mark.parametrize("of", ["nobody", "61099"])
@pytest.mark.parametrize("may_connect", [False, True])
@pytest.mark.skipif(os.geteuid() != 0, reason="is two users in turn, as root")
def test_another_users_socket_cannot_be_replaced(
    may_connect: bool, of: str, tmp_path: Path
) -> None:
    """In a directory like /tmp, where users may remove only their own files."""
    owner = pwd.getpwnam(of).pw_uid if of == "nobody" else int(of)
    for folder in tmp_path.parents[:3]:
        folder.chmod(0o755)
    tmp_path.chmod(0o1777)
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as left_over:
        left_over.bind(str(path))
    os.chown(path, owner, -1)
    path.chmod(0o666 if may_connect else 0o600)
    os.seteuid(61_098)
    try:
        result = invoke("echo", f"unix:{path}")
    finally:
        os.seteuid(0)
    said = f"belongs to user {of}, and you may neither connect to it nor replace it"
    if may_connect:
        said = f"was left behind by user {of}, and you may not replace it"
    assert error_of(result) == f"unix:{path} {said}; use another path"
    assert result.exit_code == 1


def _fail_to_listen(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    async def open_listeners(
        address: Address, **_: object
    ) -> list[trio.SocketListener]:
        raise OSError(code, os.strerror(code), str(address))

    monkeypatch.setattr(_listening, "open_listeners", open_listeners)


def test_an_address_of_another_machine_cannot_be_listened_on() -> None:
    result = invoke("echo", "192.0.2.1:0")
    assert "192.0.2.1:0 is not an address of this machine" in error_of(result)
    assert result.exit_code == 1


def test_an_unknown_host_is_named() -> None:
    result = invoke("echo", "nobody.invalid:0")
    assert "can't find the host of nobody.invalid:0: " in error_of(result)
    assert result.exit_code == 1


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.EACCES, "no permission to listen on 127.0.0.1:80: ports below 1024"),
        (errno.ENOBUFS, "can't listen on 127.0.0.1:80: No buffer space available"),
    ],
)
def test_other_errors_of_listening(
    number: int, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _fail_to_listen(monkeypatch, number)
    result = invoke("echo", "127.0.0.1:80")
    assert said in error_of(result)
    assert result.exit_code == 1
