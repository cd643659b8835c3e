"""The processes that render and tokenise long prompts, which tenants take by turns.

Tokenising takes a second a mebibyte and holds the interpreter, so threads would isolate nobody: the event loop would stand still
for all tenants. It costs the sender nothing, either, be it that a prompt is only counted or that the tenant has no quota left.

So long prompts leave the router's process as they came, unparsed. Tenants take turns (`turns`) at a few processes, whose priority
is below the router's. A process that takes too long is killed and started again, and only the prompt's sender notices.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Sequence
from dataclasses import asdict
from types import TracebackType
from typing import Any, Self

from forebay.errors import Code, MeshError
from forebay.router.tokenizer_frames import PREFIX, Job, ModelFiles, Tokens, frame, job_frame, read_answer
from forebay.router.turns import Turns
from forebay.telemetry.logs import get_logger

JOB_WITHIN_S = 20.0
LOADED_WITHIN_S = 120.0
# Of one tenant's prompts that wait.
MAX_WAITING_BYTES = 16 << 20

log = get_logger("tokenizer")


class TokenizerProcess:
    """One process, started when it is first needed."""

    def __init__(self, hello: bytes, within_s: float) -> None:
        """Prepares: `hello` is its first frame, and a job may take `within_s` seconds."""
        self._hello = hello
        self._within_s = within_s
        self._process: Process | None = None

    async def start(self) -> None:
        """Returns once the process has loaded its tokenizers, which it does once.

        Raises:
            MeshError: UNAVAILABLE TOKENIZER_UNAVAILABLE.
        """
        if self._process is None:
            # It works on what clients send, so it is given none of the service's secrets.
            environment = {name: value for name, value in os.environ.items() if not name.startswith("FOREBAY_")}
            command = (sys.executable, "-m", "forebay.router.tokenizer_process")
            try:
                self._process = await asyncio.create_subprocess_exec(*command, stdin=PIPE, stdout=PIPE, env=environment)
            except OSError as error:
                log.warning("tokenizer process not started", reason=str(error))
                raise _unavailable("no process can be started to tokenise the prompt; try again") from None
            await self._exchange(self._hello, LOADED_WITHIN_S)

    async def run(self, job: Job) -> Tokens:
        """Returns a prompt's tokens.

        Raises:
            MeshError: as the prompt deserves; UNAVAILABLE TOKENIZER_UNAVAILABLE when the process ended or took too long.
        """
        await self.start()
        return read_answer(*await self._exchange(job_frame(job), self._within_s))

    async def close(self) -> None:
        """Ends the process."""
        process, self._process = self._process, None
        if process is not None and process.returncode is None:
            process.kill()
            await process.wait()

    async def _exchange(self, request: bytes, within_s: float) -> tuple[dict[str, Any], bytes]:
        process = self._process
        assert process is not None
        assert process.stdin
        assert process.stdout
        try:
            async with asyncio.timeout(within_s):
                process.stdin.write(request)
                await process.stdin.drain()
                head_size, body_size = PREFIX.unpack(await process.stdout.readexactly(PREFIX.size))
                head = await process.stdout.readexactly(head_size)
                return json.loads(head), await process.stdout.readexactly(body_size)
        except (
            OSError,
            EOFError,
            TimeoutError,
            RuntimeError,
        ) as error:  # uvloop says RuntimeError of a pipe that is closed
            log.warning("tokenizer process ended", reason=type(error).__name__, pid=process.pid)
            await self.close()
            message = f"the prompt could not be tokenised within {within_s:g} s; send a shorter one, or try again"
            raise _unavailable(message) from None
        except asyncio.CancelledError:
            await self.close()  # what it would still answer belongs to nobody
            raise


def _unavailable(message: str) -> MeshError:
    return MeshError(Code.UNAVAILABLE, "TOKENIZER_UNAVAILABLE", message, retry_after=1)


class TokenizerProcesses:
    """A few processes; an async context manager, whose end kills them."""

    def __init__(
        self,
        models: Sequence[ModelFiles],
        *,
        processes: int,
        max_waiting: int,
        max_prompt_bytes: int,
        within_s: float = JOB_WITHIN_S,
    ) -> None:
        """Prepares.

        Args:
            models: whose tokenizers they load.
            processes: how many; one tenant has at most all but one at a time.
            max_waiting: prompts of one tenant that wait.
            max_prompt_bytes: the most text in one prompt.
            within_s: how long one prompt may take.
        """
        hello = frame({"models": [asdict(model) for model in models], "max_prompt_bytes": max_prompt_bytes})
        self._all = [TokenizerProcess(hello, within_s) for _ in range(processes)]
        self._idle = list(self._all)
        self._turns = Turns(processes, max(1, processes - 1), max_waiting, MAX_WAITING_BYTES)
        self._jobs: set[asyncio.Task[Tokens]] = set()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for job in self._jobs:
            job.cancel()
        await asyncio.gather(*self._jobs, return_exceptions=True)
        await asyncio.gather(*(process.close() for process in self._all))

    async def warm(self) -> None:
        """Starts all processes, so that no prompt has to wait for that."""
        for number, process in enumerate(self._all):
            async with self._turns.turn(f"start {number}"):
                if process in self._idle:  # else somebody has started it
                    self._idle.remove(process)
                    try:
                        await process.start()
                    except MeshError:
                        pass  # it is in the log, and the next prompt tries again
                    finally:
                        self._idle.append(process)

    async def run(self, tenant_id: str, job: Job) -> Tokens:
        """Returns the tokens of a tenant's prompt.

        A caller that is cancelled no longer waits; its prompt keeps its place until it has been tokenised.

        Raises:
            MeshError: as of `Turns.turn` and `TokenizerProcess.run`.
        """
        await self._turns.take(tenant_id, len(job.prompt))
        process = self._idle.pop()
        work = asyncio.create_task(process.run(job))
        self._jobs.add(work)
        work.add_done_callback(lambda work: self._done(work, process, tenant_id))
        return await asyncio.shield(work)

    def _done(self, work: asyncio.Task[Tokens], process: TokenizerProcess, tenant_id: str) -> None:
        self._jobs.discard(work)
        self._idle.append(process)
        self._turns.give_back(tenant_id)
        if not work.cancelled():
            work.exception()  # the caller has it, unless nobody waits any more
