"""The cost of a byte, a message and a connection, for trioserve and other proxies.

``python -m bench`` measures. The benchmark is not part of the package.
"""
