"""A state machine that drives a server with random rules and checks its laws.

The map, from the bottom up; a module imports only from rows above its own here:

    _client   _failure
    _served
    _laws
    _machine

RULE: nothing here knows scripts, or the laws of handlers. Only ``_machine`` imports
Hypothesis, and it is not imported here.
"""

from ._client import Client
from ._failure import SERVE_LAWS, ServeFailure, ServeLaw

__all__ = ["SERVE_LAWS", "Client", "ServeFailure", "ServeLaw"]
