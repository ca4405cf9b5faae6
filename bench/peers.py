"""The peers: how each is started, with its best documented settings and one worker.

Nothing here starts them, and nothing here knows what is measured.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from .certificate import certificate
from .programs import find, raise_open_files_limit, version

_SERVERS = Path(__file__).parent / "servers"

#: A port to listen on, one to relay to, and a folder for files: the command.
Command = Callable[[int, int, Path], Sequence[str]]


@dataclasses.dataclass(frozen=True)
class Peer:
    """A server that is measured.

    Args:
      needs: a program or a Python module.
      settings: how it is started, for the reader.
      command: the command; None if nothing is between the load and its target.
      serves: whether it relays, echoes what it got, or relays and speaks TLS with its
        clients.
      most: the most connections at once that it is measured with.
    """

    name: str
    needs: str
    settings: str
    command: Command | None
    serves: Literal["proxy", "echo", "tls"] = "proxy"
    most: int = 10_000

    @property
    def is_there(self) -> bool:
        """Whether it can be started on this machine."""
        if find(self.needs) is None and not importlib.util.find_spec(self.needs):
            return False
        return self.needs != "nginx" or _stream_module() is not None

    @property
    def version(self) -> str:
        """Its version."""
        return version(self.needs)


def _haproxy(options: str, *, tls: bool = False) -> Command:
    def command(port: int, target: int, folder: Path) -> Sequence[str]:
        files = raise_open_files_limit()
        # Each connection takes two descriptors, each pipe two more.
        bind = f"ssl crt {certificate()}" if tls else ""
        config = f"""
