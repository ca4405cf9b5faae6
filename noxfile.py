"""Everything there is to run on trioserve: `nox -l` lists it.

`nox` runs what each change needs, in minutes; CI runs `typing_compat`, `lowest`,
`docs` and `proofs`, too.
"""

from __future__ import annotations

import os

import nox

nox.options.default_venv_backend = "virtualenv"  # takes a second, venv eight
nox.options.reuse_venv = "yes"
nox.options.error_on_missing_interpreters = False  # they are skipped, in CI too
nox.options.download_python = "never"

PYPROJECT = nox.project.load_toml("pyproject.toml")
# Polling is for tests under a virtual clock; handlers of tests may have no await;
# task_status is passed on.
ASYNC_RULES = ["--enable=ASYNC1", "--disable=ASYNC110,ASYNC114,ASYNC124,ASYNC128"]
QUICK = "not long and not nightly and not fuzz"
CODE = ["src", "tests", "examples", "bench", "noxfile.py"]
SITE = ["docs/conf.py", "docs/_ext"]
# flake8-async takes half a second for a file; ruff has many of its rules, for all.
SERVING = ["src", "examples", "bench"]
# What can differ from one version of a dependency to the next.
DEPENDENT = [
    # Trio: scheduling, cancellation, streams, sockets, and what the kit replaces.
    "tests/test_accept_loops.py",
    "tests/test_acceptors.py",
    "tests/test_admission.py",
    "tests/test_collector.py",
    "tests/test_connect.py",
    "tests/test_connection.py",
    "tests/test_dial.py",
    "tests/test_echo.py",
    "tests/test_handshake.py",
    "tests/test_listeners.py",
    "tests/test_nurseries.py",
    "tests/test_pipes.py",
    "tests/test_proxy.py",
    "tests/test_proxy_header.py",
    "tests/test_public_api.py",
    "tests/test_race.py",
    "tests/test_rates.py",
    "tests/test_send_proxy.py",
    "tests/test_serve.py",
    "tests/test_socket_options.py",
    "tests/test_socket_state.py",
    "tests/test_socket_transport.py",
    "tests/test_stream_transport.py",
    "tests/test_timers.py",
    "tests/test_transport.py",
    "tests/testing/network",
    "tests/testing/runs",
    "tests/testing/serving",
    # click: options, messages, completion.
    "tests/app/test_cli.py",
    "tests/app/test_completion.py",
    "tests/app/test_fault_options.py",
    "tests/app/test_loops.py",
    "tests/app/test_network_options.py",
    "tests/app/test_options.py",
    "tests/app/test_values.py",
    # idna: names.
    "tests/app/test_lookup.py",
    "tests/test_address.py",
    "tests/test_names.py",
]


def group(name: str) -> list[str]:
    return list(nox.project.dependency_groups(PYPROJECT, name))


def install(session: nox.Session, name: str, *more: str) -> None:
    """Install a group, and more. Most of its modules are never imported, so pip
    compiles none.
    """
    session.install("--no-compile", *group(name), *more)


def pytest(
    session: nox.Session,
    marks: str,
    *files: str,
    under: tuple[str, ...] = (),
) -> None:
    """Run the tests with these marks, in all files or in these."""
    # Most tests wait for something most of the time: more processes than cores. pytest
    # keeps the asserts that it has rewritten, which takes each process 13 s.
    session.run(
        *(*under, "pytest", "-n", "4", "--dist", "worksteal", "--durations", "25"),
        *("-m", marks, *(session.posargs or files)),
        env={"PYTHONDONTWRITEBYTECODE": ""},
    )


@nox.session
def lint(session: nox.Session) -> None:
    """Style, the Trio rules of flake8-async, and whether the newsfragments build."""
    install(session, "lint")
    session.run("ruff", "check", *CODE, *SITE)
    session.run("ruff", "format", "--check", *CODE, *SITE)
    find = f"grep -rlZ --include='*.py' -E 'async |await ' {' '.join(SERVING)}"
    check = f"xargs -0 -n 30 -P 2 flake8-async {' '.join(ASYNC_RULES)}"
    session.run("sh", "-c", f"{find} | {check}", external=True)
    version = PYPROJECT["project"]["version"]
    session.run("towncrier", "build", "--draft", "--version", version, silent=True)


@nox.session
def types(session: nox.Session) -> None:
    """Two strict type checkers."""
    install(session, "types", ".")
    both = f"printf '%s\\0' 'mypy {' '.join(CODE)}' pyright | xargs -0 -n 1 -P 2 sh -c"
    session.run("sh", "-c", both, external=True)


@nox.session(default=False)
def typing_compat(session: nox.Session) -> None:
    """A user who still has trio-typing installed, whose stubs hide Trio's types."""
    install(session, "typing-compat", ".")
    sample = "tests/typing_compat/consumer.py"
    session.run("mypy", "--strict", "--config-file=", sample)
    session.run("python", "-W", "error", sample)


@nox.session(default=False)
def lowest(session: nox.Session) -> None:
    """Tests of what can depend on them, with the lowest versions that are allowed."""
    lowest = [d.replace(">=", "==") for d in PYPROJECT["project"]["dependencies"]]
    install(session, "test", ".", *lowest)
    pytest(session, f"{QUICK} and not hypothesis", *DEPENDENT)


@nox.session(default=False)
def docs(session: nox.Session) -> None:
    """The site, into build/docs: a warning or a link that leads nowhere is an error."""
    install(session, "docs", ".")
    # Sphinx keeps pages that are as they were, and would not warn of them again.
    strictly = ["--fail-on-warning", "--keep-going", "--nitpicky", "--fresh-env"]
    html = ["--quiet", "--builder", "html", "docs", "build/docs"]
    session.run("sphinx-build", *strictly, *html)


@nox.session(default=False)
def bench(session: nox.Session) -> None:
    """The proxy beside its peers; without arguments, the page of docs/performance."""
    install(session, "bench", ".")
    session.run("python", "-m", "bench", *(session.posargs or ["--page"]))


@nox.session(default=False)
def mutations(session: nox.Session) -> None:
    """Mistakes in a copy of the package, each of which tests must notice."""
    install(session, "test", ".")
    session.run("python", "tests/mutations.py", *session.posargs)


@nox.session
def tests(session: nox.Session) -> None:
    """The tests but for the long ones. In CI, also whether they run every branch.

    Coverage takes as long as the tests themselves. `CI=1 nox -s tests` has it.
    """
    install(session, "test", ".")
    if "CI" not in os.environ:
        pytest(session, QUICK)
        return
    session.run("coverage", "erase")
    pytest(session, QUICK, under=("coverage", "run", "-m"))
    session.run("coverage", "combine", "--quiet")
    session.run("coverage", "report")


@nox.session(default=False)
def proofs(session: nox.Session) -> None:
    """The long tests: handlers of the catalogue, real programs, benchmarks."""
    install(session, "test", ".")
    pytest(session, "long and not nightly")


@nox.session(default=False)
def nightly(session: nox.Session) -> None:
    """The cases of the long tests that CI has no time for."""
    install(session, "test", ".")
    pytest(session, "nightly")


@nox.session(default=False)
def fuzz(session: nox.Session) -> None:
    """A million examples for each reader of what peers send before all else."""
    install(session, "test", ".")
    pytest(session, "fuzz")


@nox.session(default=False, python=["3.11", "3.12", "3.13", "3.14"])
def versions(session: nox.Session) -> None:
    """The tests but for the long ones, with each Python that is found."""
    install(session, "test", ".")
    pytest(session, QUICK)
