"""The map of the package: what may import what. Arrows point down, never sideways."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import trioserve

SOURCE = Path(__file__).parents[1] / "src" / "trioserve"

# From the top to the bottom. A module imports from rows below its own.
ROWS = """
__main__
app testing
__init__
_echo _proxy _by_server_name
_proxy_handler
faults
_serve _relay
_serving _relay_engine _relay_tasks
_accept_loops
_socket_acceptor _stream_acceptor _dispatch _relay_rules _engine_run
_acceptor _ledger _relay_deadlines _layered_pump
_connection _handshake _record _refusals _relay_options _relay_mirror _engine_pump
_checks _proxy_header _tls_layer _polled_pump _handshake_pump _watched_dial
_lifecycle _engine _dial
_attempts _upstream
_lifecycle_state _blame _closing _deadlines _listeners _pump _race _factory
_admission _idle _shared_socket _stream_transport _timers _collector _drain \
_connect _discovery
_socket_transport _origins _endpoints _tls_transport
_socket_state _attachments _balance _tls_state
_transport _layers _pipes _accept_errors _handlers _names _endpoint _tls_facts \
_target_lists
_transport_state _access _targets _certificates _tls_client
_server_names _tls_options _proxy_facts _file_state _name_servers
_address _complaints _options _rates _report _results _tasks _tcp _handshakes _task_set
_arguments _describe _reason wire
_errors
"""
ROW = {
    name: -number
    for number, row in enumerate(ROWS.strip().splitlines())
    for name in row.split()
}


def imports(module: str, source: str) -> set[str]:
    """The modules of the package that a source imports, by dotted name."""
    package = ["trioserve", *module.split(".")][:-1]
    found = set[str]()
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import():
                found |= {alias.name for alias in node.names}
            case ast.ImportFrom():
                base = package[: len(package) + 1 - node.level] if node.level else []
                base = [*base, *(node.module or "").split(".")]
                inside = [part for part in base if part]
                for alias in node.names:
                    deeper = [*inside, alias.name]
                    is_module = alias.name.startswith("_") or _is_folder(inside)
                    found.add(".".join(deeper if is_module else inside))
            case _:
                pass
    return {name for name in found if name.split(".")[0] == "trioserve"}


def _is_folder(parts: list[str]) -> bool:
    # An imported name may be a module of the folder or one of its public names.
    return parts[:1] == ["trioserve"] and SOURCE.joinpath(*parts[1:]).is_dir()


def violations(sources: dict[str, str]) -> list[str]:
    """The wrong arrows between modules, each in a few words."""
    wrong = list[str]()
    for module, source in sorted(sources.items()):
        top = module.split(".")[0]
        if top not in ROW:
            wrong.append(f"{module} is in no row")
            continue
        for name in sorted(imports(module, source)):
            target = [*name.split(".")[1:], ""][0]
            if top == target and top in ("app", "faults", "testing", "wire"):
                continue
            is_private = any(part.startswith("_") for part in name.split("."))
            if top in ("app", "testing") and is_private:
                wrong.append(f"{module} uses {name}, which is not public")
                continue
            if target not in ROW:  # a public name
                target = "__init__"
            if ROW[target] >= ROW[top]:
                way = "sideways" if ROW[target] == ROW[top] else "up"
                wrong.append(f"{module} -> {target} points {way}")
    return wrong


def package_sources() -> dict[str, str]:
    return {
        ".".join(file.relative_to(SOURCE).with_suffix("").parts): file.read_text()
        for file in SOURCE.rglob("*.py")
    }


def test_imports_point_down() -> None:
    assert violations(package_sources()) == []


#: Folders with a map in the docstring of their __init__.
FOLDERS = sorted(
    ".".join(file.parent.relative_to(SOURCE).parts)
    for file in SOURCE.glob("*/**/__init__.py")
)


def rows_of(docstring: str) -> dict[str, int]:
    """The rows of the map in a docstring: names with three spaces between them."""
    rows = re.findall(r"^    (\w+(?:   \w+)*)$", docstring, re.MULTILINE)
    return {name: number for number, row in enumerate(rows) for name in row.split()}


def violations_within(folder: str, sources: dict[str, str]) -> list[str]:
    """What is wrong with the arrows between the modules and folders of a folder.

    Folders further inside have maps of their own, so that what is in one of them
    counts as that folder here.
    """
    map_of_it = ast.get_docstring(ast.parse(sources[f"{folder}.__init__"])) or ""
    rows, wrong = rows_of(map_of_it), list[str]()
    for module, source in sorted(sources.items()):
        if not module.startswith(f"{folder}.") or module == f"{folder}.__init__":
            continue
        inside = module.removeprefix(f"{folder}.").split(".")[0]
        if inside not in rows:
            wrong.append(f"{module} is in no row")
            continue
        for name in sorted(imports(module, source)):
            other = name.removeprefix(f"trioserve.{folder}.").split(".")[0]
            if other in (name.split(".")[0], inside):
                continue
            if other not in rows or rows[other] >= rows[inside]:
                wrong.append(f"{module} -> {name} does not point down")
    return wrong


@pytest.mark.parametrize("folder", FOLDERS)
def test_imports_within_a_folder_point_down(folder: str) -> None:
    assert violations_within(folder, package_sources()) == []


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_row_of_a_folder_is_in_it(folder: str) -> None:
    place = SOURCE.joinpath(*folder.split("."))
    there = {file.stem for file in place.glob("*.py")}
    there |= {file.parent.name for file in place.glob("*/__init__.py")}
    text = ast.get_docstring(ast.parse((place / "__init__.py").read_text()))
    assert rows_of(text or "").keys() == there - {"__init__"}


def test_protocols_import_nothing_of_the_library_and_open_nothing() -> None:
    """Bytes in, values out."""
    for module, source in package_sources().items():
        if module.startswith("wire."):
            for name in imports(module, source):
                assert name.startswith("trioserve.wire.")
            assert not re.search(
                r"^ *(import|from) (trio|time|asyncio)\b", source, re.MULTILINE
            )
            assert not re.search(r"^ *import socket\b", source, re.MULTILINE)


@pytest.mark.parametrize("module", ["_units", "_values", "_grammar", "_schedule"])
def test_the_grammar_and_schedule_of_faults_do_not_import_trio(module: str) -> None:
    """Nor anything else of the library except the checks of arguments."""
    source = (SOURCE / "faults" / f"{module}.py").read_text()
    assert not re.search(r"^ *(import|from) trio\b", source, re.MULTILINE)
    for name in imports(f"faults.{module}", source):
        assert name.startswith(("trioserve._arguments", "trioserve.faults."))


def test_echo_is_written_with_public_names() -> None:
    """A handler of your own can do what it does; it only checks its argument itself."""
    tree = ast.parse((SOURCE / "_echo.py").read_text())
    imported = [
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.level
        for alias in node.names
    ]
    assert set(imported) <= {*trioserve.__all__, "check_type"}
    used = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert not [name for name in used if name.startswith("_")]


def test_every_row_is_in_the_tree() -> None:
    assert ROW.keys() == {name.split(".")[0] for name in package_sources()}


def test_the_documented_map_is_this_one() -> None:
    page = (SOURCE.parents[1] / "docs" / "design.md").read_text()
    cells = re.findall(r"^\|[^|]*\| (`(?:app|faults|_).*?) \|", page, re.MULTILINE)
    documented = [re.findall(r"`(\w+)`", cell) for cell in cells]
    rows = [row.split() for row in ROWS.strip().splitlines()]
    assert documented == [row for row in rows if row[0][:2] != "__"]


@pytest.mark.parametrize(
    ("module", "source", "complaint"),
    [
        ("_transport", "from ._serve import serve", "_transport -> _serve points up"),
        (
            "_stream_transport",
            "from . import _timers",
            "_stream_transport -> _timers points sideways",
        ),
        ("_report", "import trioserve", "_report -> __init__ points up"),
        ("_proxy", "from . import echo", "_proxy -> __init__ points up"),
        ("_serve", "from .app._log import x", "_serve -> app points up"),
        ("_serve", "def f():\n  import trioserve.app", "_serve -> app points up"),
        ("_stray", "", "_stray is in no row"),
        (
            "app._cli",
            "from .._serve import serve",
            "app._cli uses trioserve._serve, which is not public",
        ),
        (
            "app._cli",
            "from trioserve import _serve",
            "app._cli uses trioserve._serve, which is not public",
        ),
        (
            "testing._network",
            "from trioserve.faults._schedule import Schedule",
            "testing._network uses trioserve.faults._schedule, which is not public",
        ),
        (
            "faults._grammar",
            "from trioserve._proxy import proxy",
            "faults._grammar -> _proxy points up",
        ),
        ("_serve", "from .faults import Faults", "_serve -> faults points up"),
        (
            "app.__init__",
            "import trioserve._relay",
            "app.__init__ uses trioserve._relay, which is not public",
        ),
        (
            "app.output._log",
            "from ..._serve import serve",
            "app.output._log uses trioserve._serve, which is not public",
        ),
    ],
)
def test_a_wrong_arrow_is_found(module: str, source: str, complaint: str) -> None:
    assert violations({module: source}) == [complaint]


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("_serve", "from ._reason import Reason\nfrom . import _timers\nimport trio"),
        ("__init__", "from ._serve import serve"),
        ("app._cli", "from ._log import x\nfrom trioserve import serve\nimport click"),
        ("app.__init__", "from ._cli import main"),
        ("app._cli", "from trioserve.faults import Faults"),
        ("__init__", "from . import faults"),
        ("_proxy_handler", "from .faults._relay import FaultyRelay"),
        ("faults._relay", "from trioserve._relay import TaskRelay"),
        ("__main__", "from trioserve.app import main"),
    ],
)
def test_a_right_arrow_is_right(module: str, source: str) -> None:
    assert violations({module: source}) == []


MAP = {
    "app.__init__": '''"""A folder.

