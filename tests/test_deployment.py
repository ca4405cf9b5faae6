"""Files for supervisors in the documentation: what they start is a command that works.

A unit for systemd, a Dockerfile and a pod. Their commands are taken apart here, and
the times that they give a server to stop are compared with those that it takes. The
files for load balancers are run by real/test_load_balancers.py.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.invoked import invoke
from app.process import PATIENCE, Lines, spawned
from real.tools import needs
from test_docs import CONFIGURATIONS, ROOT, Block, all_blocks, table
from trioserve import Reason
from trioserve.app._values import parse_duration

SYSTEMD = ROOT / "docs" / "systemd.md"

#: What measures the tests would itself need files and rights.


def files() -> dict[str, Block]:
    """The blocks that are files for other programs, by their names."""
    blocks = [block for words in sorted(CONFIGURATIONS) for block in all_blocks(words)]
    found = {block.mark: block for block in blocks}
    assert len(found) == len(blocks)
    return found


FILES = files()


def unit(setting: str) -> str:
    """The value of a setting in the unit, which has it once."""
    text = FILES["db-proxy.service"].text.replace("\\\n", "")
    [value] = re.findall(rf"^{setting}=(.*)$", text, re.MULTILINE)
    assert isinstance(value, str)
    return value


def of_pod(field: str) -> str:
    [value] = re.findall(rf"^ *{field}: (.*)$", FILES["pod.yaml"].text, re.MULTILINE)
    assert isinstance(value, str)
    return value


def of_dockerfile(instruction: str) -> list[str]:
    [words] = re.findall(
        rf"^{instruction} (\[.*\])$", FILES["Dockerfile"].text, re.MULTILINE
    )
    found = json.loads(words)
    assert isinstance(found, list)
    return found


def commands() -> dict[str, list[str]]:
    """The words behind ``trioserve`` in each of the files."""
    program, *of_unit = shlex.split(unit("ExecStart"))
    assert Path(program).name == "trioserve"
    assert of_dockerfile("ENTRYPOINT") == ["trioserve"]
    return {
        "db-proxy.service": of_unit,
        "Dockerfile": of_dockerfile("CMD"),
        "pod.yaml": json.loads(of_pod("args")),
    }


def seconds_to_stop(words: list[str]) -> float:
    """How long a server with these options may take to stop."""
    shown = invoke("help", "settings", *words)
    assert shown.exit_code == 0, shown.stderr
    stages = ("--lame-duck", "--drain", "--cleanup")
    rows = [line.split() for line in shown.stdout.splitlines()]
    return sum(parse_duration(row[1]) for row in rows if row and row[0] in stages)


def times_of_docker() -> Iterator[float]:
    for block in all_blocks("console"):
        for seconds in re.findall(
            r"^\$ docker .*(?:-timeout|-t) (\d+)", block.text, re.MULTILINE
        ):
            yield float(seconds)


def test_each_file_is_checked() -> None:
    balancers = {"haproxy.cfg", "haproxy-tls.cfg", "nginx.conf"}
    assert set(FILES) == set(commands()) | balancers


@pytest.mark.parametrize("name", sorted(commands()))
def test_a_file_has_a_command_that_is_valid(name: str) -> None:
    shown = invoke("help", "settings", *commands()[name])
    assert shown.exit_code == 0, shown.stderr


def test_a_supervisor_waits_until_a_drain_is_over() -> None:
    taken = {name: seconds_to_stop(words) for name, words in commands().items()}
    assert parse_duration(unit("TimeoutStopSec")) > taken["db-proxy.service"]
    assert float(of_pod("terminationGracePeriodSeconds")) > taken["pod.yaml"]
    given = list(times_of_docker())
    assert given
    assert min(given) > taken["Dockerfile"]


def test_the_exit_codes_of_the_unit_are_those_of_the_command() -> None:
    documented = {row[0] for row in table(ROOT / "docs" / "errors.md", "exit")}
    codes = set(unit("SuccessExitStatus").split()) | {unit("RestartPreventExitStatus")}
    assert codes == {"2", "3", "143"}
    assert {"2", "3"} <= documented
    assert any("143" in row for row in documented)


def test_the_unit_waits_for_the_file_of_the_port() -> None:
    words = shlex.split(unit("ExecStart"))
    assert words[words.index("--port-file") + 1] in unit("ExecStartPost")


@needs("systemd-analyze")
def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    """It also asks whether the programs are there, so ours is this Python's."""
    program, *_ = shlex.split(unit("ExecStart"))
    here = tmp_path / "trioserve"
    here.symlink_to(sys.executable)
    file = tmp_path / "db-proxy.service"
    file.write_text(FILES["db-proxy.service"].text.replace(program, str(here)))
    asked = ["systemd-analyze", "verify", str(file)]
    verified = subprocess.run(asked, capture_output=True, text=True)
    ours = [line for line in verified.stderr.splitlines() if "db-proxy" in line]
    assert ours == []


def as_nobody(*words: str, capability: str = "") -> list[str]:
    """This Python as a user without rights, in a network of its own."""
    user = ["--reuid=65534", "--regid=65534", "--clear-groups"]
    if capability:
        kept = f"-all,+{capability}"
        user += [f"--{kind}={kept}" for kind in ("inh-caps", "ambient-caps")]
        user += [f"--bounding-set={kept}"]
    argv = ["unshare", "--net", "setpriv", *user]
    return [*argv, sys.executable, *words]


def _can_be_nobody() -> bool:
    if os.geteuid() != 0 or not (shutil.which("unshare") and shutil.which("setpriv")):
        return False
    argv = as_nobody("-c", "import trioserve")
    return subprocess.run(argv, capture_output=True, check=False).returncode == 0


needs_nobody = pytest.mark.skipif(
    not _can_be_nobody(),
    reason="runs this Python as another user, with unshare(1) and setpriv(1), as root",
)


@needs_nobody
def test_a_user_may_listen_below_1024_with_an_ambient_capability() -> None:
    """As AmbientCapabilities=CAP_NET_BIND_SERVICE gives it."""
    words = ["-m", "trioserve", "echo", ":443"]
    with spawned(as_nobody(*words, capability="net_bind_service")) as process:
        assert process.stderr
        Lines(process.stderr).until("event=listening")
        process.terminate()
        assert process.wait(PATIENCE) == 0


@needs_nobody
def test_a_user_may_not_listen_below_1024_without_it() -> None:
    words = ["-m", "trioserve", "echo", ":443"]
    with spawned(as_nobody(*words)) as process:
        assert process.stderr
        error = Lines(process.stderr).until("trioserve: error: ")
        assert process.wait(PATIENCE) == 1
    said = error.strip().removeprefix("trioserve: error: ")
    assert f"`{said}`" in SYSTEMD.read_text().replace("\n", " ")


def test_the_page_on_resets_has_each_reason_once() -> None:
    page = ROOT / "docs" / "resets.md"
    text = page.read_text()
    tables = re.split(r"^## ", text, flags=re.MULTILINE)[1:3]
    rows = [line for part in tables for line in part.splitlines() if line[:3] == "| `"]
    found = [name for row in rows for name in re.findall(r"`(\w+)`", row.split("|")[1])]
    assert sorted(found) == sorted(map(str, Reason))
