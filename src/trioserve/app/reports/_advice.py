"""What to do about each reason for which a connection can end.

A table. Nothing here knows a record or how a sentence about one is written.
"""

from __future__ import annotations

from typing import Final, NamedTuple


class Advice(NamedTuple):
    """What there is to say about a reason beside its sentence.

    Args:
      next: what to do, or where to look. It may have, in braces: *target* and
        *host* of the connection, the *side* that was waited for, and commands that
        show what is *listening* and what is *reaching* the target.
      end: what became of the connection, if the reason does not say it.
      option: the option that decided it, if one did.
    """

    next: str
    end: str = ""
    option: str = ""


_ENDED_WELL: Final = "nothing, it ended well"

#: By the name of the reason.
ADVICE: Final = {
    "client_closed": Advice(_ENDED_WELL),
    "server_closed": Advice(_ENDED_WELL),
    "drained": Advice(_ENDED_WELL, "it was closed", "--drain-idle"),
    "client_reset": Advice(
        "see the client's log at this time: it crashed, gave up, or closed before it"
        " had read everything"
    ),
    "client_gone": Advice(
        "is {host} a health check? it has only looked whether something listens here;"
        " and is {target} up? {reaching}",
        "it was given up",
    ),
    "server_reset": Advice(
        "see the log of {target} at this time: it crashed, was restarted, or closed"
        " before it had read everything",
        "the client was reset too",
    ),
    "connect_refused": Advice(
        "is something listening on {target}? {listening}", "the client was reset"
    ),
    "connect_failed": Advice(
        "can this machine find and reach {target}? {reaching}", "the client was reset"
    ),
    "connect_timeout": Advice(
        "is {target} up, and does no firewall drop what goes there? {reaching}; if it"
        " is only slow, raise --connect",
        "the client was reset",
        "--connect",
    ),
    "loop": Advice(
        "give the proxy a target that does not lead back to it, as {target} does",
        "the client was reset",
    ),
    "limit": Advice(
        "raise --max-connections, or let clients wait: --when-full wait",
        "it was refused",
        "--max-connections",
    ),
    "peer_limit": Advice(
        "what does {host} need so many connections for? if it may, raise --per-peer;"
        " if it is many hosts of one IPv6 network, raise --per-peer-prefix",
        "it was refused",
        "--per-peer",
    ),
    "denied": Advice(
        "if {host} may connect, put an --allow for it before the rule that denies it",
        "it was refused",
    ),
    "no_fds": Advice(
        "raise the hard limit of open files (ulimit -Hn, LimitNOFILE= in systemd), or"
        " lower --max-connections",
        "it was refused",
    ),
    "resource": Advice(
        "the error says what this machine lacks: open files (ulimit -Hn), memory,"
        " threads (ulimit -u), or local ports (net.ipv4.ip_local_port_range) and"
        " addresses (`ip address`); or what it does not allow, such as a system call"
        " that is filtered (SystemCallFilter= in systemd); the target and the client"
        " are not at fault",
        "it was reset",
    ),
    "stopping": Advice(
        "send clients elsewhere before the server stops; --lame-duck leaves the time",
        "it was refused",
    ),
    "handshake": Advice(
        "is {host} a scanner, or slow? {side} was to send more than it did",
        "it was reset",
    ),
    "first_byte": Advice(
        "is {host} a health check or a scanner? if both sides may be silent for so"
        " long at first, raise --first-byte",
        "it was closed",
        "--first-byte",
    ),
    "idle": Advice(
        "raise --idle, or let the client send keep-alives", "it was closed", "--idle"
    ),
    "half_closed": Advice(
        "what was {side} waiting for? if it needs longer, raise --half-closed",
        "it was reset",
        "--half-closed",
    ),
    "write_stall": Advice(
        "why does {side} not read: is it stopped, overloaded, cut off? if it may pause"
        " so long, raise --write-stall",
        "it was reset",
        "--write-stall",
    ),
    "lifetime": Advice(
        "raise --lifetime, or let the client connect anew before that",
        "it was reset",
        "--lifetime",
    ),
    "aborted": Advice("see in the handler's code why it aborts"),
    "fault": Advice("see how both ends took it: it was broken on purpose"),
    "handler_error": Advice(
        "see the handler's code: this is its mistake, and not its peer's",
        "it was reset",
    ),
    "cut": Advice(
        "raise --drain if it should have had longer, or let silent ones go before"
        " that: --drain-idle",
        "it was reset",
        "--drain",
    ),
    "cancelled": Advice(
        "see the server's log at this time for what ended it", "it was reset"
    ),
}
