"""When a process that died is started again."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RestartPolicy:
    """Doubles the pause with each death, and begins anew after a life that was long enough.

    Attributes:
        first_s: the pause after a first death, in seconds.
        longest_s: the pause never grows beyond this.
        steady_s: a process that lived this long was well, and its next death counts as a first one.
    """

    first_s: float = 0.2
    longest_s: float = 5.0
    steady_s: float = 10.0

    def pause(self, before: float | None, lived_s: float) -> float:
        """Returns how long to wait after a death.

        Args:
            before: the pause after the death before; None when there was none.
            lived_s: how long the process lived.
        """
        if before is None or lived_s >= self.steady_s:
            return self.first_s
        return min(2 * before, self.longest_s)
