"""ClientHellos for tests: recorded, made, with mistakes in them."""

from __future__ import annotations

import base64
import random
import ssl

from trioserve.wire._client_hello import LONGEST

NAME = b"git.example.org"


def vector(size: int, *parts: bytes) -> bytes:
    """Parts with their length before them, as a number of ``size`` bytes."""
    data = b"".join(parts)
    return len(data).to_bytes(size, "big") + data


def extension(kind: int, *parts: bytes) -> bytes:
    return kind.to_bytes(2, "big") + vector(2, *parts)


def named(name: bytes = NAME) -> bytes:
    """The extension that asks for a server name."""
    return extension(0, vector(2, b"\0" + vector(2, name)))


#: Of a post-quantum client: X25519MLKEM768, 1,216 bytes. And a session ticket.
KEY_SHARE = extension(51, vector(2, b"\x11\xec" + vector(2, 1216 * b"k")))
TICKET = extension(35, 256 * b"t")
#: RFC 8701: any client may send extensions that nobody knows.
GREASE = extension(0x0A0A), extension(0x1A1A, b"\0")


def alpn(count: int) -> bytes:
    protocols = (vector(1, f"protocol/{n}".encode()) for n in range(count))
    return extension(16, vector(2, *protocols))


def body(
    *extensions: bytes,
    version: bytes = b"\3\3",
    session: bytes = vector(1, 32 * b"s"),
    suites: bytes = vector(2, b"\x13\1\x13\2"),
    compression: bytes = vector(1, b"\0"),
    end: bytes | None = None,
) -> bytes:
    """A ClientHello without the header of its message.

    Args:
      end: what comes after the compression methods; default the extensions.
    """
    if end is None:
        end = vector(2, *extensions)
    return version + 32 * b"r" + session + suites + compression + end


def message(body: bytes, kind: int = 1) -> bytes:
    return bytes([kind]) + vector(3, body)


def record(fragment: bytes, kind: int = 22, version: bytes = b"\3\1") -> bytes:
    return bytes([kind]) + version + vector(2, fragment)


def records(data: bytes, size: int) -> bytes:
    """Data in records of ``size`` bytes."""
    parts = (data[at : at + size] for at in range(0, len(data), size))
    return b"".join(map(record, parts))


def hello(*extensions: bytes) -> bytes:
    return record(message(body(*extensions)))


def from_python(name: str | None = "git.example.org", *protocols: str) -> bytes:
    """What Python's ssl sends, with the OpenSSL of this machine."""
    context = ssl.create_default_context()
    if protocols:
        context.set_alpn_protocols(protocols)
    context.check_hostname = name is not None
    sent = ssl.MemoryBIO()
    tls = context.wrap_bio(ssl.MemoryBIO(), sent, server_hostname=name)
    try:
        tls.do_handshake()
    except ssl.SSLWantReadError:
        return sent.read()
    raise AssertionError("there is nobody to shake hands with")


def of_size(size: int) -> bytes:
    """A ClientHello of this many bytes, in one record."""
    rest = size - len(hello(named(), extension(21)))
    return hello(named(), extension(21, bytes(rest)))


