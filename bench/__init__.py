"""A proxy beside its peers: what a byte, a message and a connection cost.

``python -m bench`` measures; nothing of this is part of the package.
"""
