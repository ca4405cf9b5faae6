"""How a server and its targets stand: a server in, values and changes out.

Nothing in this folder writes, formats text for people, or decides how often to
look. The map, from the bottom up:

    _backlog   _targets
    _fullness
"""
