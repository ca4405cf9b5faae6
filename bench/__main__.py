"""The command ``python -m bench``: which peers do which works, and how often.

In every round, every peer does every work, one after the other. Each round begins
with another peer, so that other load on the machine affects all of them alike.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from .machine import describe_machine, load_average
from .peers import PEERS, Peer
from .programs import ProgramError, find
from .report import Raw, Sample, page, tables
from .works import WORKS, Work, measure

_QUICK_WORKS = ("messages-64", "connections")
_QUICK_PEERS = ("haproxy", "trio", "trioserve")


def main() -> None:
    """Measure trioserve and other proxies, and print tables."""
    # On these signals too, end the programs that were started.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    options = _parser().parse_args()
    if options.page and not importlib.util.find_spec("matplotlib"):
        sys.exit("bench: --page needs matplotlib: pip install --group bench")
    if options.read:
        raw: Raw = json.loads(options.read.read_text())
    else:
        raw = _measure(options)
    text = json.dumps(raw, indent=1) + "\n"
    if options.json:
        options.json.write_text(text)
    print("\n".join(tables(raw)))
    if options.page:
        from .plots import draw

        options.page.mkdir(parents=True, exist_ok=True)
        (options.page / "figures.json").write_text(text)
        (options.page / "index.md").write_text(page(raw, draw(raw, options.page)))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m bench", description=main.__doc__)
    add = parser.add_argument
    works, peers = [w.name for w in WORKS], [p.name for p in PEERS]
    add("--quick", action="store_true", help="a few seconds: two works, one round")
    add("--only", nargs="+", metavar="WORK", choices=works, help=", ".join(works))
    add("--peers", nargs="+", metavar="PEER", choices=peers, help=", ".join(peers))
    add("--rounds", type=int, metavar="N", help="how often (5)")
    add(
        "--seconds",
        type=float,
        metavar="S",
        help="length of a sample, about (1)",
    )
    add("--json", type=Path, metavar="FILE", help="write the raw figures there")
    add("--read", type=Path, metavar="FILE", help="measure nothing, read raw figures")
    add(
        "--page",
        type=Path,
        nargs="?",
        const=Path("docs/performance"),
        metavar="FOLDER",
        help="write index.md, plots and figures.json there (docs/performance)",
    )
    return parser


def _measure(options: argparse.Namespace) -> Raw:
    only = options.only or (_QUICK_WORKS if options.quick else None)
    names = options.peers or (_QUICK_PEERS if options.quick else None)
    works = [work for work in WORKS if not only or work.name in only]
    wanted = [peer for peer in PEERS if not names or peer.name in names]
    tools = {"stdbuf", "setpriv", *(tool for work in works for tool in work.tools)}
    missing = sorted(tool for tool in tools if find(tool) is None)
    works = [work for work in works if not set(work.tools) & set(missing)]
    peers = [peer for peer in wanted if peer.is_there]
    missing += [peer.name for peer in wanted if peer not in peers]
    for name in missing:
        print(f"bench: left out, not installed: {name}", file=sys.stderr)
    if not works or not peers or {"stdbuf", "setpriv"} & set(missing):
        sys.exit("bench: there is nothing to measure")
    raw = Raw(
        machine=describe_machine(),
        rounds=options.rounds or (1 if options.quick else 5),
        seconds=options.seconds or (0.2 if options.quick else 1.0),
        missing=missing,
        peers={peer.name: (peer.version, peer.settings) for peer in peers},
        works={work.name: work.title for work in works},
        samples=[],
    )
    with contextlib.suppress(KeyboardInterrupt):  # report the samples so far
        for sample in _samples(works, peers, raw["rounds"], raw["seconds"]):
            print(_line(sample), file=sys.stderr, flush=True)
            raw["samples"].append(sample)
    raw["machine"]["load average after"] = load_average()
    return raw


def _samples(
    works: Sequence[Work], peers: Sequence[Peer], rounds: int, seconds: float
) -> Iterator[Sample]:
    for number, work, peer in _schedule(works, peers, rounds):
        sample = Sample(round=number, work=work.name, peer=peer.name, figures={})
        try:
            sample["figures"] = measure(work, peer, seconds)
        except ProgramError as error:
            sample["failed"] = str(error)
        yield sample


def _schedule(
    works: Sequence[Work], peers: Sequence[Peer], rounds: int
) -> Iterator[tuple[int, Work, Peer]]:
    for number in range(rounds):
        first = number % len(peers)
        for work in works:
            # Works that take long run in every other round only.
            if number % 2 == 0 or not work.is_long:
                for peer in (*peers[first:], *peers[:first]):
                    if work.suits(peer):
                        yield number, work, peer


def _line(sample: Sample) -> str:
    figures = sample["figures"].items()
    said = ", ".join(f"{value:.4g} {name}" for name, value in figures)
    outcome = said or sample.get("failed", "")
    return f"{sample['round']} {sample['work']} {sample['peer']}: {outcome}"


main()
