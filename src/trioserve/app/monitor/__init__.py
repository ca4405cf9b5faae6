"""The state of a server and its targets: a server in, values and changes out.

Nothing in this folder writes, formats text for people, or decides what to log.
The map, from the bottom up:

    _backlog   _expiry   _target_health
    _sampler   _saturation
"""
