"""What `import trioserve` gives, and what it costs."""

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

REFERENCE = Path(__file__).parents[1] / "docs" / "reference.md"


def test_what_it_exports_is_what_it_says_and_what_the_reference_has() -> None:
    exports = {
        name
        for name, value in vars(trioserve).items()
        if not name.startswith("_") and not isinstance(value, ModuleType)
    }
    said = list(trioserve.__all__)
    page = REFERENCE.read_text().partition("## trioserve.testing")[0]
    documented = re.findall(r"^\| `(\w+)`", page, re.MULTILINE)
    assert exports - {"annotations"} == set(said)
    assert said == sorted(said)
    assert sorted(documented) == sorted(said)


def test_what_the_test_kit_exports_is_what_the_reference_has() -> None:
    said = list(trioserve.testing.__all__)
    page = REFERENCE.read_text().partition("## trioserve.testing")[2]
    documented = re.findall(r"^\| `(\w+)`", page, re.MULTILINE)
    assert sorted(documented) == sorted(said)


#: Names of types, which the reference says what they are.
_ALIASES = {"Address", "Collector", "Handler", "Listener"}


@pytest.mark.parametrize("name", sorted({*trioserve.__all__} - _ALIASES))
def test_it_says_what_it_is(name: str) -> None:
    assert inspect.getdoc(getattr(trioserve, name))


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
