"""What to do about each reason for which a connection can end.

A table. Nothing here knows a record, or how a sentence about one is written.
"""

from __future__ import annotations

from typing import Final, NamedTuple


class Advice(NamedTuple):
    """What to add to the sentence of a reason.

    Args:
      next: what to do, or where to look. It may have these names in braces:
        *target*, *host* and *sender* of the connection, the *side* that was waited
        for, and *listening* and *reaching*, commands that show whether the target
        listens and whether it can be reached.
      end: what happened to the connection, unless the reason says it.
      option: the option that ended it, if one did.
    """

    next: str
    end: str = ""
    option: str = ""


#: If TLS with the target has failed.
TLS_ADVICE: Final = (
    "the error says what failed: does {target} speak TLS, is its certificate of an"
    " authority in ca=FILE, is it for the host or sni=NAME, has it expired, and does it"
    " ask for a certificate (cert=FILE)? see `openssl s_client -connect {address}"
    " -showcerts`"
)

#: If TLS has ended without a close_notify: by the reason.
TRUNCATED: Final = {
    "client_reset": (
        "it was cut off on the way, or its program always closes so, as redis-cli does:"
        " then --tls-allow-truncation makes it a good end"
    ),
    "server_reset": (
        "{target} was cut off on the way, or its program always closes so, as Redis"
        " does: then tls://HOST:PORT?allow-truncation makes it a good end"
    ),
}

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
        "is {host} a health check, which only looks whether something listens here?"
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
        "is {target} up, or does a firewall drop packets to it? {reaching}; if it is"
        " only slow, raise --connect",
        "the client was reset",
        "--connect",
    ),
    "target_full": Advice(
        "see what keeps connections open, add a target or revive one, or raise"
        " --max-per-target if the targets can take more",
        "the client was reset",
        "--max-per-target",
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
        "why does {host} need so many connections? if it may have them, raise"
        " --per-peer; if it is many hosts of one IPv6 network, raise"
        " --per-peer-prefix",
        "it was refused",
        "--per-peer",
    ),
    "rate": Advice(
        "why does {host} connect so often? if it may, raise --rate; if it is many hosts"
        " of one IPv6 network, raise --per-peer-prefix",
        "it was refused",
        "--rate",
    ),
    "bad_proxy_header": Advice(
        "let {sender} send a PROXY header, v1 or v2, at the start of each connection"
        " (HAProxy: send-proxy; nginx: proxy_protocol on), or leave its network out of"
        " --accept-proxy",
        "it was reset",
    ),
    "bad_client_hello": Advice(
        "the error says what {host} sent: it must begin with TLS, like https:// and"
        " unlike http:// or STARTTLS; if it is a load balancer's PROXY header, name its"
        " network in --accept-proxy",
        "it was closed",
    ),
    "no_route": Advice(
        "if {host} may ask for this name, add it with --sni NAME=TARGET, or give a"
        " TARGET for all other names",
        "it got a TLS alert",
    ),
    "tls_failed": Advice(
        "the error says what {host} did, or which alert it sent; does it use TLS at"
        " all (https and not http), a version and a cipher that are allowed"
        " (--tls-min), and the authority of --tls-cert? with --tls-client-ca, has it a"
        " certificate that is allowed? openssl s_client shows both ends' view",
        "it was closed",
    ),
    "denied": Advice(
        "if {host} may connect, put an --allow for it before the rules that deny it;"
        " if there is any --allow, all others are denied; the same holds for"
        " --allow-direct and the load balancer",
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
        " addresses (`ip address`); or what it forbids, such as a system call"
        " (SystemCallFilter= in systemd); the target and the client are not at fault",
        "it was reset",
    ),
    "stopping": Advice(
        "send clients elsewhere before the server stops; --lame-duck gives them time",
        "it was refused",
    ),
    "handshake": Advice(
        "is {host} a scanner, or slow? {side} sent less than a PROXY header, which a"
        " load balancer in --accept-proxy must send, or than a TLS ClientHello, which"
        " --sni needs, or than a TLS handshake",
        "it was reset",
        "--handshake",
    ),
    "first_byte": Advice(
        "is {host} a health check or a scanner? if both sides may be silent for that"
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
        " for that long, raise --write-stall",
        "it was reset",
        "--write-stall",
    ),
    "lifetime": Advice(
        "raise --lifetime, or let the client reconnect before that",
        "it was reset",
        "--lifetime",
    ),
    "aborted": Advice("see in the handler's code why it aborts"),
    "fault": Advice("see how both ends react: it was broken on purpose"),
    "handler_error": Advice(
        "see the handler's code: the mistake is there, not at the peer",
        "it was reset",
    ),
    "cut": Advice(
        "raise --drain if it needed longer, or close idle connections before that"
        " with --drain-idle",
        "it was reset",
        "--drain",
    ),
    "cancelled": Advice(
        "see the server's log at this time for the cause", "it was reset"
    ),
}