#: With a post-quantum key share, GREASE and an ECH extension.
CHROMIUM = base64.b64decode("""
FgMBB74BAAe6AwMBJ1qfPm2hYQAgxGljHsdnpf2Iv9ylyfE9spatQ34ybyBKuZeDH49zLXFenmft0Fj0zHfbKDKe
Ey/1AuJ0lFgJTQAgWloTARMCEwPAK8AvwCzAMMypzKjAE8AUAJwAnQAvADUBAAdRGhoAAAAzBO8E7QoKAAEAEewE
wMkLqAyDnFr7nDgJkfJGuBDzN8wMLKqss79Vqrx5nPlIBzohBa/IoxLoH1D5IQqUONQ6qQ46MCDlexNLFe6bDdkW
k+mbio1jJYDYx+l6CutTQp2WHJ65sOokAxMrRPnEAL9LV88RoaI6xUukbn0jVW3aqu3gwLrFYFtgxsDDwchSHSkQ
doWSvyGwrY96wLUbzyjVNEb1KZ6AmfNTvOPrliCDPZ5TEWwyJYUCErT3q9/YmfBoi1zrjSDRRjQnON9HHPIbPmjM
g6ILCT6XMTwrJHVwJaozGWqbBTNHOrSpL331k+d6R6WjmdHQQ2mRLycpwpg5Cn9krcGwCmlUxCinwnjKYFg7Pyxa
XCrXHQJWE8umrHyiN/GSZTSnIgSQahN8vWbkmFlMmE84t3PFc4cIfzPCMZcsDsMEOUIQBt5GWR8azdr7bHpGFcLS
aIlitml0LBQoVA9Hhb3lb1Q6wCUcm1wThm3FIDE4TahlcijaR6rqP9rTpJTmtyq3EbHbwp4HIQsBbLPgdUcXvC46
S2UgZWf3EQKHPWJsY3wzYbmZcpUbI67Cfp26iQ96P8/aYfPnie0sXVkFyhkBejywkZoUIghizz4Cd2mWFeDpuNN0
gd1iPdaUFVFZuyHsZg6nstWJOvLjPi+GKyPJf2+jaKinHRbbJUgVJnulYbSJJDbJAr4BKd62DafodvlMkpXccf5k
db8XQkkDkFS3VNqqJWPsgMVynNpyP61xWObHnctWWelUa9iMbskmNG64lprlltkJbIFMEXnrspI6kWQ8p45pu0bS
XKLVTDk5W90ZkWyAger7ejiJfvD8Xie3IFdQaDgQQjhsptnHozKpM1mGSYcqSD+ZssYcb7zMOx6pdon5ErDFfSeB
CXaCae0kauKSkEOave3RQpT3YqsmLmP5PLigAQcHH0JLlRvihePVXGDJIPXWGXZWtnM3PEWSSqt7kLgDj03mYjiZ
Z3PmjqeFXErRd3iobj3qY2Z2NOvLxYbpcrKFyswEcyQnGK06NuXauV6KZCO0eO1UHUv3nialVrsVtSdaHJuLYQiE
X4nRaNVFyXuaYh5DbJBUfF8lNLLVTS7QO6+yAxlImN8aMajWkrj3Fa1bqy5xgscbaouBgUMqDBPkVmjIxNMCP0FF
DhcVWfa3MDA1X/CHNCqIAUhyo63xTjG0TjNaeS0kDSKlsHl7IEk4AuZkhop5SrIZla2brdYYyEGUDgrVE9lHLp7H
fQa7fu1hT1H4KnGGwSvJpGFrazNal1AWQTM7vcLmo/g2EtOCZEd5Ouv7N80qMbGYYJeYdQqbbwx1wBh8fa6UGISa
Gs+yn+XAfdzsTF6JnpS4aeyxxOqmF1mZdWD6pfDIzlZ8wNTJE2F7Dvv1KpSKarlhUfVoYvOMKnIDq0BBlxXktJ52
fT/hxrTCecDkHaW4Zmr1hoW5I/iGt3qRy6ZYvHtLecF3Q8QrCahcARSUACUZNFG2ulfLGdgSgMEotJ9JPoEkSyCU
IFdLKS4VBOJYnYERnf5or+dcMh4cExNBZvt6qZplpTC/gXW4zXCiQlpZiw+Hmj7wZhVla+hq80y+ZX1hIUHmE/3r
lI0ZPSCkgKrj2N8jREfmmqEB+vwUbPxuWLcLExEAHQAgLwNh6ohouWowSiqf8MgDTgix5X5cOZuQcH7xYm+0yABE
zQAFAAMCaDIAEgAA/g0A+gAAAQABsQAgk8LtgJqgMS4DfL3npiDSMSN9qniTmJNSz3Q9Rf7saS8A0CIONlU8Ngzs
8l+uNhkhSM5+HRZiCHZs8zpmyXAbrvHetNFV+tyh/oyrYpsaezPpbFHoGVLQRgVzKjFGW2f3aQpquvb+4eHWKyIs
C1RcR1qUzWZesyLntX1mf1ZsbUBVwZj2wNH0LR3Qfgg36ch9tAzT8RO5DX2ud8qzOdg9k+xGotntKSk+UwXSODKU
4fHafuclYtvjRJroVk5VNiOiKhOhz4ua0xdhMRqHp+IlOXsuVqUAX6LoQdXGeCd/2ih51ddYkj6dI5nXd22o7wfN
ZKwADQAaABhaWgkECQUJBgQDCAQEAQUDCAUFAQgGBgEAKwAHBjo6AwQDAwAFAAUBAAAAAAAbAAMCAAL/AQABAAAQ
AA4ADAJoMghodHRwLzEuMQAAABQAEgAAD2dpdC5leGFtcGxlLm9yZwAKAAwACgoKEewAHQAXABjKNAC6ALgFgt8T
AgEFgt8TAgYFgt8TAg0Fgt8TAg4Fgt8TAg8Fgt8TAhIFgt8TAhMFgt8TAhQIg5pkjJstAQcIg5pkjJstAQgIg5pk
jJstAQkIg5pkjJstAQoIg5pkjJstAQsIg5pkjJstAQwIg5pkjJstAQ0Ig5pkjJstARIIg5pkjJstARME1nkJAQTW
eQkEBNZ5CQUE1nkJBgTWeQkHBNZ5CQgE1nkJCgTWeQkLBNZ5CQwE1nkJDQTWeQkPACMAAAAXAAAACwACAQAALQAC
AQG6ugABAA==
""")
#: Node.js 24: with OpenSSL 3.5 and a post-quantum key share.
NODE = base64.b64decode("""
FgMBBkUBAAZBAwNHQPQC88AATSiIJey8fdmMe3HBQKcuOHVVVU8Kj1zMMiATdOKtI5hUJUgw/gvrPwxdL3zvNIxk
Vv2p2+doXC9k7QBoEwITAxMBwC/AK8AwwCwAnsAnAGfAKABrAKMAn8ypzKjMqsCtwJ/AXcBhwFfAUwCiwKzAnsBc
wGDAVsBSwCQAasAjAEDACsAUADkAOMAJwBMAMwAyAJ3AncBRAJzAnMBQAD0APAA1AC8BAAWQ/wEAAQAAAAAUABIA
AA9HaXQuZXhhbXBsZS5vcmcACwAEAwABAgAKABIAEBHsAB0AFwAeABgAGQEAAQEAIwAAABAADgAMAmgyCGh0dHAv
MS4xABYAAAAXAAAADQA2ADQJBQkGCQQEAwUDBgMIBwgICBoIGwgcCAkICggLCAQIBQgGBAEFAQYBAwMDAQMCBAIF
AgYCACsABQQDBAMDAC0AAgEBADME6gToEewEwOg3PJPzIxBAMzvkq5zwml25goPzp/84tDk8tHf3jXFIP+V2i1dU
kDX4M9/wWnpFLtc5Y4pjHJicKgFSjS7WRFnbgHtch0saDFTqTl13tgXsVduQUrtANzXBi74hFS0DXpNRTP/aXZnw
h5+oE9rKdLKpsiUzdqo3GTkHQT2cm2Nzmx2ivI6XninakWG8X+1IxPMKc+xwFbrXSuGTdXfbsPQAKN+1EK1ZAbkL
QJ/EMZS0zMRFKiOAZHVUS5VlMBZ2CNJ2i7BHqOH1l5p4joU1vsxzDpvBTKlko5zAZIOQJKuqm6eZUFZ1CypZpsDh
gHxcR+GjNbYBvfjsgtiKVolkQZ/Ur+OXt6xRrK7pZyV5nrbypLbrgI5se3OzOMyph+PLxlDRW76mNTVYLFGAfGnY
WMRAJthGcOrFpYx2mxR7JZTMRAjLWEQMEl0zVhK0Bvt7Wlt2vHYIJbaSNOB0Sj+ik8MEqRwWti5YlG7xjtmmAv0X
juZLDlIiNCH6H2HKkZT7jZbKr433nJVGSvlzoKdUYw5GgE1KXX9UmeA6d1/oT+kybM6JmXUxS2g6DL1YMv1VxB06
DdE3A2cTbEVwBeDkA0s6w+nyVHWcAkB6u44whKV1jJk6iBmwkX47XqMEVrioqyUiCUcibyDLt0CbL4fHB7gArA/0
nVVoDZxFiPK0tcZDLe0EGHKcJukTP4NVDktDchDTDAVcUZD7sMBnsU3lyF3xu3lbgR9syw8Ytg6aaaFaJ21Sctz5
LnRCDe0zyI30IY3xrwZ4BFCgJUzTeqRJr5JxUTsVtYACo3USnOn6QyklHEkEy7DMcS41CQdkYdkkcE8IwdcGrc3h
NYppQ5BUhXPne2GZKrUxyGTpbVugzO9kouhZyqR6fopHrkQMp1DHVWUKHZ3VYG+lDGuzZTw6y2k3zFmYPfqCZedz
GMCYiSukKdj4WasAbpxwoAlpKHhGv2+kP3REGYKLQY3iPCjkBAHGzhSWap/TqQECdy9ccfPmsVJHZ8gFLtz2yVJL
gqtXAZKmO81sv/rAuihGcikDb/5XNLYWlHoyTK/VyvXwHYFsPDx4xxWgTAjWjzo7daMMTE8hJHOHcycqMUbkUuS0
mIOle1srZ62VB8DgEUigx5thx+LwmpiDQNRIMdBFNGV0qQF5N3hXTP96OjQJJRNwJOkbKFr8bbr4E312ijn8kYb6
seUWDvRKO4EFy9H5z0s0AMT3QYBywfXarUkcEXJ2JGdnD4vLNPdjCU5Mdq9SdgvlEqUCgP8QM8x4SdgDHHNTuwZ7
gLcZY2tJDO30q3H5iJM3i1F0evv0FZ4ivwBJJX5WxlLTFAGyH2a4JuZKCk0kxC4CFuQYwqOKP8+0FX9YkXNzoOZ1
hCDICQl0YwerHvOxjhaLSd43Ox7wD86WRzdHJJjTtxGZLlKJmNUxgjHADg5oV3Ozb4YBtL2zlndTdfsAqnvSMBin
o47cZFG7gV7nPhuEUmxQuQc4e17rOmdJASbnb7Y2uRP6yVhLHtfzmjskQoRqfezzqjf0v/21ZzdppF4XmYWWR62v
Ecj68S9vs4H06vkLLCQPDmC8EeOc/A4hrjDeCLI4zh8aXeMDG8mn+PpG/dpjk7jnAKgm/8joPHEAHQAgFx8t7nxs
kVcKa/7+yWNAGaK/KRxvfWi8F6ZQ+OVJwzY=
""")
#: Java 17.
JAVA = base64.b64decode("""
FgMDAcsBAAHHAwPNUcprAnMhzIdIi2lbAip/2S+hWpyhCVRnUQ073B5auiC1OcvlHDWYT7Z8fWECEjb/bQ3N8xXe
+VvFkC8Q2AnuiwBKEwITARMDwCzAK8ypwDDMqMAvAJ/MqgCjAJ4AosAkwCjAI8AnAGsAagBnAEDACsAUwAnAEwA5
ADgAMwAyAJ0AnAA9ADwANQAvAP8BAAE0AAAAFAASAAAPZ2l0LmV4YW1wbGUub3JnAAUABQEAAAAAAAoAFgAUAB0A
FwAYABkAHgEAAQEBAgEDAQQACwACAQAAEQAJAAcCAAQAAAAAABcAAAAjAAAADQAsACoEAwUDBgMIBwgICAQIBQgG
CAkICggLBAEFAQYBBAIDAwMBAwICAwIBAgIAKwAFBAMEAwMALQACAQEAMgAsACoEAwUDBgMIBwgICAQIBQgGCAkI
CggLBAEFAQYBBAIDAwMBAwICAwIBAgIAMwBrAGkAHQAgXfWGCk8/Dr4khZgbNiNnOCgHuibcWM3ULTAktVCL430A
FwBBBK7bh/Do7aH3WTMIZXZ+fFINgBIwVLv9T+7Xd8Y64EFsKYtSjcK+NFpSsVc742LyueeJP6EcJyzSBkOihXIr
ACI=
""")

