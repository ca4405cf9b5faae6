"""The documentation runs.

Every Python block of README.md and docs/ is a program, or tests, and is run. A block
that is marked ``continued`` goes on with the names of those before it; one that is
marked with a name is a file of that name. A text block right after it is what it
prints, where ``...`` matches anything. Every file of examples/ is run, and ends. A
command in a console block has the options that it is given. The files for other
programs are checked by test_deployment.py and real/test_load_balancers.py.
"""

from __future__ import annotations

import contextlib
import dataclasses
import doctest
import functools
import gc
import io
import itertools
import math
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import trioserve
from app.invoked import invoke
from shell import PATIENCE, environment, free_ports, replaced

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

#: Languages of blocks that are files for other programs; each has a file's name.
CONFIGURATIONS = frozenset({"dockerfile", "nginx", "none", "systemd", "yaml"})

EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


@dataclasses.dataclass(frozen=True)
class Block:
    page: Path
    line: int
    language: str
    text: str
    output: str | None = None
    mark: str = ""
    before: Block | None = None

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(page: Path, language: str) -> list[Block]:
    """The fenced blocks of a page, each with the output below it."""
    text = page.read_text()
    fences = re.compile(r"^```(\w+)(.*?)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
    found = list(fences.finditer(text))
    made = list[Block]()
    for fence, after in itertools.zip_longest(found, found[1:]):
        output = None
        if (
            after
            and after[1] == "text"
            and not text[fence.end() : after.start()].strip()
        ):
            output = after[3]
        line = text.count("\n", 0, fence.start(3)) + 1
        mark = fence[2].strip()
        before = next((b for b in reversed(made) if b.language == fence[1]), None)
        if mark != "continued":
            before = None
        made.append(Block(page, line, fence[1], fence[3], output, mark, before))
    return [block for block in made if block.language == language]


def all_blocks(language: str) -> list[Block]:
    return [block for page in PAGES for block in blocks(page, language)]


def commands() -> list[list[str]]:
    """The words of each ``$ ...trioserve ...`` line of the console blocks.

    Those of a session in a terminal are left out: they are run.
    """
    texts = (block.text for block in all_blocks("console"))
    lines = "".join(t for t in texts if not t.startswith("# terminal")).splitlines()
    found = list[list[str]]()
    for line in lines:
        for command in (
            re.split(r"&&|\|", line.removeprefix("$ ")) if line[:2] == "$ " else ()
        ):
            words = shlex.split(command, comments=True)
            if words and Path(words[0]).name == "trioserve":
                found.append(words[1:])
    return found


@functools.cache
def help_of(*subcommand: str) -> str:
    shown = subprocess.run(
        [sys.executable, "-m", "trioserve", *subcommand, "--help"],
        capture_output=True,
        text=True,
        check=True,
    )
    return shown.stdout


def same_output(seen: str, said: str) -> bool:
    checker = doctest.OutputChecker()
    return checker.check_output(said, seen, doctest.ELLIPSIS)


def table(page: Path, first_column: str) -> list[tuple[str, ...]]:
    """The rows of the table whose first column has this heading."""
    lines = iter(page.read_text().splitlines())
    for line in lines:
        if line.startswith(f"| {first_column} |"):
            break
    next(lines)
    rows = itertools.takewhile(lambda line: line.startswith("|"), lines)
    return [tuple(cell.strip() for cell in row.split("|")[1:-1]) for row in rows]


def has_tests(block: Block) -> bool:
    return "def test_" in block.text and not block.mark


def earlier(block: Block) -> list[Block]:
    """The blocks that this one continues."""
    return [*earlier(block.before), block.before] if block.before else []


def execute(block: Block, names: dict[str, object]) -> str:
    """Run a block, and return what it prints. Those that it continues have run."""
    name, above = str(block.page), block.line - 1
    first = [*earlier(block), block][0]
    if first.mark:
        # As in a reader's file, with two empty lines between the blocks.
        name, above = first.mark, sum(b.text.count("\n") + 2 for b in earlier(block))
    code = compile("\n" * above + block.text, name, "exec")
    with contextlib.redirect_stdout(io.StringIO()) as stdout:
        exec(code, names)
    return stdout.getvalue()


TESTS = [block for block in all_blocks("python") if has_tests(block)]
ALL_PROGRAMS = [block for block in all_blocks("python") if not has_tests(block)]
#: The last block of each program.
PROGRAMS = [
    block
    for block in ALL_PROGRAMS
    if all(block is not other.before for other in ALL_PROGRAMS)
]
#: The programs that check handlers, for seconds each.
CHECKS = [
    block
    for block in PROGRAMS
    if any("check_" in part.text for part in [*earlier(block), block])
]


@pytest.mark.parametrize(
    "block", [block for block in PROGRAMS if block not in CHECKS], ids=str
)
def test_a_program_prints_what_it_says(block: Block) -> None:
    _run_program(block)


@pytest.mark.long("whole checks of handlers")
@pytest.mark.parametrize("block", CHECKS, ids=str)
def test_a_check_prints_what_the_page_says(block: Block) -> None:
    _run_program(block)


def _run_program(block: Block) -> None:
    names: dict[str, object] = {"__name__": "__main__"}
    for part in [*earlier(block), block]:
        printed = execute(part, names)
        assert part.output is None or same_output(printed, part.output), part
    names.clear()
    gc.collect()  # a resource left open is this program's fault


@pytest.mark.long("a pytest of its own for each block")
@pytest.mark.parametrize("block", TESTS, ids=str)
def test_a_test_passes(block: Block, tmp_path: Path) -> None:
    file = tmp_path / "test_block.py"
    file.write_text(block.text)
    command = [sys.executable, "-m", "pytest", "-W", "error", "-o", "trio_mode=true"]
    ran = subprocess.run([*command, file], cwd=tmp_path, capture_output=True, text=True)
    assert re.search(r"^=+ 1 passed in", ran.stdout, re.MULTILINE), ran.stdout


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_an_example_is_short_and_runs(
    example: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert len(example.read_text().splitlines()) <= 40
    runpy.run_path(str(example), run_name="__main__")
    gc.collect()
    assert capfd.readouterr().out


def test_every_block_is_checked() -> None:
    every = [
        fence[1]
        for page in PAGES
        for fence in re.finditer(
            r"^ *```(.*)\n(?:.*\n)*? *```$", page.read_text(), re.MULTILINE
        )
    ]
    checked = {"python", "console", "mermaid", *CONFIGURATIONS}
    outputs = sum(block.output is not None for block in all_blocks("python"))
    consoles = sum(block.output is not None for block in all_blocks("console"))
    assert {words.split()[0] for words in every} <= checked | {"text"}
    assert every.count("text") == outputs + consoles


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_a_command_has_the_options_it_is_given(words: list[str]) -> None:
    subcommand = [word for word in words[:1] if not word.startswith("-")]
    known = re.findall(r"(?<![\w-])--?[a-z][a-z-]*", help_of(*subcommand))
    given = [re.sub("=.*", "", w) for w in words if re.match("--?[a-z]", w)]
    assert set(given) <= set(known)


def test_the_options_for_settings_of_haproxy_exist() -> None:
    rows = table(ROOT / "docs" / "proxying.md", "HAProxy, `mode tcp`")
    given = {option for row in rows for option in re.findall("--[a-z-]+", row[1])}
    assert given <= set(re.findall("--[a-z-]+", help_of("proxy")))


@pytest.mark.parametrize("block", all_blocks("mermaid"), ids=str)
def test_a_diagram_can_be_drawn_for_the_site(block: Block) -> None:
    site = runpy.run_path(str(ROOT / "docs" / "_ext" / "mermaid_dot.py"))
    assert site["as_dot"](block.text).startswith("digraph {")


def test_every_page_is_in_the_index() -> None:
    index = (ROOT / "docs" / "index.md").read_text()
    pages = {page.name for page in PAGES if page.parent.name == "docs"}
    linked = re.findall(r"\]\(([\w-]+\.md)\)", index)
    assert sorted(linked) == sorted(pages - {"index.md"})


def test_the_index_calls_each_page_by_its_title() -> None:
    """The navigation of the site has the words of the index."""
    index = (ROOT / "docs" / "index.md").read_text()
    links = re.findall(r"^- \[([^]]+)\]\(([\w/-]+\.md)\)", index, re.MULTILINE)
    titles = [
        (ROOT / "docs" / page).read_text().partition("\n")[0][2:] for _, page in links
    ]
    assert [text for text, _ in links] == titles


def test_a_link_leads_to_a_file() -> None:
    others = ["CONTRIBUTING.md", "newsfragments/README.md"]
    for page in [*PAGES, *(ROOT / name for name in others)]:
        fenced = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
        prose = fenced.sub("", page.read_text())
        for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", prose):
            assert "://" in target or (page.parent / target).exists(), (page, target)


def test_ci_runs_the_command_of_the_readme() -> None:
    lines = [block.text for block in blocks(ROOT / "README.md", "console")]
    commands = [line[2:] for text in lines for line in text.splitlines()]
    [command] = [line for line in commands if "nox" in line]
    assert f"({command})" in (ROOT / ".ci" / "run").read_text()


def test_the_table_of_defaults_is_the_defaults() -> None:
    rows = table(ROOT / "docs" / "limits-and-timeouts.md", "option")
    documented = {row[0].strip("`"): row[1] for row in rows}
    real = dict[str, str]()
    for options in (trioserve.Limits, trioserve.Timeouts):
        for field in dataclasses.fields(options):
            match field.default:
                case float() as seconds:
                    text = "∞" if math.isinf(seconds) else f"{seconds:g}"
                case dataclasses.MISSING:
                    text = "min(10000, (open files - 64) // 4)"
                case other:
                    text = f"`{other!r}`".replace('"', "'")
            real[field.name] = text
    assert documented == real


def report_because_of(
    reason: trioserve.Reason, side: str, phase: trioserve.Phase
) -> trioserve.ConnectionReport:
    return trioserve.ConnectionReport(
        id=1,
        listener="127.0.0.1:7",
        peer="127.0.0.1:50000",
        local="127.0.0.1:7",
        accepted_at=0,
        duration=0,
        reason=reason,
        phase=phase,
        waited_for="target" if side == "target" else "client",
    )


def table_of_reasons() -> list[tuple[str, ...]]:
    """Each reason, its outcome, HAProxy's letters for it, and its sentence."""
    rows = list[tuple[str, ...]]()
    for reason in trioserve.Reason:
        states = {
            report_because_of(reason, side, phase).termination_state: None
            for side in ("client", "target")
            for phase in trioserve.Phase
        }
        # One state for all phases, or a letter to put before that of the phase.
        words = states if len(states) == 1 else dict.fromkeys(s[0] for s in states)
        code = " or ".join(f"`{word}`" for word in words)
        rows.append((f"`{reason}`", f"`{reason.outcome}`", code, reason.sentence))
    return rows


def test_the_table_of_reasons_is_the_reasons() -> None:
    documented = table(ROOT / "docs" / "reports.md", "reason")
    assert documented == table_of_reasons()


def test_the_table_of_phases_is_the_phases() -> None:
    documented = table(ROOT / "docs" / "reports.md", "phase")
    real = [(f"`{phase}`", f"`{phase.letter}`") for phase in trioserve.Phase]
    assert [row[:2] for row in documented] == real


@pytest.mark.parametrize(
    ("page", "heading", "value"),
    [
        ("reports.md", "field", trioserve.ConnectionReport),
        ("reports.md", "statistic", trioserve.Statistics),
        ("draining.md", "field", trioserve.DrainSummary),
        ("proxying.md", "field", trioserve.RelayResult),
    ],
)
def test_a_table_of_fields_is_complete(page: str, heading: str, value: type) -> None:
    rows = table(ROOT / "docs" / page, heading)
    documented = {name for row in rows for name in re.findall(r"`(\w+)`", row[0])}
    fields = {field.name for field in dataclasses.fields(value)}
    properties = {n for n, v in vars(value).items() if isinstance(v, property)}
    assert documented == fields | properties


BAD_INPUT = [
    (command.strip("`"), said.replace("\\*", "*"), int(code))
    for command, said, code in table(ROOT / "docs" / "errors.md", "command")
    if code
]


def usage_error(command: str) -> tuple[list[str], dict[str, str]] | None:
    """The words and the environment of a command that ends before it needs a process.

    None if the command needs a shell, or opens something.
    """
    assigned, *words = re.split(r"(?:^|(?<= ))trioserve ", command)
    if len(words) != 1 or re.search(r"[;>$]", command):
        return None
    return shlex.split(words[0]), dict(v.split("=", 1) for v in shlex.split(assigned))


@pytest.mark.parametrize(("command", "said", "code"), BAD_INPUT)
def test_wrong_input_gets_the_line_and_exit_code_of_the_page(
    command: str, said: str, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ports = free_ports(["8080"])
    command, said = replaced(command, ports), replaced(said, ports)
    if code == 2 and (pasted := usage_error(command)) is not None:
        words, variables = pasted
        monkeypatch.chdir(tmp_path)
        result = invoke(*words, **variables)
        seen = result.exit_code, result.stdout, result.stderr
    else:
        process = subprocess.run(
            ["bash", "-c", command],
            cwd=tmp_path,
            env=environment(tmp_path),
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
        seen = process.returncode, process.stdout, process.stderr
    assert seen[:2] == (code, "")
    assert same_output(seen[2], f"trioserve: error: {said}\n"), seen[2]
    assert seen[2].count("\n") == 1


def test_output_is_compared() -> None:
    assert same_output("1 of 12\n", "1 of ...\n")
    assert not same_output("2 of 12\n", "1 of ...\n")
