"""The options for TLS to clients.

Text of the command line or the environment in, a value out. The files are read, to
check them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import click

from trioserve import TlsOptions

from ._environment import Command, option
from ._program import WrongUsage

#: By the argument of TlsOptions: the option.
_OPTIONS: Final = {
    "cert": "--tls-cert",
    "key": "--tls-key",
    "client_ca": "--tls-client-ca",
    "allow_cn": "--tls-allow-cn",
    "allow_san": "--tls-allow-san",
    "allow_uri": "--tls-allow-uri",
    "min_version": "--tls-min",
    "alpn": "--tls-alpn",
    "allow_truncation": "--tls-allow-truncation",
}


def tls_options() -> list[Callable[[Command], Command]]:
    """A decorator for each option."""
    names = {"multiple": True, "metavar": "NAME"}
    return [
        option(
            "--tls-cert",
            multiple=True,
            metavar="FILE",
            help="Terminate TLS, with the certificate in this PEM file; may be"
            " repeated: a client gets the one for the name that it asks for, else the"
            " first.",
        ),
        option(
            "--tls-key",
            multiple=True,
            metavar="FILE",
            show_default="in the file of --tls-cert",
            help="The certificate's private key, in PEM; with several certificates, one"
            " for each, in the same order.",
        ),
        option(
            "--tls-client-ca",
            metavar="FILE",
            help="Serve only clients with a certificate of an authority in this file.",
        ),
        option(
            "--tls-allow-cn",
            **names,
            help="Of these serve only those with this common name, or another name that"
            " is allowed; may be repeated.",
        ),
        option(
            "--tls-allow-san",
            **names,
            help="The same for a DNS name or an IP address of the certificate; may be"
            " repeated.",
        ),
        option(
            "--tls-allow-uri",
            multiple=True,
            metavar="URI",
            help="The same for a URI, such as a SPIFFE ID; may be repeated.",
        ),
        option(
            "--tls-min",
            type=click.Choice(["1.2", "1.3"]),
            default="1.2",
            show_default=True,
            help="The lowest version of TLS.",
        ),
        option(
            "--tls-alpn",
            multiple=True,
            metavar="PROTOCOL",
            help="Agree on this protocol with clients that offer it (ALPN), like h2;"
            " may be repeated, the best one first.",
        ),
        option(
            "--tls-allow-truncation",
            is_flag=True,
            help="Take a client's FIN for its end, also without a close_notify before.",
        ),
    ]


def take_tls_options(params: dict[str, Any]) -> TlsOptions | None:
    """Take these options out of ``params``; None if there is no certificate.

    Raises:
      click.UsageError: a file can't be used, or an option needs another one.
    """
    values = {
        name: params.pop(each.removeprefix("--").replace("-", "_"))
        for name, each in _OPTIONS.items()
    }
    for name in ("cert", "key"):  # an only one is a path, several are a list
        given = values[name]
        values[name] = given if len(given) > 1 else next(iter(given), None)
    if values["cert"] is None:
        for name, value in values.items():
            if value and name != "min_version":
                raise WrongUsage(f"{_OPTIONS[name]} needs --tls-cert")
        return None
    try:
        return TlsOptions(**values)
    except ValueError as error:
        text = str(error)
        for name, each in _OPTIONS.items():
            if text.startswith((f"{name}:", f"{name} ")):
                text = each + text.removeprefix(name)
        raise WrongUsage(text.replace(" client_ca,", " --tls-client-ca,")) from None