LONGEST_LABEL = 63 * b"a"
LONGEST_NAME = b".".join([LONGEST_LABEL, LONGEST_LABEL, LONGEST_LABEL, 61 * b"b"])

#: Valid ones, and the name that each asks for.
VALID = {
    CHROMIUM: "git.example.org",
    NODE: "git.example.org",
    JAVA: "git.example.org",
    hello(named()): "git.example.org",
    hello(named(b"GIT.Example.ORG")): "git.example.org",
    hello(named(b"xn--bcher-kva.example")): "xn--bcher-kva.example",
    hello(named(b"localhost")): "localhost",
    hello(named(b"_a-.1.2.3.4.5")): "_a-.1.2.3.4.5",
    hello(named(LONGEST_NAME)): LONGEST_NAME.decode(),
    hello(): None,
    hello(alpn(2)): None,
    record(message(body(end=b""))): None,
    record(message(body(named(), session=b"\0"))): "git.example.org",
    record(message(body(named(), version=b"\3\0"))): "git.example.org",
    record(message(body(named())), version=b"\3\x7f"): "git.example.org",
    hello(*GREASE, KEY_SHARE, TICKET, named(), alpn(300)): "git.example.org",
    records(message(body(KEY_SHARE, named())), 1): "git.example.org",
    records(message(body(KEY_SHARE, named())), 3): "git.example.org",
    records(message(body(TICKET, named())), 100): "git.example.org",
    of_size(LONGEST): "git.example.org",
}

