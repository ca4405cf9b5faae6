"""What a run writes: events, reports and the live view, to stderr and a file.

Values in, lines on a file descriptor out; writing never blocks the event loop.
Nothing in this folder knows options, signals, or when there is something to say.
The map, from the bottom up:

    _haproxy   _live   _screen   _status   _writer
    _log
    _folding
    _messages
    _output
"""
