"""Origins: which of our own connections led here."""

from __future__ import annotations

import pytest

from support import run
from targets import listening
from trioserve._dial import Dialer
from trioserve._origins import origin_of

pytestmark = pytest.mark.usefixtures("no_descriptor_is_left")


def test_our_own_ends_are_known_as_long_as_they_are_open() -> None:
    """And not when the system may give the port to somebody else."""

    async def main() -> None:
        with listening() as address:
            transport = await Dialer([address], ("a proxy",)).dial(5)
            name = "{}:{}".format(*transport.sock.getsockname())
            assert origin_of(name, str(address)) == ("a proxy",)
            # The same port may go somewhere else at the same time.
            assert origin_of(name, "127.0.0.1:1") == ()
            assert origin_of(str(address), name) == ()
            transport.close()
            assert origin_of(name, str(address)) == ()

    run(main)
