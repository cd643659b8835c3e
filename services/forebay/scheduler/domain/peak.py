"""The most KV cache that a set of running requests will hold at any time to come.

Source. The future peak of Gong et al. (ASPLOS 2025; see length_model.py). Each running request holds u tokens now, gains one a
step, and is expected to end after r more. Just before the k-th longest ends, the k longest run and hold the sum of their u and
k times its r; the peak is the largest of these sums. It lies far below the sum of what each could come to, since they do
not all end at once, and above what they hold now.

Cost. With the requests sorted by r, longest first, and P_k = U_k + k r_k, another request (u, r) at place p leaves the
P_k before it as they are, makes its own U_{p-1} + u + p r, and adds u + r_k to each behind it. So running maxima of P_k from
the left and of P_k + r_k from the right answer "what if" by one bisection. They are made anew, in O(n log n), when a step
was reported since: a few µs at 64 requests, once a report and not once a question.
"""

from bisect import bisect_right
from collections.abc import Iterable


class Peak:
    """The future peak of a set of requests, each (remaining, held) in tokens."""

    def __init__(self, requests: Iterable[tuple[int, int]] = ()) -> None:
        self._requests = sorted(requests, reverse=True)
        self._measure()

    @property
    def tokens(self) -> int:
        """The peak of the set as it is."""
        return self._before[-1]

    def with_one(self, remaining: int, held: int) -> int:
        """Returns what the peak would be with one more request."""
        place = bisect_right(self._negated, -remaining)
        own = self._sums[place] + held + (place + 1) * remaining
        return max(self._before[place], own, self._behind[place] + held)

    def add(self, remaining: int, held: int) -> None:
        """Adds a request."""
        self._requests.insert(bisect_right(self._negated, -remaining), (remaining, held))
        self._measure()

    def _measure(self) -> None:
        # Plain loops: with `accumulate(…, max)` this took three times as long.
        negated: list[int] = []
        peaks: list[int] = []
        sums, before = [0], [0]
        count = total = most = 0
        for remaining, held in self._requests:
            count += 1
            total += held
            peak = total + count * remaining
            if peak > most:
                most = peak
            negated.append(-remaining)
            sums.append(total)
            before.append(most)
            peaks.append(peak + remaining)
        behind = [0] * (count + 1)
        most = 0
        for place in range(count - 1, -1, -1):
            if peaks[place] > most:
                most = peaks[place]
            behind[place] = most
        self._negated, self._sums, self._before, self._behind = negated, sums, before, behind
