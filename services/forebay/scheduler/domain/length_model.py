"""How many more tokens a running request will generate, from how many others did.

Source. Predicting the memory that running requests will need from the lengths of recent ones is from Gong et al.,
"Past-Future Scheduler for LLM Serving under SLA Guarantees" (ASPLOS 2025). Here it is the mean residual length
E[L - g | L > g] over the last WINDOW completions, by how many tokens g the request has generated: no predictor to train,
no look at the prompt, and it follows a change of the load within WINDOW requests.

A table of it, BUCKET tokens wide, is made anew after each REFRESH completions, so that a look-up is O(1).
"""

from collections import deque
from itertools import accumulate

WINDOW = 400
BUCKET = 4
REFRESH = 8
MIN_SAMPLES = 16
"""Below as many completions nothing is known, and each request is taken for as long as it may become."""


class LengthModel:
    """Residual lengths, learnt from completions.

    Attributes:
        version: grows whenever what is expected changes.
    """

    def __init__(self) -> None:
        self.version = 0
        self._lengths: deque[int] = deque(maxlen=WINDOW)
        self._residual: list[int] = []
        self._new = 0

    def completed(self, generated_tokens: int) -> None:
        """Learns from a request that has ended after so many generated tokens, whatever ended it."""
        self._lengths.append(generated_tokens)
        self._new += 1
        if self._new >= REFRESH and len(self._lengths) >= MIN_SAMPLES:
            self._new = 0
            self.version += 1
            self._residual = _table(sorted(self._lengths))

    def remaining(self, generated_tokens: int, max_tokens: int) -> int:
        """Returns the tokens that a request is expected to generate yet.

        Args:
            generated_tokens: until now.
            max_tokens: the most it may generate, those included.
        """
        most = max_tokens - generated_tokens
        if not self._residual:
            return most
        bucket = generated_tokens // BUCKET
        expected = self._residual[bucket if bucket < len(self._residual) else -1]
        return expected if expected < most else most


def _table(lengths: list[int]) -> list[int]:
    """Returns the mean residual at the start of each bucket, at least 1, until no length is left beyond it."""
    sums = [0, *accumulate(reversed(lengths))]
    table, beyond = [], len(lengths)
    for at in range(0, lengths[-1] + 1, BUCKET):
        while beyond and lengths[len(lengths) - beyond] <= at:
            beyond -= 1
        if beyond:
            table.append(max(1, round(sums[beyond] / beyond - at)))
    return table or [1]
