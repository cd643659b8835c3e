"""The life of a service process: configuration, logs, traces, server, drain, end. Every `main.py` hands its `build` to this.

```
run_service ─ load ─ build ─ serve ─ SIGTERM ─▶ drain (at most drain_s) ─▶ end (at most STOP_WITHIN_S) ─▶ exit 0
                               │                  │ SIGTERM: the drain ends now, and so do the calls that run
                               │                  └ SIGTERM once more: exit at once
                               └ a component fails (`forebay.tasks`) ─▶ drain (at most FAILED_DRAIN_S) ─▶ end ─▶ exit 1
```

Each step has a bound, because a peer that is unreachable makes any close, flush or last word wait. A process that passes the last
bound logs what it waits for and exits with 1.
"""

from __future__ import annotations

import argparse
import asyncio
import faulthandler
import gc
import os
import signal
import sys
import threading
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TypeVar

import uvloop

from forebay import __version__, tasks
from forebay.config import ConfigError, ServiceConfig
from forebay.rpc.server import RpcServer
from forebay.tasks import background as background
from forebay.telemetry.logs import configure_logs, get_logger
from forebay.telemetry.metrics import serve_metrics
from forebay.telemetry.notify import notify
from forebay.telemetry.sink import LineSink
from forebay.telemetry.tracing import configure_tracing, flush_tracing

C = TypeVar("C", bound=ServiceConfig)
Build = Callable[[C, AsyncExitStack], Awaitable[RpcServer]]

# What is left after the drain: closing files and connections, last words to peers.
STOP_WITHIN_S = 5.0
# With a component dead, calls that run may be hanging: they are ended, and go on or are tried again elsewhere.
FAILED_DRAIN_S = 1.0
FLUSH_TRACES_WITHIN_S = 1.0

log = get_logger("lifecycle")


def run_service(
    config_type: type[C], build: Build[C], hung_after_s: float | None = None, stop_within_s: float = STOP_WITHIN_S
) -> None:
    """Runs one service until SIGTERM or SIGINT; exits with 0 then, with 2 for a wrong configuration, with 1 for a failure.

    Args:
        config_type: what it is configured with.
        build: makes its server.
        hung_after_s: ends the process with 1, and the stacks of its threads on stderr, when its event loop has not turned for so
            long. For a service that another replaces: gRPC's threads answer pings, so its peers would stay with it for ever.
        stop_within_s: how long the end may take after the drain.
    """
    parser = argparse.ArgumentParser(
        prog=f"forebay-{config_type.service}",
        description=f"The {config_type.service} service of forebay.",
        epilog=(
            f"fields of FILE, each also settable as FOREBAY_{config_type.service.upper()}_<FIELD>:\n"
            + config_type.explain_fields()
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"forebay {__version__}")
    parser.add_argument("--config", type=Path, metavar="FILE", help="a YAML file with the fields below")
    parser.add_argument("--validate", action="store_true", help="check the configuration, say what is wrong, and end")
    arguments = parser.parse_args()
    try:
        config = config_type.load(arguments.config)
    except ConfigError as error:
        sys.exit(_complain(str(error), 2))
    if arguments.validate:
        sys.stdout.write("".join(f"warning: {each}\n" for each in config.warnings()))
        sys.stdout.write(f"the configuration of {config_type.service} is valid\n")
        return
    sink = configure_logs(config_type.service, config.id, config.log_level)
    for each in config.warnings():
        log.warning(each)
    try:
        uvloop.run(_serve(config_type.service, config, build, sink, hung_after_s, stop_within_s))
    except ConfigError as error:
        sys.exit(_complain(str(error), 2))
    if tasks.failed():
        sys.exit(1)


class _Stop:
    """What this process has been told about its end.

    Attributes:
        asked: set once it is to end.
        at_once: set once it is not to wait for calls that run.
    """

    def __init__(self, sink: LineSink) -> None:
        self.asked = asyncio.Event()
        self.at_once = asyncio.Event()
        self._sink = sink
        self._bound: threading.Timer | None = None

    def signalled(self) -> None:
        """Takes a SIGTERM or SIGINT: the first asks, the second asks to be quick, the third ends the process."""
        if self.at_once.is_set():
            log.warning("ends at once, as it was told to for the third time")
            os._exit(1)
        (self.at_once if self.asked.is_set() else self.asked).set()

    def failed(self) -> None:
        """Takes note that a component is dead."""
        self.asked.set()

    def within(self, seconds: float) -> None:
        """Bounds what is left of this process's life, from now; replaces the bound before."""
        if self._bound is not None:
            self._bound.cancel()
        self._bound = threading.Timer(seconds, self._give_up, args=[seconds])
        self._bound.daemon = True  # it watches the interpreter's own end, too
        self._bound.start()

    def _give_up(self, seconds: float) -> None:
        log.error("not ended in time and ends now; the stacks show what it waits for", seconds=seconds)
        if self._sink.descriptor >= 0:
            faulthandler.dump_traceback(file=self._sink.descriptor, all_threads=True)
        os._exit(1)


async def _serve(
    service: str, config: C, build: Build[C], sink: LineSink, hung_after_s: float | None, stop_within_s: float
) -> None:
    stop = _Stop(sink)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.signalled)
    tasks.on_failure(stop.failed)
    provider = configure_tracing(
        service,
        config.id,
        process_id=os.getpid(),
        otlp_endpoint=config.otlp_endpoint,
        file=config.trace_file.with_name(config.trace_file.name.replace("{pid}", str(os.getpid())))
        if config.trace_file
        else None,
        sample_ratio=config.trace_ratio,
    )
    try:
        async with AsyncExitStack() as stack:
            if hung_after_s is not None:
                await stack.enter_async_context(background(_show_life(hung_after_s, sink), "watchdog"))
            if config.metrics_listen:
                log.info("metrics", port=serve_metrics(config.metrics_listen))
            try:
                server = await _unless_stopped(stop, build(config, stack))
                if server is not None:
                    await server.start()
                    # What is here now stays: the collector need not look at it again, which shortens its every pause.
                    gc.collect()
                    gc.freeze()
                    log.info("listening", address=server.address, pid=os.getpid())
                    notify(READY=1)
                    await stop.asked.wait()
                    notify(STOPPING=1)
                    await _drain(server, stop, config.drain_s, stop_within_s)
            finally:
                stop.within(stop_within_s)
    finally:
        if provider is not None and not await asyncio.to_thread(flush_tracing, provider, FLUSH_TRACES_WITHIN_S):
            log.warning("not all spans are sent: the collector does not answer", endpoint=config.otlp_endpoint)
    log.info("stopped")


