"""Options, and where their values come from."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from trioserve.app._cli import cli
from trioserve.app._environment import misspelt_variables

PROXY = ("help", "settings", "proxy", "127.0.0.1:0", "127.0.0.1:1")


def settings(*args: str, **env: str) -> dict[str, tuple[str, str, str]]:
    """What ``help settings`` shows: for each option, value, origin, variable."""
    result = CliRunner().invoke(cli, args, env=env)
    assert result.exit_code == 0
    heading, *rows = result.stdout[result.stdout.index("setting  ") :].splitlines()
    columns = [heading.index(word) for word in ("value", "from", "in the env")]
    cells = [
        [row[a:b].strip() for a, b in zip([0, *columns], [*columns, None], strict=True)]
        for row in rows
    ]
    return {option: (value, origin, env) for option, value, origin, env in cells}


def test_every_setting_has_a_value_an_origin_and_a_variable() -> None:
    shown = settings(*PROXY)
    for option, (value, origin, variable) in shown.items():
        assert value
        assert origin == "default"
        name = option.removeprefix("--").replace("-", "_").upper()
        assert variable == f"TRIOSERVE_{name}"
    assert shown["--idle"][0] == "1h"
    assert shown["--lifetime"][0] == "never"
    assert shown["--per-peer"][0] == "no limit"
    assert shown["--live"][0] == "no"
    assert int(shown["--max-connections"][0]) > 1


def test_the_command_line_overrides_the_environment() -> None:
    shown = settings(
        *PROXY,
        *("--idle", "10m", "--live"),
        TRIOSERVE_IDLE="5m",
        TRIOSERVE_HALF_CLOSED="90",
        TRIOSERVE_LISTEN="127.0.0.1:0 unix:a",
        TRIOSERVE_PER_PEER="",
        TRIOSERVE_MAX_CONNECTIONS="7",
    )
    assert shown["--idle"][:2] == ("10m", "command line")
    assert shown["--half-closed"][:2] == ("1m30s", "TRIOSERVE_HALF_CLOSED")
    assert shown["--listen"][:2] == ("127.0.0.1:0 unix:a", "TRIOSERVE_LISTEN")
    assert shown["--live"][:2] == ("yes", "command line")
    assert shown["--max-connections"][:2] == ("7", "TRIOSERVE_MAX_CONNECTIONS")
    assert shown["--per-peer"][1] == "default"


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("TRIOSERVE_IDEL", "TRIOSERVE_IDLE"),
        ("TRIOSERVE_MAX_CONNECTION", "TRIOSERVE_MAX_CONNECTIONS"),
        ("TRIOSERVE_IDLE", None),
        ("TRIOSERVE_CONNECT", None),
        ("TRIOSERVE_PORT", None),  # Kubernetes sets these
        ("TRIOSERVE_SERVICE_HOST", None),
        ("TRIOSERVE_XYZZY", None),
        ("IDEL", None),
    ],
)
def test_a_misspelt_variable_gets_a_suggestion(name: str, meant: str | None) -> None:
    said = list(misspelt_variables(cli.commands.values(), {name: "5"}))
    expected = [f"{name} is not a setting; did you mean {meant}?"] if meant else []
    assert said == expected


def test_without_a_command_line_it_explains_settings_and_shows_the_proxys() -> None:
    shown = settings("help", "settings", TRIOSERVE_CONNECT="3s")
    assert shown["--connect"][:2] == ("3s", "TRIOSERVE_CONNECT")
    assert "--connect" not in settings("help", "settings", "echo")
