"""Rule P3: whom a new leader hears before it grants, and what it takes over from the leader before it.

A leader's state is what routers and workers say of themselves, so a new one has nothing to copy but two things: who there is, so
that it knows when it has heard everybody, and how far each flow is ahead of the neediest beside it, so that a change of leader
forgives nobody what it has had. Both are in the checkpoint that the leader stores about once a second. What was served since the
last one is forgotten: at most a second's service.

Nothing is granted before all have spoken or 2 s have passed. A worker that has not spoken is not granted to, before or after.

What it is told, piece by piece. A worker reports what it holds only after it has seen the new epoch, from when on it refuses
grants of older ones. So its report is final: what is not in it will not run there under an earlier grant. What is in it is in
flight, and charged from then on to the flow that its router names. What a router says is granted or running on a worker that
has not reported is left alone: it stays with that worker until the router itself gives it up. What a router says is granted on a
worker that has reported and does not know it is left to the router, too: its payload is on the way, the worker refuses it, and
the router submits again with the time that it has waited. The leader does not queue it by itself, because it cannot know: the
attempt may have run to its end with the router not having heard, and only the router can tell when it does.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

WAIT_S = 2.0

Path = tuple[str, ...]
"""A flow: model, pool, and the names of the nodes from the root down."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What a leader leaves to the next.

    Attributes:
        routers, workers: ids of those with a session.
        leads: steps of its counter by which a flow is ahead of the neediest of its siblings; those at 0 are left out.
    """

    routers: frozenset[str] = frozenset()
    workers: frozenset[str] = frozenset()
    leads: Mapping[Path, int] = field(default_factory=dict)

    def to_text(self) -> str:
        """Returns it as JSON."""
        leads = [[*path, steps] for path, steps in self.leads.items()]
        return json.dumps({"routers": sorted(self.routers), "workers": sorted(self.workers), "leads": leads})

    @classmethod
    def from_text(cls, text: str) -> "Checkpoint":
        """Reads what `to_text` wrote, or empty text.

        Raises:
            ValueError: it was written by something else.
        """
        if not text:
            return cls()
        try:
            values = json.loads(text)
            leads = {
                (str(model), str(pool), str(name), *map(str, names)): int(steps)
                for model, pool, name, *names, steps in values["leads"]
            }
            return cls(frozenset(map(str, values["routers"])), frozenset(map(str, values["workers"])), leads)
        except (KeyError, TypeError, OverflowError, RecursionError) as error:
            raise ValueError("not a checkpoint") from error


class Takeover:
    """Who has yet to be heard. It is over once, and for good."""

    def __init__(self, checkpoint: Checkpoint, now: float) -> None:
        """Begins; times are seconds on the core's clock."""
        self._routers = set(checkpoint.routers)
        self._workers = set(checkpoint.workers)
        self._until = now + WAIT_S

    def router_reported(self, router_id: str) -> None:
        """Takes note that a router has said all that it holds."""
        self._routers.discard(router_id)

    def worker_reported(self, worker_id: str) -> None:
        """Takes note that a worker has said all that it holds."""
        self._workers.discard(worker_id)

    def over(self, now: float) -> bool:
        """Whether the leader may grant."""
        return now >= self._until or not (self._routers or self._workers)
