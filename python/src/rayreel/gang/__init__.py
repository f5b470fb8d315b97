"""Gangs: one engine over several processes, a GPU each, called ranks.

Rank 0 is the engine that the worker talks to; the others do what it tells them. All run the same
code up to the last denoising step, in step with each other. The design, with its reasons, is in
docs/design/gangs.md.
"""

from rayreel.gang.launch import Launcher, Local, Rank, Seat
from rayreel.gang.lead import Lead
from rayreel.gang.link import Alone, Gang
from rayreel.gang.peer import Peer, join

__all__ = ["Alone", "Gang", "Launcher", "Lead", "Local", "Peer", "Rank", "Seat", "join"]
