"""A name server on loopback, which answers as a test says."""

from __future__ import annotations

from collections.abc import Sequence

import dns.asyncresolver
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset
import trio


class NameServer:
    """Answers over UDP.

    Attributes:
      answers: the TTL and the records of each name and type, as a zone file has them.
      rcode: of all answers.
      is_silent: whether it answers nothing.
      asked: when it was asked.
    """

    def __init__(self) -> None:
        self.answers: dict[tuple[str, str], tuple[int, Sequence[str]]] = {}
        self.rcode = dns.rcode.NOERROR
        self.is_silent = False
        self.asked: list[float] = []
        self.port = 0

    def resolver(self) -> dns.asyncresolver.Resolver:
        """A resolver that asks this server, in place of that of the system."""
        made = dns.asyncresolver.Resolver(configure=False)
        made.nameservers, made.port = ["127.0.0.1"], self.port
        return made

    async def run(
        self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        with trio.socket.socket(trio.socket.AF_INET, trio.socket.SOCK_DGRAM) as sock:
            await sock.bind(("127.0.0.1", 0))
            self.port = sock.getsockname()[1]
            task_status.started()
            while True:
                data, peer = await sock.recvfrom(4096)
                self.asked.append(trio.current_time())
                if not self.is_silent:
                    await sock.sendto(self._answer(data), peer)

    def _answer(self, data: bytes) -> bytes:
        question = dns.message.from_wire(data)
        response = dns.message.make_response(question)
        response.set_rcode(self.rcode)
        (asked,) = question.question
        name = asked.name.to_text(omit_final_dot=True).lower()
        kind = dns.rdatatype.to_text(asked.rdtype)
        if found := self.answers.get((name, kind)):
            ttl, records = found
            rrset = dns.rrset.from_text(asked.name, ttl, "IN", kind, *records)
            response.answer.append(rrset)
        elif not self.rcode and not any(known == name for known, _ in self.answers):
            response.set_rcode(dns.rcode.NXDOMAIN)
        return response.to_wire()
