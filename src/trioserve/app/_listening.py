"""Bind the listeners, check for loops, and write the port file.

A service in, listeners and a port file out; an error is one line for a person.
Nothing here serves.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Sequence

import click

from trioserve import Listener, open_listeners

from ._listen_errors import why_not
from ._loops import find_loop
from ._port_file import PortFile
from ._program import WrongUsage
from ._service import Service


async def listen(service: Service) -> Sequence[Listener]:
    """Listen on the addresses of a service, with each error as one line for a person.

    Raises:
      click.ClickException: with the reason, and what else to try.
    """
    try:
        return await open_listeners(
            *service.listen, backlog=service.backlog, reuse_port=service.reuse_port
        )
    except ValueError as error:
        raise WrongUsage(str(error)) from error
    except OSError as error:
        raise click.ClickException(why_not(error)) from error


async def refuse_loop(service: Service, listeners: Sequence[Listener]) -> None:
    """Check that no target is one of the listeners.

    Raises:
      click.UsageError: a target is; the error names it.
    """
    bound = [listener.socket for listener in listeners]
    within = service.timeouts.connect
    target = await find_loop(bound, service.target_addresses, within=within)
    if target is not None:
        raise WrongUsage(
            f"TARGET {target} is a listener of this proxy, which would be a loop; give"
            " the address of another server"
        )


@contextlib.contextmanager
def announced_ports(
    service: Service, listeners: Sequence[Listener]
) -> Generator[PortFile | None]:
    """Write the port file, if the service has one, and remove it at the end.

    Raises:
      click.ClickException: it can't be written.
    """
    if service.port_file is None:
        yield None
        return
    path = service.port_file
    names = [listener.socket.getsockname() for listener in listeners]
    try:
        file = PortFile(path, [n[1] for n in names if isinstance(n, tuple)])
    except OSError as error:
        text = f"can't write the port to {path}: {error.strerror}"
        raise click.ClickException(text) from error
    try:
        yield file
    finally:
        file.remove()
