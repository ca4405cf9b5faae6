"""The command ``demo``: clients, a proxy and its target, and an audit of them.

It serves with the public names of trioserve, on real sockets of this machine.
Nothing in this folder knows how `echo` and `proxy` are configured. The map, from
the bottom up:

    _clients
    _audit
    _demo
    _command
"""
