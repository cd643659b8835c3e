"""The life of a service process: configuration, logs, traces, server, drain, end. Every `main.py` hands its `build` to this."""

from __future__ import annotations

import argparse
import asyncio
import faulthandler
import gc
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import uvloop

from forebay import __version__
from forebay.config import ConfigError, ServiceConfig
from forebay.rpc.server import RpcServer
from forebay.telemetry.logs import configure_logs, get_logger
from forebay.telemetry.metrics import serve_metrics
from forebay.telemetry.tracing import configure_tracing

C = TypeVar("C", bound=ServiceConfig)
Build = Callable[[C, AsyncExitStack], Awaitable[RpcServer]]

log = get_logger("lifecycle")

# Names of background tasks that failed: the process has one life, and its exit status tells how it ended.
_failed_tasks: list[str] = []


def run_service(config_type: type[C], build: Build[C], hung_after_s: float | None = None) -> None:
    """Runs one service until SIGTERM or SIGINT; exits with 0 then, with 2 for a wrong configuration, with 1 for a failure.

    Args:
        config_type: what it is configured with.
        build: makes its server.
        hung_after_s: ends the process with 1, and the stacks of its threads on stderr, when its event loop has not turned for so
            long. For a service that another replaces: gRPC's threads answer pings, so its peers would stay with it for ever.
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
        sys.stdout.write(f"the configuration of {config_type.service} is valid\n")
        return
    configure_logs(config_type.service, config.id, config.log_level)
    try:
        uvloop.run(_serve(config_type.service, config, build, hung_after_s))
    except ConfigError as error:
        sys.exit(_complain(str(error), 2))
    if _failed_tasks:
        sys.exit(1)


async def _serve(service: str, config: C, build: Build[C], hung_after_s: float | None) -> None:
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
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
                await stack.enter_async_context(background(_show_life(hung_after_s), "watchdog"))
            if config.metrics_listen:
                log.info("metrics", port=serve_metrics(config.metrics_listen))
            server = await build(config, stack)
            await server.start()
            # What is here now stays: the collector need not look at it again, which shortens its every pause.
            gc.collect()
            gc.freeze()
            log.info("listening", address=server.address, pid=os.getpid())
            await stopping.wait()
            log.info("draining", seconds=config.drain_seconds)
            await server.drain(config.drain_seconds)
    finally:
        if provider is not None:
            provider.shutdown()
    log.info("stopped")


async def _show_life(hung_after_s: float) -> None:
    try:
        while True:
            faulthandler.dump_traceback_later(hung_after_s, exit=True)
            await asyncio.sleep(hung_after_s / 10)
    finally:
        faulthandler.cancel_dump_traceback_later()


@asynccontextmanager
async def background(work: Coroutine[Any, Any, None], name: str) -> AsyncIterator[asyncio.Task[None]]:
    """Runs `work` beside the block and cancels it at the end of the block.

    Work that fails is a bug that nobody would notice: after the error is logged the process is told to stop (SIGTERM to itself)
    and ends with status 1, so that a supervisor starts it afresh.
    """
    task = asyncio.create_task(work, name=name)
    task.add_done_callback(_stop_on_failure)
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def _stop_on_failure(task: asyncio.Task[None]) -> None:
    if task.cancelled():
        return
    error = task.exception()
    if error is not None:
        log.error("background task failed", task=task.get_name(), exc_info=error)
        _failed_tasks.append(task.get_name())
        os.kill(os.getpid(), signal.SIGTERM)


def _complain(message: str, status: int) -> int:
    sys.stderr.write(message + "\n")
    return status
