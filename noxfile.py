"""Everything there is to run on trioserve; `nox -l` lists it, `nox` runs it."""

from __future__ import annotations

from pathlib import Path

import nox

nox.options.default_venv_backend = "venv"
nox.options.reuse_venv = "yes"

PYPROJECT = nox.project.load_toml("pyproject.toml")
# Polling is for tests under a virtual clock; handlers of tests may have no await;
# task_status is passed on.
ASYNC_RULES = ["--enable=ASYNC1", "--disable=ASYNC110,ASYNC114,ASYNC124,ASYNC128"]
# Most tests wait for something most of the time: more than there are cores.
AT_ONCE = ["-n", "4", "--dist", "worksteal"]
CODE = ["src", "tests", "examples", "bench", "noxfile.py"]
SITE = ["docs/conf.py", "docs/_ext"]


def group(name: str) -> list[str]:
    return list(nox.project.dependency_groups(PYPROJECT, name))


@nox.session
def lint(session: nox.Session) -> None:
    """Style, the Trio rules of flake8-async, and whether the newsfragments build."""
    session.install(*group("lint"))
    session.run("ruff", "check", *CODE, *SITE)
    session.run("ruff", "format", "--check", *CODE, *SITE)
    files = [str(file) for top in CODE[:4] for file in sorted(Path(top).rglob("*.py"))]
    session.run("flake8-async", *ASYNC_RULES, *files)
    version = PYPROJECT["project"]["version"]
    session.run("towncrier", "build", "--draft", "--version", version, silent=True)


@nox.session
def types(session: nox.Session) -> None:
    """Two strict type checkers."""
    session.install(*group("types"), ".")
    session.run("mypy", *CODE)
    session.run("pyright")


@nox.session
def typing_compat(session: nox.Session) -> None:
    """A user who still has trio-typing installed, whose stubs hide Trio's types."""
    session.install(*group("typing-compat"), ".")
    sample = "tests/typing_compat/consumer.py"
    session.run("mypy", "--strict", "--config-file=", sample)
    session.run("python", "-W", "error", sample)


@nox.session
def lowest(session: nox.Session) -> None:
    """The tests, with the lowest versions of the dependencies that are allowed."""
    lowest = [d.replace(">=", "==") for d in PYPROJECT["project"]["dependencies"]]
    session.install(*group("test"), ".", *lowest)
    session.run("pytest", *AT_ONCE, *session.posargs)


@nox.session(default=False)
def docs(session: nox.Session) -> None:
    """The site, into build/docs; and every block of README, docs and examples runs."""
    session.install(*group("docs"), ".")
    strictly = ["--fail-on-warning", "--keep-going", "--nitpicky", "--quiet"]
    session.run("sphinx-build", *strictly, "--builder", "html", "docs", "build/docs")
    session.run("pytest", "tests/test_docs.py", *session.posargs)


@nox.session(default=False)
def bench(session: nox.Session) -> None:
    """The proxy beside its peers; without arguments, the page of docs/performance."""
    session.install(*group("bench"), ".")
    session.run("python", "-m", "bench", *(session.posargs or ["--page"]))


@nox.session(default=False)
def mutations(session: nox.Session) -> None:
    """Mistakes in a copy of the package, each of which tests must notice."""
    session.install(*group("test"), ".")
    session.run("python", "tests/mutations.py", *session.posargs)


@nox.session
def tests(session: nox.Session) -> None:
    """The tests, and whether they run every branch of the package.

    Without those that take long and run no line that others don't: ``lowest`` has
    them, and coverage would make them twice as long.
    """
    session.install(*group("test"), ".")
    session.run("coverage", "erase")
    some = ["-m", "not long"]
    session.run("coverage", "run", "-m", "pytest", *AT_ONCE, *some, *session.posargs)
    session.run("coverage", "combine", "--quiet")
    session.run("coverage", "report")