async def _unless_stopped(stop: _Stop, building: Awaitable[RpcServer]) -> RpcServer | None:
    """Returns the server, or None when the process was told to end before it was made: a peer may keep it waiting."""
    build = asyncio.ensure_future(building)
    asked = asyncio.ensure_future(stop.asked.wait())
    await asyncio.wait({build, asked}, return_when=asyncio.FIRST_COMPLETED)
    asked.cancel()
    if not build.done():
        build.cancel()
        await asyncio.wait({build}, timeout=1.0)
    return None if build.cancelled() or not build.done() else build.result()


async def _drain(server: RpcServer, stop: _Stop, drain_s: float, stop_within_s: float) -> None:
    """Lets calls that run go on, until they have ended, the time is over, or it is asked for a second time."""
    seconds = min(drain_s, FAILED_DRAIN_S) if tasks.failed() else drain_s
    log.info("draining", seconds=seconds)
    stop.within(seconds + server.last_words_s + stop_within_s)
    draining = asyncio.ensure_future(server.drain(seconds))
    hurry = asyncio.ensure_future(stop.at_once.wait())
    await asyncio.wait({draining, hurry}, return_when=asyncio.FIRST_COMPLETED)
    hurry.cancel()
    if not draining.done():
        log.info("told once more: calls that run are ended")
        stop.within(server.last_words_s + stop_within_s)
        draining.cancel()
        await asyncio.gather(draining, return_exceptions=True)
        draining = asyncio.ensure_future(server.drain(0))
    await draining


async def _show_life(hung_after_s: float, sink: LineSink) -> None:
    file = sink.descriptor if sink.descriptor >= 0 else os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
    try:
        while True:
            faulthandler.dump_traceback_later(hung_after_s, exit=True, file=file)
            await asyncio.sleep(hung_after_s / 10)
    finally:
        faulthandler.cancel_dump_traceback_later()


def _complain(message: str, status: int) -> int:
    try:
        sys.stderr.write(message + "\n")
    except (OSError, ValueError, AttributeError):
        pass  # the exit status still says it
    return status
