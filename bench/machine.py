"""A description of the machine on which something is measured."""

from __future__ import annotations

import platform
import re
import time
from pathlib import Path

from .programs import LOAD_CORES, PROXY_CORES, raise_open_files_limit, version

_CONGESTION_CONTROL = "/proc/sys/net/ipv4/tcp_congestion_control"


def describe_machine() -> dict[str, str]:
    """What a reader has to know about it, by name."""
    cpu = re.search(r"^model name\s*: (.*)$", _read("/proc/cpuinfo"), re.MULTILINE)
    return {
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "processor": cpu[1] if cpu else platform.machine(),
        "cores": f"{len(PROXY_CORES | LOAD_CORES)}: {len(PROXY_CORES)} for the peer,"
        f" {len(LOAD_CORES)} for the load and its target",
        "open files": str(raise_open_files_limit()),
        "system": f"{platform.system()} {platform.release()}",
        "congestion control": _read(
            "/proc/sys/net/ipv4/tcp_congestion_control"
        ).strip(),
        "Python": platform.python_version(),
        "redis-benchmark": version("redis-benchmark"),
        "iperf3": version("iperf3"),
        "load average before": load_average(),
    }


def load_average() -> str:
    """How many processes wanted a core, in the last 1, 5 and 15 minutes."""
    return " ".join(_read("/proc/loadavg").split()[:3])


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""
