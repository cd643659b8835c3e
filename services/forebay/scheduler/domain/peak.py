"""The most KV cache that a set of running requests will hold at any time to come.

Source. The future peak of Gong et al. (ASPLOS 2025; see length_model.py). Each running request holds u tokens now, gains one a
step, and is expected to end after r more. Just before the k-th longest ends, the k longest run and hold the sum of their u and
k times its r; the peak is the largest of these sums. It lies far below the sum of what each could come to, since they do
not all end at once, and above what they hold now.

Cost. With the requests sorted by r, longest first, and P_k = U_k + k r_k, another request (u, r) at place p leaves the
P_k before it as they are, makes its own U_{p-1} + u + p r, and adds u + r_k to each behind it. So "what if" is a bisection and
the largest of P_k before it and of P_k + r_k behind it. The sums are made anew when a step was reported since: some µs at 64
requests, once a report and not once a question.
"""

from bisect import bisect_right, insort
from collections.abc import Iterable
from itertools import accumulate

Row = tuple[int, int]
"""(-remaining, held) of a request, in tokens: the longest first."""


class Peak:
    """The future peak of a set of requests."""

    def __init__(self, rows: Iterable[Row] = ()) -> None:
        self._rows = sorted(rows)
        self._sums: list[int] | None = None
        self._peaks: list[int] = []
        self._behind: list[int] = []

    @property
    def tokens(self) -> int:
        """The peak of the set as it is."""
        self._measure()
        return max(self._peaks, default=0)

    def with_one(self, row: Row) -> int:
        """Returns what the peak would be with one more request."""
        sums = self._measure()
        place = bisect_right(self._rows, row)
        own = sums[place] + row[1] - (place + 1) * row[0]
        before = max(self._peaks[:place], default=0)
        return max(before, own, max(self._behind[place:], default=-row[1]) + row[1])

    def add(self, row: Row) -> None:
        """Adds a request."""
        insort(self._rows, row)
        self._sums = None

    def _measure(self) -> list[int]:
        """Returns the running sums of what is held, having brought them and the peaks up to date."""
        if self._sums is not None:
            return self._sums
        self._sums = sums = [0, *accumulate(held for _, held in self._rows)]
        self._peaks = [sums[count] - count * shortened for count, (shortened, _) in enumerate(self._rows, 1)]
        self._behind = [peak - shortened for peak, (shortened, _) in zip(self._peaks, self._rows, strict=True)]
        return sums
