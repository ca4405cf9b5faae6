"""The command ``demo``: a proxy, its target and clients, and whether it adds up.

It serves with the public names of trioserve, on real sockets of this machine.
Nothing in this folder knows how a command that serves is configured. The map,
from the bottom up:

    _crowd
    _accounts
    _demo
"""
