"""What ``trioserve help TOPIC`` says. Texts; nothing here does anything."""

from __future__ import annotations

from typing import Final

from trioserve import Outcome, Reason

_REASONS = "Why a connection ended, sorted by how it went:\n" + "".join(
    f"\n{outcome}\n"
    + "".join(
        f"  {reason:16} {reason.sentence}\n"
        for reason in Reason
        if reason.outcome is outcome
    )
    for outcome in Outcome
)

#: A topic, and what there is to know about it.
TOPICS: Final = {
    "addresses": """\
Where to listen and where to dial are written in the same way:

  HOST:PORT             a name or a number: db.internal:5432, 127.0.0.1:8080
  [IPV6]:PORT           [::1]:8080, [fe80::1%eth0]:8080
  :PORT                 to listen on all interfaces, for everybody
  unix:PATH             a Unix socket: unix:/run/app.sock
  unix:PATH?mode=0660   to listen, with these permissions (else: umask); quoted,
                        because a shell takes the '?' for its own
  unix:@NAME            a name in Linux's abstract namespace, without a file

tcp:// may stand before HOST, and unix:// before a PATH that begins with '/'.
To listen, port 0 picks a free one, which is printed (--port-file writes it). An
address that is given twice, under whatever name, is listened on once. The file
of a Unix socket that nobody listens on any more is replaced, and it is removed
at the end. A bare number is refused: it would have to mean either this machine
only or everybody.

TARGETs are tried in their order, each with an equal share of what is left of
--connect; the addresses of one name are tried side by side, six at a time (RFC
8305). An answer for a name is used for 10 seconds, and the last good one as
long as there is no new one.""",
    "faults": """\
A proxy can break connections on purpose, to see how both ends take it:

  trioserve proxy :6380 127.0.0.1:6379 --fault 'latency=50ms; down:reset@4096'

FAULTS are clauses between semicolons, of items between commas. A clause that
begins with 'up:' (from the client) or 'down:' (from the target) is about that
direction, any other about both.

  latency=TIME[+-TIME]   bytes come later, by so much more or less
  bandwidth=BYTES/s      so many bytes pass in a second
  slice=N[..M][/TIME]    in pieces of N to M bytes, so long after each other
  cut@BYTES              what is before and after do not come together
  slow_close=TIME        FIN comes later
  stall                  nothing more comes, in this direction
  vanish                 nothing more comes, nor is a close seen
  reset                  RST to both ends
  close                  FIN to both ends
  eof                    FIN in this direction; what comes after is thrown away
  refuse                 the connection is reset at once

Those from stall to eof may have a place: reset@4096 is after so many bytes of
the direction, reset@2s so long after the connection began; alone, they are at
the beginning. TIME has a unit (50ms, 2s, 1m), BYTES may have one (64KiB, 1MiB).

What is random depends on --seed, the connection's number and the place in its
bytes. Reports say what each connection has suffered. --fault @FILE reads both
from JSON: {"faults": "latency=50ms", "seed": 7}.""",
    "settings": """\
Every option of 'echo' and 'proxy' can be given in the environment, in capitals
and with TRIOSERVE_ before it: --half-closed 5m is TRIOSERVE_HALF_CLOSED=5m. The
command line comes before the environment, and that before the default.

TIME is 500ms, 10s, 2m, 1h30m, 1d, a number of seconds, or 'never'. A variable
with several addresses, TRIOSERVE_LISTEN, has spaces between them. A carriage
return behind a value, as a file written on Windows has it, is left out.

'trioserve help settings proxy LISTEN TARGET --idle 5m' shows what holds for
that command line, and where each value came from. Without a command line:""",
    "signals": """\
  TERM, INT (Ctrl-C)   drain: accept no more, let what goes on finish
  one of them again    cut: reset what is left
  and once more        end the process
  QUIT (Ctrl-\\)        print how it stands, as USR1 does, and cut
  HUP                  open the file of --reports anew, and say so; it never
                       ends the process, nor does a terminal that is closed
  USR1                 print how it stands: counters, who holds the slots, and
                       the line on which each task stands

TERM or INT within a third of a second after TERM, INT or QUIT is the same one:
a terminal and what runs the command may both send one. TERM, INT or QUIT before
it serves ends it with 128 + the signal's number, and leaves nothing behind; so
does one that the parent had blocked or ignored, and one that is sent to process
1 of a container. HUP stays ignored if it was (nohup).

A drain begins with --lame-duck, for which it still accepts, and ends after
--drain, when what is left is cut. --drain-idle closes what is silent until
then. The file of --port-file is there as long as it accepts.

Ignored: USR2, ALRM, VTALRM, PROF, IO (POLL), PWR, STKFLT, PIPE, XFSZ, and RTMIN
to RTMAX. Those that say that a program is broken end it and all connections, as
they end any: ABRT, BUS, FPE, ILL, SEGV, SYS, TRAP. So do KILL, which no program
can hear, and XCPU, when the time is used up that ulimit -t allows.""",
    "logs": """\
  --log text      for people: a line for each connection
  --log logfmt    for machines: key=value
  --log json      for machines: an object in each line
  --log haproxy   connections as HAProxy's tcplog writes them

Messages go to stderr: text if that is a terminal, else logfmt. Colours are
used on a terminal, unless NO_COLOR is set or TERM is 'dumb', and with
FORCE_COLOR also elsewhere.

  --log-connections all     a line for each connection
  --log-connections active  not for those that came and went without a byte
  --log-connections failed  of these, for those that did not end well
  --log-connections none    only what the server itself has to say

Of equal ones that did not end well, five are logged in a second; of more, one
line says how many there were. --log haproxy has a line for each.

--reports FILE appends a line of JSON for each connection; 'trioserve explain
FILE' and 'trioserve reports FILE' read it. To rotate it, rename it: it is made
anew with the next connection that ends, or at once by SIGHUP. FILE may be a
named pipe, with a reader or not yet.

Nobody has to read what is written: what finds no reader or no room is dropped,
counted, and said when there is one again; connections never wait for it. What
came from a peer is escaped.""",
    "exit-codes": """\
  0     it drained: nothing was cut
  1     it could not listen, or no longer; a file or stdout could not be read or
        written; no thread or open file was to be had
  2     a wrong word on the command line or in the environment
  3     it stopped, and connections were cut or a task was left behind
  130   INT (Ctrl-C) before it served
  131   QUIT before it served
  143   TERM before it served""",
    "reasons": _REASONS.rstrip(),
}
