"""Text from the tokens of one stream, character by character.

Why not vLLM's own: a stream that continues elsewhere must go on within a character and within a stop string. vLLM primes its
decoder with all prompt tokens, and when these end in half a character the first text that it yields is the whole prompt,
system prompt included.
"""

from collections.abc import Sequence

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

# Prompt tokens that the decoder sees: enough to tell that the answer is not the beginning of a text, where some tokenizers
# leave out the first space.
_CONTEXT_TOKENS = 4
_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"


class Detokenizer:
    """The decoder of one stream; special tokens have no text."""

    def __init__(
        self, tokenizer: Tokenizer, prompt_token_ids: Sequence[int], delivered_token_ids: Sequence[int]
    ) -> None:
        """Stands where the stream stood after the delivered tokens, within a character if need be."""
        self._tokenizer = tokenizer
        context = list(prompt_token_ids[-_CONTEXT_TOKENS:])
        if tokenizer.decode(context, skip_special_tokens=True).endswith(_INCOMPLETE):
            context = []  # else the prompt's own end would be part of the answer
        self._stream = DecodeStream(ids=context, skip_special_tokens=True)
        self.push(delivered_token_ids)

    def push(self, token_ids: Sequence[int]) -> str:
        """Returns the characters that these tokens complete; what is left of the bytes waits for the next ones."""
        return "".join([self._step(token) or "" for token in token_ids])

    def _step(self, token: int) -> str | None:
        try:
            return self._stream.step(self._tokenizer, token)
        except Exception as error:
            if not str(error).startswith("Invalid prefix"):
                raise
            # Bytes that are no UTF-8 can change how those before them decode; begin anew, as vLLM does.
            self._stream = DecodeStream(skip_special_tokens=True)
            return self._stream.step(self._tokenizer, token)
