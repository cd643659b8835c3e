"""The text of one attempt: its tokens become characters, and a stop string in them ends it."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Tokenizer

from forebay.worker.detokenizer import Detokenizer
from forebay.worker.domain.stop_strings import StopStrings
from forebay.worker.engine import EngineRequest


class AnswerText:
    """What an attempt says, from where an earlier one left off.

    Attributes:
        position: completion tokens in all, those delivered by earlier attempts included.
    """

    def __init__(self, tokenizer: Tokenizer, request: EngineRequest) -> None:
        self.position = len(request.delivered_token_ids)
        self._detokenizer = Detokenizer(tokenizer, request.prompt_token_ids, request.delivered_token_ids)
        self._stops = StopStrings(request.sampling.stop, request.held_text)
        self._min_tokens = request.sampling.min_tokens

    @property
    def held(self) -> str:
        """Text that may be the beginning of a stop string."""
        return self._stops.held

    def push(self, token_ids: Sequence[int], *, ended: bool = False) -> tuple[int, str, bool]:
        """Takes new tokens; returns how many of them count, their text, and whether a stop string ends the answer there.

        If they have `ended` the answer, the last one is the end token or a stop token, and no part of the text.
        """
        pieces = []
        for count, token in enumerate(token_ids, start=1):
            self.position += 1
            if ended and count == len(token_ids):
                break
            piece, stopped = self._stops.push(self._detokenizer.push([token]), armed=self.position > self._min_tokens)
            pieces.append(piece)
            if stopped:
                return count, "".join(pieces), True
        return len(token_ids), "".join(pieces), False

    def end(self) -> tuple[str, bool]:
        """Ends an answer that no stop string has ended.

        Returns:
            All text that was held: an incomplete character, as U+FFFD, and the beginning of a stop string. Then whether the
            U+FFFD completes a stop string, before which the text ends.
        """
        piece, stopped = self._stops.push(self._detokenizer.flush(), armed=self.position > self._min_tokens)
        return piece + self._stops.flush(), stopped