_LENGTH = "a length in its ClientHello is wrong"
_LONG = "its ClientHello has more than 16384 bytes"
_HOST = "the server name that it asks for is no host name"
_IP = "the server name that it asks for is an IP address"
_DOT = "the server name that it asks for is a name with a dot at its end"
_TWO = "it asks for more than one host name, or for another kind of name"
_TWICE = "its ClientHello has an extension twice"
_VERSION = "its ClientHello has an unknown version"
_NOT_TLS = "its first bytes are not TLS"
_HTTP = "it began with HTTP without TLS"
_PROXY = "it began with a PROXY header"
_SSL2 = "it began with a ClientHello of SSL 2.0"
_POSTGRESQL = "it began with PostgreSQL's request for encryption"
_RECORD = "a record of its ClientHello has a wrong length"
_NO_HELLO = "its first message is not a ClientHello"
_OTHER_RECORD = "another record comes before the end of its ClientHello"

_PART = record(message(body(named()))[:50])


def _of_names(*parts: bytes) -> bytes:
    return hello(extension(0, *parts))


#: Invalid ones: the error, and the alert.
INVALID = {
    b"GET / HTTP/1.1\r\n\r\n": (_HTTP, None),
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n": (_HTTP, None),
    b"GETTING": (_NOT_TLS, None),
    b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n": (_PROXY, None),
    b"\r\n\r\n\0\r\nQUIT\n\x21": (_PROXY, None),
    b"\r\n\r\nHELO": (_NOT_TLS, None),
    b"SSH-2.0-OpenSSH_9.2\r\n": ("it began with SSH", None),
    bytes.fromhex("0000000804d2162f"): (_POSTGRESQL, None),
    bytes.fromhex("0000000804d21630"): (_POSTGRESQL, None),
    b"EHLO example.org\r\n": (_NOT_TLS, None),
    b"\1": (_NOT_TLS, None),
    b"\x14\3\3\0\1\1": (_NOT_TLS, None),
    bytes.fromhex("802e0103010015"): (_SSL2, 70),
    bytes.fromhex("802e0100020015"): (_SSL2, 70),
    bytes.fromhex("802e0100030015"): (_NOT_TLS, None),
    bytes.fromhex("802e0200020015"): (_NOT_TLS, None),
    b"\x16\2\0\0\5hello": (_VERSION, 70),
    record(b"") + hello(named()): (_RECORD, 50),
    b"\x16\3\1\x40\1" + 9 * b"x": (_RECORD, 50),
    record(message(body(named()), kind=2)): (_NO_HELLO, 10),
    _PART + record(b"\2\x28", kind=21): (_OTHER_RECORD, 10),
    _PART + record(b"x", version=b"\2\0"): (_VERSION, 70),
    of_size(LONGEST + 1): (_LONG, 50),
    record(b"\1\xff\xff\xff" + 100 * b"x"): (_LONG, 50),
    records(message(body(named(), extension(21, bytes(15000)))), 30): (_LONG, 50),
    records(message(body(named(), extension(21, bytes(3000)))), 1): (_LONG, 50),
    record(message(b"")): (_LENGTH, 50),
    record(message(body(end=b"")[:33])): (_LENGTH, 50),
    record(message(body(named(), session=vector(1, 33 * b"s")))): (_LENGTH, 50),
    record(message(body(named(), session=b"\xff"))): (_LENGTH, 50),
    record(message(body(named(), suites=b"\0\0"))): (_LENGTH, 50),
    record(message(body(named(), suites=vector(2, b"\0\1\2")))): (_LENGTH, 50),
    record(message(body(named(), compression=b"\0"))): (_LENGTH, 50),
    record(message(body(named(), version=b"\2\3"))): (_VERSION, 70),
    record(message(body(end=b"\0"))): (_LENGTH, 50),
    record(message(body(end=vector(2, named()) + b"\0"))): (_LENGTH, 50),
    record(message(body(end=vector(2, named())[:-1]))): (_LENGTH, 50),
    hello(named() + b"\0"): (_LENGTH, 50),
    hello(named()[:-1]): (_LENGTH, 50),
    hello(named(), alpn(1), named()): (_TWICE, 47),
    hello(extension(5), extension(5)): (_TWICE, 47),
    _of_names(): (_LENGTH, 50),
    _of_names(b"\0\0"): (_LENGTH, 50),
    _of_names(vector(2, b"\0")): (_LENGTH, 50),
    _of_names(vector(2, b"\0" + vector(2, NAME)), b"x"): (_LENGTH, 50),
    _of_names(vector(2, b"\0\0\x10" + NAME)): (_LENGTH, 50),
    _of_names(vector(2, 2 * (b"\0" + vector(2, NAME)))): (_TWO, 47),
    _of_names(vector(2, b"\1" + vector(2, NAME))): (_TWO, 47),
    hello(named(b"")): (_HOST, 47),
    hello(named(b"a..b")): (_HOST, 47),
    hello(named(b".a")): (_HOST, 47),
    hello(named(b"a b")): (_HOST, 47),
    hello(named(b"a\0b")): (_HOST, 47),
    hello(named(b"a\n")): (_HOST, 47),
    hello(named(b"*.example.org")): (_HOST, 47),
    hello(named("b\u00fccher.example".encode())): (_HOST, 47),
    hello(named(b"b\xfccher.example")): (_HOST, 47),
    hello(named(b"git.example.org:443")): (_HOST, 47),
    hello(named(b"a" + LONGEST_LABEL)): (_HOST, 47),
    hello(named(LONGEST_NAME + b"b")): (_HOST, 47),
    hello(named(b"192.0.2.1")): (_IP, 47),
    hello(named(b"2001:DB8::1")): (_IP, 47),
    hello(named(b"::")): (_IP, 47),
    hello(named(b"git.example.org.")): (_DOT, 47),
}

