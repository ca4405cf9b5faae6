"""How a server and its targets are doing: a server in, values and changes out.

Nothing in this folder writes, formats text for people, or decides that something
is worth saying. The map, from the bottom up:

    _backlog   _target_health
    _sampler   _saturation
"""
