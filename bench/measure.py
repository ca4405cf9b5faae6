"""The cost of a process: CPU and memory, including its children.

A process id in, seconds or bytes out. Nothing here knows what the process does.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import time
from pathlib import Path


@dataclasses.dataclass(frozen=True)
class Memory:
    """Kilobytes: resident, and with shared memory divided among the processes."""

    rss: float
    pss: float


@dataclasses.dataclass(frozen=True)
class Moment:
    """When, and how many seconds of CPU a process had used by then."""

    time: float
    cpu: float


def moment(pid: int | None) -> Moment:
    """The present moment; without a process, no CPU is used.

    Raises:
      ProcessLookupError: it has ended.
    """
    cpu = 0.0 if pid is None else cpu_seconds(pid)
    return Moment(time.monotonic(), cpu)


def cpu_seconds(pid: int) -> float:
    """The CPU time of its threads, its children, and the children it has reaped.

    The last are counted in ticks of a hundredth of a second.
    """
    try:
        own = _clock(pid)
        stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        raise ProcessLookupError(f"process {pid} has ended") from None
    total = own + (int(stat[13]) + int(stat[14])) / os.sysconf("SC_CLK_TCK")
    for child in _children(pid):
        with contextlib.suppress(OSError):
            total += _clock(child)
    return total


def memory(pid: int) -> Memory:
    """The memory of a process and its children."""
    rss = pss = 0.0
    for each in (pid, *_children(pid)):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            rollup = Path(f"/proc/{each}/smaps_rollup").read_text()
            sizes = dict(re.findall(r"^(\w+): +(\d+) kB$", rollup, re.MULTILINE))
            rss += int(sizes["Rss"])
            pss += int(sizes["Pss"])
    return Memory(rss, pss)


def cpu_between(moments: list[Moment], begin: float) -> float:
    """Seconds of CPU from ``begin`` to the last of the moments."""
    later = next(i for i, each in enumerate(moments) if each.time >= begin)
    after, before = moments[later], moments[max(0, later - 1)]
    share = (begin - before.time) / ((after.time - before.time) or 1)
    at_begin = before.cpu + max(0.0, share) * (after.cpu - before.cpu)
    return moments[-1].cpu - at_begin


def _clock(pid: int) -> float:
    # The clock of clock_getcpuclockid(3): nanoseconds, with threads that have ended.
    return time.clock_gettime((~pid << 3) | 2)


def _children(pid: int) -> list[int]:
    with contextlib.suppress(OSError):
        listed = Path(f"/proc/{pid}/task/{pid}/children").read_text()
        return [int(child) for child in listed.split()]
    return []
