"""The texts of ``trioserve help TOPIC``. Nothing here prints them."""

from __future__ import annotations

from typing import Final

from trioserve import Outcome, Reason

_REASONS = "Why a connection ended, by outcome:\n" + "".join(
    f"\n{outcome}\n"
    + "".join(
        f"  {reason:16} {reason.sentence}\n"
        for reason in Reason
        if reason.outcome is outcome
    )
    for outcome in Outcome
)

#: The name of a topic, and its text.
TOPICS: Final = {
    "addresses": """\
Addresses to listen on and addresses to dial are written in the same way:

  HOST:PORT             a name or an IP: db.internal:5432, 127.0.0.1:8080
  [IPV6]:PORT           [::1]:8080, [fe80::1%eth0]:8080
  :PORT                 to listen on all interfaces, for other machines too
  unix:PATH             a Unix socket: unix:/run/app.sock
  unix:PATH?mode=0660   to listen, with these permissions (default: umask);
                        quote it, because '?' is special in a shell
  unix:@NAME            a name in Linux's abstract namespace, without a file

tcp://HOST:PORT and unix:///PATH are accepted too. To listen, port 0 picks a
free port, which is printed (--port-file writes it to a file). An address that
is given twice, even under two names, is listened on once. A stale file of a
Unix socket, on which nobody listens, is replaced; the file is removed at the
end. A port without ':' is refused: it could mean this machine only or all
interfaces.

A TARGET may have options behind a '?', with '&' between them:

  db1:5432?weight=3     gets three times as many connections as one without
  db2:5432?priority=1   is used only if all with a lower number (0 without one)
                        are down or have failed
  db2:5432?backup       is used only if all others are down or have failed
  db3:5432?each-address each address of this name is a TARGET of its own; they
                        are looked up again all the time
  tls://db4:5432        gets TLS, and its certificate is verified; more options:
    ca=FILE               trust these authorities (default: the system's)
    sni=NAME              ask for this name and verify it (default: the host)
    cert=FILE, key=FILE   the proxy's own certificate, if the target wants one
    alpn=NAME,NAME        offer these protocols, or that of the client (ALPN)
    verify=no             accept every certificate; anybody may be the target
    allow-truncation      take its FIN for its end, with no close_notify before

Several TARGETs may be given as one word:

  file:PATH             a file has one per line, with its options; what follows
                        a '#' is a comment. It is read again within a second
                        after it has changed, and on HUP. If it can't be used,
                        the list stays as it was. To replace it, write another
                        file and rename it
  dns://HOST:PORT       the A and AAAA records of a name, asked of its name
                        servers again when their TTL is over; it needs
                        dnspython: pip install 'trioserve[dns]'
  srv://NAME            the same of the SRV records of a service, with their
                        priorities and weights
  dns+tls://HOST:PORT,  the same with TLS, and with its options; a certificate
  srv+tls://NAME        has to be for HOST, or for sni=NAME; with ca=FILE of
                        your own authority, for the host of the SRV record

When its list no longer has a TARGET, its connections go on, and new ones
don't go there.

A connection gets a TARGET by --balance, and another one if that does not
answer. While another one is up, it is waited for no longer than connecting
usually takes, with some reserve (0.25 to 1 second). A TARGET that fails again
and again is left out for a while; with --check, the proxy itself finds out
which TARGETs serve. --fall, --pause, --check, --rise and --max-per-target:
'trioserve help proxy'. The addresses of one name are tried in parallel, at most
six at a time (Happy Eyeballs, RFC 8305). An answer from DNS is cached for 10
seconds; if the next look-up fails, the last good answer is used.""",
    "access": """\
Which clients are served:

  trioserve proxy :5432 10.0.0.2:5432 --deny 10.0.0.7 --allow 10.0.0.0/8

--allow and --deny may be repeated; their order counts, and the first one that
matches a client decides. If none matches, a client is refused if there is an
--allow, and served otherwise. TRIOSERVE_DENY and TRIOSERVE_ALLOW, with spaces
between the networks, come after those of the command line. A NETWORK is

  10.0.0.7, 2001:db8::7   an IP address
  10.0.0.0/8, fd00::/8    a prefix
  unix                    all clients of a Unix socket
  all                     everyone

Behind a load balancer, --accept-proxy NETWORK names from where a connection
must begin with a header of the PROXY protocol. The client that it declares then
counts: for --allow and --deny, for limits, in logs and reports. --allow-direct
and --deny-direct are about the load balancer's own address.

A client that is refused gets --refusal, if there is one, and its report has the
reason 'denied'. Rules are for networks that are known; they don't tell clients
of one network apart.""",
    "faults": """\
A proxy can break connections on purpose, to show how both ends react:

  trioserve proxy :6380 127.0.0.1:6379 --fault 'latency=50ms; down:reset@4096'

FAULTS are clauses separated by semicolons; a clause has items separated by
commas. A clause that begins with 'up:' (from the client) or 'down:' (from the
target) applies to that direction, any other clause to both.

  latency=TIME[+-TIME]   delay all bytes by this time, with this jitter
  bandwidth=BYTES/s      pass at most this many bytes a second
  slice=N[..M][/TIME]    send in pieces of N to M bytes, this time apart
  cut@BYTES              never send bytes before and after BYTES in one piece
  slow_close=TIME        delay FIN by this time
  stall                  pass no more bytes in this direction
  vanish                 pass no more bytes, and hide the close of each side
  reset                  RST to both ends
  close                  FIN to both ends
  eof                    FIN in this direction; discard later bytes
  refuse                 reset the connection at once

The items from stall to eof can wait for a number of bytes or a time: reset@4096
acts after 4096 bytes of the direction, reset@2s acts 2 seconds after the
connection began; without either they act at once. TIME has a unit (50ms, 2s,
1m), BYTES may have one (64KiB, 1MiB).

Random values depend on --seed, the number of the connection and the position in
its stream. Reports list the faults that were applied. --fault @FILE reads JSON:
{"faults": "latency=50ms", "seed": 7}.""",
    "settings": """\
Every option of 'echo' and 'proxy' can also be set in the environment, in
capitals after TRIOSERVE_: --half-closed 5m is TRIOSERVE_HALF_CLOSED=5m. The
command line overrides the environment, and both override the default.

TIME is 500ms, 10s, 2m, 1h30m, 1d, a number of seconds, or 'never'. Several
values of an option that may be repeated, like LISTEN or ALLOW, are separated by
spaces. A carriage return at the end of a value, as in a file written on
Windows, is ignored.

'trioserve help settings proxy LISTEN TARGET --idle 5m' shows the settings of
that command line, and where each value came from. Without a command line:""",
    "signals": """\
  TERM, INT (Ctrl-C)   drain: stop accepting, let connections finish
  a second one         cut: reset the connections that are left
  a third one          end the process at once
  QUIT (Ctrl-\\)        print the status, as USR1 does, and cut
  HUP                  reopen the file of --reports, read the files of
                       --tls-cert, --tls-key, --tls-client-ca and of TARGETs
                       again, and log that; neither HUP nor closing the
                       terminal ends the process
  USR1                 print the status: counters, until when certificates are
                       valid, the connections that hold tokens, and the line at
                       which each task waits

TERM or INT within a third of a second after TERM, INT or QUIT counts as the
same signal: a terminal and a parent process may both send one. Before the
command serves, TERM, INT or QUIT ends it with exit code 128 + the signal's
number, and nothing is left behind; this also holds if the parent had blocked or
ignored the signal, and for process 1 of a container. HUP stays ignored if it
was ignored at the start (nohup).

A drain begins with --lame-duck, during which the server still accepts, and ends
after --drain, when the connections that are left are cut. Until then,
--drain-idle closes idle connections. The file of --port-file exists while the
server accepts.

Ignored: USR2, ALRM, VTALRM, PROF, IO (POLL), PWR, STKFLT, PIPE, XFSZ, and RTMIN
to RTMAX. The signals of a crash end the process and all its connections, as in
any program: ABRT, BUS, FPE, ILL, SEGV, SYS, TRAP. So do KILL, which no program
can handle, and XCPU, when the CPU time that ulimit -t allows is used up.""",
    "logs": """\
  --log text      for people: a line for each connection
  --log logfmt    for machines: key=value
  --log json      for machines: an object in each line
  --log haproxy   connections as HAProxy's tcplog writes them

The log goes to stderr: text if that is a terminal, else logfmt. Colours are on
by default on a terminal. NO_COLOR and TERM=dumb switch them off, FORCE_COLOR
switches them on, even if stderr is not a terminal.

  --log-connections all     every connection
  --log-connections active  all but those that the client ended without a byte
  --log-connections failed  the active ones that did not end well
  --log-connections none    no connection, only events of the server

Of connections that failed in the same way, at most five are logged in a second;
one line counts the others. --log haproxy has a line for each.

--reports FILE appends a line of JSON for each connection; 'trioserve explain
FILE' and 'trioserve reports FILE' read it. To rotate it, rename it: a new one
is created when the next connection ends, or at once on SIGHUP. FILE may be a
named pipe, with or without a reader.

Output never blocks connections: lines that can't be written, because nobody
reads or the disk is full, are dropped, and the log says how many as soon as it
can. Text from a peer is escaped.""",
    "exit-codes": """\
  0     drained: nothing was cut
  1     could not listen, or the last listener failed; could not read or write a
        file or stdout; could not start a thread or open a file (ulimit)
  2     a wrong word on the command line or in the environment
  3     stopped: connections were cut, or a task did not end
  130   INT (Ctrl-C) before it served
  131   QUIT before it served
  143   TERM before it served""",
    "reasons": _REASONS.rstrip(),
}
