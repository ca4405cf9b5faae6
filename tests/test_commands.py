"""Every command that a reader may paste into a shell works.

These are the commands in console blocks and inline code of README, docs/ and
newsfragments/, in the help, in what errors propose, in `explain`, and in the first
lines of a server. Ports are replaced by free ones, /run by a folder of the test. A
server has to listen, and to end well when told to stop; any other command has to end
well.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Self

import pytest
import trustme

from app.invoked import invoke
from app.process import Lines
from app.sample_reports import make_report
from real.tools import needs
from shell import PATIENCE, environment, free_ports, replaced
from test_docs import BAD_INPUT, PAGES, ROOT, all_blocks
from trioserve import Reason
from trioserve.app._cli import cli
from trioserve.app._topics import TOPICS
from trioserve.app.reports._explain import explain_record
from trioserve.app.reports._records import parse_record

#: A word that the reader replaces.
PLACEHOLDER = re.compile(r"\b[A-Z]{3,}\b|\.\.\.")

#: Mentioned only; nobody would paste them.
MENTIONED = {"trioserve proxy --fault", "trioserve completion"}

REPORTS = ["connections.jsonl", "db.jsonl"]


def is_ours(command: str) -> bool:
    """Whether it runs trioserve, and has no word that the reader replaces."""
    words = re.findall(r"(?:^|[\s(])(?:\S*/)?trioserve ", f"{command} ")
    return bool(words) and not PLACEHOLDER.search(command)


def of_documents() -> Iterator[str]:
    for block in all_blocks("console"):
        if not block.text.startswith("# terminal"):  # those are sessions
            for line in block.text.splitlines():
                if line.startswith("$ "):
                    # It is already installed.
                    yield line.removeprefix("$ ").split(".venv/bin/")[-1]
    pages = [page for page in PAGES if page.name not in ("errors.md", "laws.md")]
    for page in [*pages, *sorted((ROOT / "newsfragments").glob("*.md"))]:
        yield from re.findall(r"`([^`\n]*trioserve [^`\n]+)`", page.read_text())


def of_help() -> Iterator[str]:
    texts = [invoke("--help").stdout, *TOPICS.values()]
    texts += [invoke(command, "--help").stdout for command in cli.commands]
    for text in texts:
        for line in text.splitlines():
            if re.match(r" +(eval .*)?(\$ )?[^ ]*trioserve ", line):
                yield line.strip()
            yield from re.findall(r"'(trioserve [^']+)'", line)


def of_errors() -> Iterator[str]:
    """Commands that are refused, and what their errors propose instead."""
    for command, said, _ in BAD_INPUT:
        wrong = re.search(r"'([^']+)'", said)
        for proposal in proposals(said):
            assert wrong
            if wrong[1] in proposal and " " in proposal:
                yield f"trioserve {proposal}"
                continue
            words = shlex.split(command)
            assert wrong[1] in words, command
            yield shlex.join([proposal if w == wrong[1] else w for w in words])


def proposals(said: str) -> list[str]:
    """What an error proposes with "did you mean"."""
    meant = re.search(r"did you mean '?(.+?)'?\?$", said)
    return re.sub(r" \(.*?\)", "", meant[1]).split(" or ") if meant else []


def commands() -> list[str]:
    found = [*of_documents(), *of_help(), *of_errors()]
    kept = [command for command in dict.fromkeys(found) if is_ours(command)]
    return [c for c in kept if c not in MENTIONED and not re.search(r"\w\|\w", c)]


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder with a short name, with the files that commands read."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        lines = [json.dumps(make_report(id=n).as_dict()) + "\n" for n in range(1, 10)]
        for reports in REPORTS:
            (folder / reports).write_text("".join(lines))
        (folder / "targets").write_text("127.0.0.1:9000\n127.0.0.1:9001?backup\n")
        case = {"faults": "down:slice=1..7, reset@311", "seed": 7}
        (folder / "case.json").write_text(json.dumps(case))
        authority = trustme.CA()
        issued = authority.issue_cert("localhost")
        issued.cert_chain_pems[0].write_to_path(str(folder / "server.pem"))
        issued.private_key_pem.write_to_path(str(folder / "server.key"))
        authority.cert_pem.write_to_path(str(folder / "clients.pem"))
        yield folder


class Pasted:
    """A command in a shell, and the processes of trioserve in it."""

    def __init__(self, command: str, folder: Path) -> None:
        env = environment(folder)
        if re.fullmatch("trioserve echo( --.*)?", command):
            env["TRIOSERVE_LISTEN"] = "127.0.0.1:0"  # a fixed port may be in use
        ours = folder / "bin" / "trioserve"
        first, second = ours.read_text().splitlines()
        ours.write_text(f"{first}\necho $$ >> {folder}/pids\n{second}\n")
        self._pids = folder / "pids"
        self.process = subprocess.Popen(
            ["bash", "-o", "pipefail", "-c", command],
            cwd=folder,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert self.process.stdout
        assert self.process.stderr
        self.out, self.err = Lines(self.process.stdout), Lines(self.process.stderr)
        self._streams = (
            (self.out, self.process.stdout),
            (self.err, self.process.stderr),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(PATIENCE)
        for lines, stream in self._streams:
            lines.rest()
            stream.close()

    def stop(self) -> None:
        for pid in self._pids.read_text().split():
            os.kill(int(pid), signal.SIGTERM)

    def code(self) -> int:
        return self.process.wait(PATIENCE)


def on_this_machine(command: str, folder: Path, ports: dict[str, str]) -> str:
    # The word that is replaced may be quoted; our path needs no quotes.
    command = re.sub(r"(?<![\w.])/run/", f"{folder}/", command)
    return replaced(command, ports)


def ports_in(command: str) -> list[str]:
    return sorted(set(re.findall(r"(?<=[\w\]' ]:)\d{2,5}\b|(?<=^:)\d+\b", command)))


def programs_in(command: str) -> set[str]:
    """The other programs that a command needs."""
    return {"bash", *re.findall(r"\| (\w+)", command)} - {"trioserve", "source"}


@pytest.mark.long("a process for each")
@pytest.mark.parametrize(
    "command", [pytest.param(c, marks=needs(*programs_in(c))) for c in commands()]
)
def test_a_command_works(command: str, folder: Path) -> None:
    if command.endswith("| source"):
        command = command.removesuffix(" | source")  # a builtin of another shell
    pasted = Pasted(
        on_this_machine(command, folder, free_ports(ports_in(command))), folder
    )
    subcommand = re.findall(r"trioserve +([\w-]+)", command)[:1]
    asks = re.search(r" (-h|--help|--version)\b", command)
    with pasted:
        if subcommand == ["demo"]:
            pasted.out.until("A proxy that serves")
            pasted.stop()
            assert pasted.code() == 143
            return
        if subcommand in (["proxy"], ["echo"]) and not asks:
            pasted.err.until("try: ")
            pasted.stop()
        assert pasted.code() == 0, pasted.err.rest()


def test_commands_are_found() -> None:
    found = commands()
    assert len(found) > 30
    for part in ("db.jsonl --live", "help addresses", "| jq", "down:", "completion"):
        assert any(part in command for command in found)


@contextlib.contextmanager
def listening(kind: str, folder: Path) -> Generator[str]:
    """The address of a listening socket."""
    with contextlib.ExitStack() as stack:
        if kind.startswith("unix"):
            sock = stack.enter_context(socket.socket(socket.AF_UNIX))
            path = f"{folder}/a socket"
            sock.bind(path if kind == "unix" else f"\0{path}")
            sock.listen()
            yield f"unix:{'' if kind == 'unix' else '@'}{path}"
            return
        family = socket.AF_INET6 if kind == "::1" else socket.AF_INET
        sock = stack.enter_context(socket.create_server((kind, 0), family=family))
        host = f"[{kind}]" if ":" in kind else kind
        yield f"{host}:{sock.getsockname()[1]}"


KINDS = ["127.0.0.1", "::1", "unix", "unix:@"]


@needs("bash", "nc", "ss")
@pytest.mark.parametrize("kind", KINDS)
def test_commands_that_explain_proposes_work(kind: str, folder: Path) -> None:
    with listening(kind, folder) as target:
        looks = set[str]()
        for reason in Reason:
            fields = make_report(reason=reason, target=target).as_dict()
            record = parse_record(json.dumps(fields).encode())
            looks |= set(re.findall("`([^`]+)`", "\n".join(explain_record(record))))
        assert looks
        for look in looks:
            with Pasted(look, folder) as pasted:
                assert pasted.code() == 0, (look, pasted.err.rest())


@needs("bash", "nc")
@pytest.mark.parametrize(
    "listen", ["127.0.0.1:0", "'[::1]:0'", ":0", "'unix:/run/a b'", "unix:@{folder}"]
)
def test_the_command_that_a_server_proposes_works(listen: str, folder: Path) -> None:
    listen = on_this_machine(listen, folder, {}).format(folder=folder)
    with Pasted(f"trioserve echo {listen}", folder) as server:
        words = server.err.until("try: ").partition("try:")[2].split(maxsplit=1)
        assert words[0] == "nc"
        with Pasted(f"echo hello | nc -N {words[1]}", folder) as client:
            assert client.out.rest() == ["hello"]
            assert client.code() == 0
        server.stop()
        assert server.code() == 0
