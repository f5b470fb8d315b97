"""Engines for rayreel.

class Mine(Engine):
    def load(self, load): ...
    def generate(self, request, progress): ...

serve(Mine())
"""

from rayreel.engine import (
    Cancelled,
    Engine,
    Failed,
    InvalidRequest,
    LoadFailed,
    OutOfMemory,
    Progress,
)
from rayreel.serving import serve
from rayreel.wire import Load, Output, Request

__version__ = "0.1.0"
"""That of the program `rayreel` which these engines fit."""

__all__ = [
    "Cancelled",
    "Engine",
    "Failed",
    "InvalidRequest",
    "Load",
    "LoadFailed",
    "OutOfMemory",
    "Output",
    "Progress",
    "Request",
    "serve",
]
