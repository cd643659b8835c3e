"""Finds stop strings in text that comes in pieces, and holds back no more than may belong to one.

Each stop string is matched by its Knuth–Morris–Pratt automaton, so a character costs amortised constant time per stop
string, however the tenant chose them. What is held back is always the longest end of the text that begins a stop string
(vLLM's own detokeniser holds back the length of the longest stop string less one, whatever the text is). When a stop
string is complete, the text before it is the answer; of several the one that ends first counts, as in vLLM.

Held text travels with a stream from engine to engine, so that a stop string is found across the seam.
"""

from collections.abc import Sequence


class StopStrings:
    """The matcher of one stream.

    Attributes:
        held: text that is known but may be the beginning of a stop string.
    """

    __slots__ = ("_failures", "_matched", "_stops", "held")

    def __init__(self, stops: Sequence[str], held: str = "") -> None:
        """Starts with text held back by an earlier attempt; no stop string is complete in it."""
        self._stops = stops
        self._failures = [_failures(stop) for stop in stops]
        self._matched = [0] * len(stops)
        self.held = held
        for char in held:
            self._advance(char)

    def push(self, text: str, *, armed: bool = True) -> tuple[str, bool]:
        """Takes the next piece; returns what may be delivered and whether a stop string is complete.

        While not `armed` (below min_tokens) a stop string that ends in the piece is passed over.
        """
        pending = self.held + text
        end = len(self.held)
        for char in text:
            end += 1
            length = self._advance(char)
            if length and armed:
                self.held = ""
                return pending[: end - length], True
        kept = max(self._matched, default=0)
        self.held = pending[len(pending) - kept :]
        return pending[: len(pending) - kept], False

    def flush(self) -> str:
        """Ends the text; returns what was held."""
        held, self.held = self.held, ""
        return held

    def _advance(self, char: str) -> int:
        """Feeds every automaton; returns the length of the stop string that is complete now, or 0."""
        complete = 0
        for index, stop in enumerate(self._stops):
            matched, failures = self._matched[index], self._failures[index]
            while matched and stop[matched] != char:
                matched = failures[matched - 1]
            if stop[matched] == char:
                matched += 1
            if matched == len(stop):
                complete = complete or matched
                matched = failures[matched - 1]
            self._matched[index] = matched
        return complete


def _failures(stop: str) -> list[int]:
    """Returns for each prefix of `stop` the length of its longest proper prefix that is also its end."""
    failures = [0]
    for char in stop[1:]:
        length = failures[-1]
        while length and stop[length] != char:
            length = failures[length - 1]
        failures.append(length + 1 if stop[length] == char else 0)
    return failures
