"""What a run writes: events, reports and the live view, to stderr and a file.

Values in, lines on a file descriptor out; writing never blocks the event loop.
Nothing in this folder knows options or signals, or decides what a server does.
The map, from the bottom up:

    _descriptors   _formats   _haproxy   _live   _screen   _status
    _log   _writer
    _startup   _suppression
    _messages
    _output
    _opening
"""
