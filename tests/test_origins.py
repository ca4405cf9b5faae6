"""Origins: which accepted connections this run has dialed."""

from __future__ import annotations

import pytest

from support import run
from targets import dialer_of, listening
from trioserve._origins import origin_of
from trioserve._socket_transport import SocketTransport

pytestmark = pytest.mark.usefixtures("no_descriptor_is_left")


def test_dialed_sockets_are_registered_while_they_are_open() -> None:
    """And not afterwards, when the system may reuse the port."""

    async def main() -> None:
        with listening() as address:
            transport = await dialer_of([address], ("a proxy",)).dial(5)
            assert isinstance(transport, SocketTransport)
            name = "{}:{}".format(*transport.sock.getsockname())
            assert origin_of(name, str(address)) == ("a proxy",)
            # The same local port may be used for another connection.
            assert origin_of(name, "127.0.0.1:1") == ()
            assert origin_of(str(address), name) == ()
            transport.close()
            assert origin_of(name, str(address)) == ()

    run(main)
