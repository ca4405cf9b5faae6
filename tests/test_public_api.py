"""The names that `import trioserve` gives, and the time it takes."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import trioserve
import trioserve.testing
from trioserve import faults

REFERENCE = Path(__file__).parents[1] / "docs" / "reference.md"


def test_the_exports_are_all_and_those_of_the_reference() -> None:
    exports = {
        name
        for name, value in vars(trioserve).items()
        if not name.startswith("_")
        and (value is faults or not isinstance(value, ModuleType))
    }
    said = list(trioserve.__all__)
    assert exports - {"annotations"} == set(said)
    assert said == sorted(said)
    assert sorted(documented("trioserve")) == sorted(said)


@pytest.mark.parametrize("module", [faults, trioserve.testing])
def test_the_exports_of_a_module_are_those_of_the_reference(module: ModuleType) -> None:
    assert sorted(documented(module.__name__)) == sorted(module.__all__)


#: Names of types, which the reference says what they are.
_ALIASES = {"Address", "Collector", "Handler", "Listener", "TargetList"}


def documented(section: str) -> list[str]:
    """The names in the tables below this heading of the reference."""
    headings = re.split(r"^##? (.*)$", REFERENCE.read_text(), flags=re.MULTILINE)
    text = headings[headings.index(section) + 1]
    return re.findall(r"^\| `(\w+)`", text, re.MULTILINE)


@pytest.mark.parametrize(
    ("module", "name"),
    [
        (module, name)
        for module in (trioserve, faults)
        for name in module.__all__
        if name not in _ALIASES
    ],
)
def test_each_export_has_a_docstring(module: ModuleType, name: str) -> None:
    assert inspect.getdoc(getattr(module, name))


def test_importing_it_imports_trio_and_the_standard_library_only() -> None:
    lines = (
        "import sys, trio",
        "before = set(sys.modules)",
        "import trioserve",
        "new = {name.split('.')[0] for name in set(sys.modules) - before}",
        "print(*sorted(new - sys.stdlib_module_names))",
    )
    seen = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert seen.stdout.split() == ["trioserve"]
