"""The commands ``reports`` and ``explain``, which read a file of reports.

Lines of JSON in, sums and sentences out. Nothing in this folder knows a running
server. The map, from the bottom up:

    _advice   _bounded_sums   _records
    _explain   _summary
    _tables
"""