_SEEDS = [data for data in (*VALID, *INVALID) if len(data) < 3000]
#: Bytes that mean something.
_PIECES = [
    b"\0", b"\1", b"\x16", b"\x16\3\1", b"\0\0", b"\0\1", b"\xff\xff", b"\3\3",
    b"\x40\0", b"GET ", b"PROXY ", b"\x80", named(), extension(0), NAME, b".", b"-",
]  # fmt: skip


def mutated(rng: random.Random) -> bytes:
    """A ClientHello with up to four mistakes, most of which are near its beginning."""
    data = bytearray(rng.choice(_SEEDS))
    if rng.random() < 0.2:
        data = bytearray(records(bytes(data[5:]), rng.randint(1, 300)))
    for _ in range(rng.randint(0, 4)):
        at = rng.randrange(min(len(data), rng.choice((12, 100, 3000))) + 1)
        match rng.randrange(6):
            case 0:
                data[at : at + 1] = rng.randbytes(1)
            case 1:
                data[at : at + rng.randint(0, 3)] = rng.choice(_PIECES)
            case 2:
                del data[at : at + rng.randint(1, 4)]
            case 3:
                data[at:at] = data[at : at + rng.randint(1, 20)]
            case 4 if at < len(data):
                data[at] = (data[at] + rng.choice((-1, 1))) % 256
            case _:
                data += rng.randbytes(rng.randint(1, 8))
    return bytes(data)
