"""Nothing of a mesh outlives its launcher, however the launcher ends.

A launcher that is killed with -9 can stop nothing itself, and PR_SET_PDEATHSIG reaches children only: vLLM's engine core is a
child of the worker, watches no parent, and would keep the GPU. So each process of the mesh leads a process group of its own, and
one small process beside the launcher, the guardian, knows the groups. It reads them from a pipe whose other end the launcher
holds; when the pipe closes, which the kernel sees to, the guardian kills the groups that are left.

A child enrols itself, before it becomes the service: the pipe is its standard input until then. There is no moment at which a
child runs that the guardian will not hear of, for while such a child holds the pipe, the pipe is not closed.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import IO

# In a subshell, which alone dies of SIGPIPE where somebody has killed the guardian: a mesh that is unguarded goes on.
# A file-size limit is an error of a write, as on a full disk; by default its signal would kill the server.
_ENROL = 'trap "" XFSZ; (echo "+$$" >&0); exec "$@" </dev/null'


class Guardian:
    """The launcher's hold on the guardian process; an async context manager around the life of the mesh."""

    async def __aenter__(self) -> Guardian:
        end, self._pipe = os.pipe()
        try:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "forebay.cli.guardian", stdin=end, start_new_session=True
            )
        finally:
            os.close(end)
        return self

    async def __aexit__(self, *_: object) -> None:
        """Kills what is left of every group, and returns when it is gone."""
        os.close(self._pipe)
        await self._process.wait()

    async def spawn(
        self,
        argv: Sequence[str],
        *,
        stdout: int | IO[bytes],
        stderr: int | IO[bytes],
        environment: Mapping[str, str] | None = None,
    ) -> asyncio.subprocess.Process:
        """Starts a process that leads a group of its own and ends with the launcher at the latest.

        Args:
            argv: the command; its process id is that of the process returned.
            stdout: as for subprocess.
            stderr: as for subprocess.
            environment: added to that of this process.

        Raises:
            OSError: no process can be started.
        """
        return await asyncio.create_subprocess_exec(
            "/bin/sh", "-c", _ENROL, argv[0], *argv,
            stdin=self._pipe, stdout=stdout, stderr=stderr, env={**os.environ, **(environment or {})},
            start_new_session=True,
        )  # fmt: skip

    def release(self, group: int) -> None:
        """Kills what a process that ended has left of its group, and forgets the group, whose number may be used again."""
        kill_group(group)
        with suppress(BrokenPipeError):  # as above
            os.write(self._pipe, f"-{group}\n".encode())


def kill_group(group: int) -> None:
    """Kills every process of a group, if there is any."""
    with suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)


def main() -> None:
    """The guardian process: keeps the set of groups until its input ends, then kills them."""
    groups: set[int] = set()
    for line in sys.stdin:
        (groups.add if line[0] == "+" else groups.discard)(int(line[1:]))
    for group in groups:
        kill_group(group)


if __name__ == "__main__":
    main()
