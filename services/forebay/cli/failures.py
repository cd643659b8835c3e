"""What a command raises when it was asked for something that cannot be meant."""

from __future__ import annotations


class WrongUsage(Exception):
    """Arguments that contradict each other, or that nothing can be done with; the message says what to give. Exit status 2."""
