"""Named places in the code at which a test can have the process die, as kill -9 does.

A crash between two particular lines is too rare to be met by chance, so those where it would matter have a name:
`killpoints.reached("worker.after_add")`. Without FOREBAY_KILL_POINTS that does nothing. With it, the variable names a
directory, and a file in it by the point's name arms the point: the first process that comes there removes the file
and dies. A file is removed by one process only, so one file is one death, whoever else passes.

`POINTS` lists every point there is, so that a suite can see that it has tripped each.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from pathlib import Path

VARIABLE = "FOREBAY_KILL_POINTS"

POINTS: Mapping[str, str] = {
    "metering.after_commit": "rows are durable, their acknowledgement is not sent",
    "metering.before_commit": "events have come, nothing is written",
    "quota.after_reserve": "the counters hold a reservation that its router has not heard of",
    "quota.after_settle": "the counters are settled, the router does not know",
    "router.after_grant": "the grant has come, the payload is not sent",
    "router.after_reserve": "the reservation is made, nothing is submitted",
    "router.before_settle": "the answer is complete, nothing is settled",
    "scheduler.after_checkpoint": "the lease is kept and the checkpoint stored",
    "scheduler.after_grant": "the grant is decided, neither router nor worker knows",
    "scheduler.after_lease": "the lease is won, nobody has been welcomed",
    "scheduler.during_takeover": "some are heard and others not, nothing is granted",
    "worker.after_add": "the engine has the attempt, nothing has come of it",
    "worker.after_finish": "the attempt has ended and is in the spool, metering does not know",
    "worker.before_spool_sync": "the attempt's start is written, and not on the disk",
}

_directory = Path(os.environ[VARIABLE]) if VARIABLE in os.environ else None


def reached(point: str) -> None:
    """Dies here if the point is armed.

    Raises:
        KeyError: the point is not in `POINTS`.
    """
    if _directory is None:
        return
    POINTS[point]
    try:
        (_directory / point).unlink()
    except FileNotFoundError:
        return
    os.kill(os.getpid(), signal.SIGKILL)