The map:

    _values
    output   reports
    _cli
"""''',
}


@pytest.mark.parametrize(
    ("module", "source", "complaints"),
    [
        ("app._cli", "from ._values import x", []),
        ("app._cli", "from .output._log import x", []),
        ("app.output._log", "from .._values import x\nimport click", []),
        ("app.output._log", "from ._screen import x\nfrom trioserve import y", []),
        (
            "app._values",
            "from . import output",
            ["app._values -> trioserve.app.output does not point down"],
        ),
        (
            "app.output._log",
            "from trioserve.app.reports._records import x",
            ["app.output._log -> trioserve.app.reports._records does not point down"],
        ),
        (
            "app.output._log",
            "from .. import _cli",
            ["app.output._log -> trioserve.app._cli does not point down"],
        ),
        (
            "app.output.__init__",
            "from .._cli import x",
            ["app.output.__init__ -> trioserve.app._cli does not point down"],
        ),
        ("app._stray", "", ["app._stray is in no row"]),
    ],
)
def test_a_wrong_arrow_within_a_folder_is_found(
    module: str, source: str, complaints: list[str]
) -> None:
    assert violations_within("app", MAP | {module: source}) == complaints


#: Attributes with an underscore that are used on another object than self,
#: each for a reason.
FOREIGN = {
    "_connection": {
        "_lifecycle",
        "_transport",
    },  # of its own class, in a function beside it
    "_errors": {"_getframe"},  # Python's, documented
    "_names": {"_replace"},  # of named tuples, documented
    "_origins": {"_replace"},
    "app._run": {"_exit"},  # Python's, documented
    "testing.runs._hang": {"_current_frames"},  # Python's, documented
    "testing.runs._lines": {"_getframe"},
    # Trio has no public way to seed its scheduler.
    "testing.runs._schedule": {
        "_ALLOW_DETERMINISTIC_SCHEDULING",
        "_core",
        "_r",
        "_run",
    },
}


def foreign_private_names(source: str) -> set[str]:
    """Names with one underscore that are not read from self, cls or super()."""
    found = set[str]()
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Attribute) or not re.match(r"_[^_]", node.attr):
            continue
        match node.value:
            case ast.Name(id="self" | "cls"):
                continue
            case ast.Call(func=ast.Name(id="super")):
                continue
            case _:
                found.add(node.attr)
    return found


def test_no_module_uses_private_names_of_another() -> None:
    found = {
        module: names
        for module, source in package_sources().items()
        if (names := foreign_private_names(source))
    }
    assert found == FOREIGN


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("self._x; cls._x; super()._x; x.__class__", set[str]()),
        ("conn._x", {"_x"}),
        ("self.conn._x.y", {"_x"}),
        ("f()._x", {"_x"}),
    ],
)
def test_a_private_name_of_another_is_found(source: str, names: set[str]) -> None:
    assert foreign_private_names(source) == names