global
    nbthread 1
    maxconn {min(10_000, (files - 400) // 2)}
    maxpipes 100
    stats socket {folder}/admin level user
defaults
    mode tcp
    {options}
    timeout connect 5s
    timeout client 1h
    timeout server 1h
frontend front
    bind 127.0.0.1:{port} backlog 4096 {bind}
    maxconn {min(10_000, (files - 400) // 2)}
    default_backend back
backend back
    server target 127.0.0.1:{target}
"""
        (folder / "haproxy.cfg").write_text(config)
        return [find("haproxy") or "", "-db", "-f", str(folder / "haproxy.cfg")]

    return command


def _nginx(port: int, target: int, folder: Path) -> Sequence[str]:
    return _start_nginx(f"listen 127.0.0.1:{port} backlog=4096;", target, folder)


def _nginx_tls(port: int, target: int, folder: Path) -> Sequence[str]:
    # Without a cache or a ticket key of its own, OpenSSL's tickets resume sessions.
    listen = f"""listen 127.0.0.1:{port} backlog=4096 ssl;
        ssl_certificate {certificate()};
        ssl_certificate_key {certificate()};
        ssl_protocols TLSv1.2 TLSv1.3;"""
    return _start_nginx(listen, target, folder)


def _start_nginx(listen: str, target: int, folder: Path) -> Sequence[str]:
    module = _stream_module()
    config = f"""
{f"load_module {module};" if module else ""}
daemon off;
pid {folder}/pid;
worker_processes 1;
worker_rlimit_nofile {raise_open_files_limit()};
events {{ worker_connections {raise_open_files_limit()}; }}
stream {{
    server {{
        {listen}
        proxy_pass 127.0.0.1:{target};
        proxy_timeout 1h;
        tcp_nodelay on;
    }}
}}
"""
    (folder / "nginx.conf").write_text(config)
    return [
        find("nginx") or "",
        "-e",
        "stderr",
        "-p",
        str(folder),
        "-c",
        str(folder / "nginx.conf"),
    ]


def _stream_module() -> str | None:
    # The path of the module, "" if it is built in, None if it is missing.
    shown = subprocess.run(
        [find("nginx") or "false", "-V"], capture_output=True, text=True
    ).stderr
    if re.search(r"--with-stream(\s|$)", shown):
        return ""
    folder = re.search(r"--modules-path=(\S+)", shown)
    path = Path(folder[1] if folder else "") / "ngx_stream_module.so"
    return str(path) if path.is_file() else None


def _socat(port: int, target: int, folder: Path) -> Sequence[str]:
    listen = f"TCP4-LISTEN:{port},bind=127.0.0.1,fork,reuseaddr,backlog=4096,nodelay"
    return [find("socat") or "", listen, f"TCP4:127.0.0.1:{target},nodelay"]


def _script(name: str, *arguments: str) -> Command:
    def command(port: int, target: int, folder: Path) -> Sequence[str]:
        path = str(_SERVERS / name)
        return [sys.executable, path, *arguments, str(port), str(target)]

    return command


def _secure_streams(loop: str) -> Command:
    def command(port: int, target: int, folder: Path) -> Sequence[str]:
        path = str(_SERVERS / "streams.py")
        ports = (str(port), str(target))
        return [sys.executable, path, loop, *ports, str(certificate())]

    return command


def _secure_loop(port: int, target: int, folder: Path) -> Sequence[str]:
    path = str(_SERVERS / "python_loop.py")
    return [sys.executable, path, str(port), str(target), str(certificate())]


def _secure_trio(port: int, target: int, folder: Path) -> Sequence[str]:
    path = str(_SERVERS / "secure_trio.py")
    return [sys.executable, path, str(certificate()), str(port), str(target)]


def _secure_trioserve(port: int, target: int, folder: Path) -> Sequence[str]:
    return _trioserve(*_QUIET, "--tls-cert", str(certificate()))(port, target, folder)


def _trioserve(*options: str) -> Command:
    def command(port: int, target: int, folder: Path) -> Sequence[str]:
        ends = (f"127.0.0.1:{port}", f"127.0.0.1:{target}")
        return [sys.executable, "-m", "trioserve", "proxy", *ends, *options]

    return command


#: So that a run does not take hours.
_FEW = 600
_MORE = ("--max-connections", "10000")
#: The others don't log connections either.
_QUIET = (*_MORE, "--log-connections", "none")
_REPORTS = (*_MORE, "--reports", "reports.jsonl")

PEERS = [
    Peer("direct", "redis-benchmark", "nothing between the load and its target", None),
    Peer("haproxy", "haproxy", "tcp mode, nbthread 1", _haproxy("")),
    Peer(
        "haproxy-splice",
        "haproxy",
        "option splice-request, option splice-response",
        _haproxy("option splice-request\n    option splice-response"),
        most=_FEW,
    ),
    Peer("nginx", "nginx", "stream, worker_processes 1, tcp_nodelay", _nginx),
    Peer("socat", "socat", "fork, nodelay", _socat, most=_FEW),
    Peer(
        "uvloop-protocol",
        "uvloop",
        "bench/servers/uvloop_protocol.py",
        _script("uvloop_protocol.py"),
    ),
    Peer(
        "python-loop",
        "asyncio",
        "bench/servers/python_loop.py: one epoll, no deadlines, no backpressure",
        _script("python_loop.py"),
        most=_FEW,
    ),
    Peer(
        "uvloop-streams",
        "uvloop",
        "bench/servers/streams.py uvloop",
        _script("streams.py", "uvloop"),
        most=_FEW,
    ),
    Peer(
        "asyncio-streams",
        "asyncio",
        "bench/servers/streams.py asyncio",
        _script("streams.py", "asyncio"),
        most=_FEW,
    ),
    Peer("trio", "trio", "bench/servers/naive_trio.py", _script("naive_trio.py")),
    Peer(
        "trioserve",
        "trioserve",
        "trioserve proxy --log-connections none",
        _trioserve(*_QUIET),
    ),
    Peer(
        "trioserve-reports",
        "trioserve",
        "trioserve proxy --reports FILE, and its log",
        _trioserve(*_REPORTS),
    ),
    Peer(
        "trioserve-portable",
        "trioserve",
        "bench/servers/portable.py",
        _script("portable.py"),
        most=_FEW,
    ),
    *(
        Peer(
            f"trioserve-{how}",
            "trioserve",
            f"bench/servers/wrapped.py {how}",
            _script("wrapped.py", how),
            most=_FEW,
        )
        for how in ("plain", "wrapped")
    ),
    Peer(
        "trio-handler",
        "trio",
        "bench/servers/embedded.py trio",
        _script("embedded.py", "trio"),
        serves="echo",
    ),
    Peer(
        "trioserve-handler",
        "trioserve",
        "bench/servers/embedded.py trioserve",
        _script("embedded.py", "trioserve"),
        serves="echo",
    ),
    Peer(
        "trioserve-echo",
        "trioserve",
        "bench/servers/embedded.py echo",
        _script("embedded.py", "echo"),
        serves="echo",
    ),
    Peer(
        "haproxy-tls",
        "haproxy",
        "tcp mode, nbthread 1, bind ssl crt",
        _haproxy("", tls=True),
        serves="tls",
    ),
    Peer(
        "nginx-tls",
        "nginx",
        "stream, worker_processes 1, tcp_nodelay, listen ssl",
        _nginx_tls,
        serves="tls",
    ),
    *(
        Peer(
            f"{loop}-tls",
            loop,
            f"bench/servers/streams.py {loop}, with a certificate",
            _secure_streams(loop),
            serves="tls",
        )
        for loop in ("uvloop", "asyncio")
    ),
    Peer(
        "python-loop-tls",
        "asyncio",
        "bench/servers/python_loop.py, with a certificate",
        _secure_loop,
        serves="tls",
    ),
    Peer(
        "trio-tls",
        "trio",
        "bench/servers/secure_trio.py: trio.SSLStream",
        _secure_trio,
        serves="tls",
    ),
    Peer(
        "trioserve-tls",
        "trioserve",
        "trioserve proxy --tls-cert FILE --log-connections none",
        _secure_trioserve,
        serves="tls",
    ),
]
