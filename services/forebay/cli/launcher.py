"""`forebay up`: a whole mesh on one machine, from an empty folder to three answered tenants, and back to nothing running."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import sys
from asyncio.subprocess import PIPE
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from rich.markup import escape
from rich.table import Table
from rich.text import Text

from forebay.cli.data_dir import DEFAULT_DATA, DataDir, write_file
from forebay.cli.demo import show_demo
from forebay.cli.figures import masked
from forebay.cli.first_start import came_up, prepare_tenants
from forebay.cli.guardian import Guardian
from forebay.cli.mesh_config import ROUTER_DRAIN_S, MeshPlan, PoolPlan, plan_processes, served_name
from forebay.cli.mesh_state import ModelState
from forebay.cli.ports import Ports
from forebay.cli.progress import StartProgress
from forebay.cli.supervisor import StartError, Supervisor
from forebay.cli.terminal import lasting_terminal

DEFAULT_MODELS = {"vllm": "wheel:smollm2", "simulated": "simulated"}


@dataclass(frozen=True, slots=True)
class LaunchOptions:
    """What `forebay up` was asked for.

    Attributes:
        workers: of the shared pool.
        engine: vllm or simulated.
        model: a reference as `forebay.worker.prepare_model` takes it; None for the engine's default.
        tenants_file: copied into a new mesh; None for the sample.
        otlp_endpoint: where traces go; None for files.
        demo: whether the sample tenants ask something once the mesh is ready.
        serve: whether it goes on after that.
        pools: dedicated pools.
        ports: of processes that may have no other, by name.
        drain_s: how long requests that run may go on when their router is stopped.
    """

    routers: int
    schedulers: int
    workers: int
    engine: str
    model: str | None
    tenants_file: Path | None
    otlp_endpoint: str | None
    demo: bool
    serve: bool
    pools: tuple[PoolPlan, ...] = ()
    ports: Mapping[str, int] = field(default_factory=dict)
    drain_s: float = ROUTER_DRAIN_S


async def launch(data: DataDir, options: LaunchOptions) -> None:
    """Runs a mesh until a signal comes, or until the demonstration is over, and leaves nothing running.

    Raises:
        DataDirError: the folder is in use or unusable.
        StartError: the mesh does not come up, or the demonstration failed and was all that was wanted.
    """
    launcher = _Launcher(data, options)
    work = asyncio.create_task(launcher.run())
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as `nohup` has SIGHUP
            loop.add_signal_handler(number, launcher.interrupt, work)
    await asyncio.wait([work])
    if not work.cancelled():
        work.result()
    launcher.say("stopped", style="dim")


class _Launcher:
    """One run of `forebay up`."""

    def __init__(self, data: DataDir, options: LaunchOptions) -> None:
        self._data = data
        self._options = options
        self._console = lasting_terminal()
        # What prints past the console must not fail either.
        sys.stdout, sys.stderr = self._console.file, lasting_terminal(stderr=True).file
        self._mesh: Supervisor | None = None
        self._interrupts = 0

    def interrupt(self, work: asyncio.Task[None]) -> None:
        """Stops the mesh at the first signal, ends what still runs at the second, and kills what is left at the third."""
        self._interrupts += 1
        if self._interrupts == 1:
            self.say("\nstopping: requests that run may end first; Ctrl-C again ends them now", style="dim")
            work.cancel()
        elif self._mesh is not None and self._interrupts == 2:
            self.say("ending what runs now; Ctrl-C once more kills what is left", style="dim")
            self._mesh.hurry()
        elif self._mesh is not None:
            self._mesh.kill()

    async def run(self) -> None:
        """From an empty folder to a mesh that serves, and back."""
        with self._data.locked():
            with _preparing(self._data):
                self._data.mesh_file.unlink(missing_ok=True)  # of a launcher that was killed
                keys = prepare_tenants(self._data, self._options.tenants_file)
            ports = Ports(str(self._data.root), _known_ports(self._data), self._options.ports)
            try:
                async with Guardian() as guardian:
                    plan = await self._plan(guardian)
                    with _preparing(self._data):
                        specs = plan_processes(self._data, plan, ports.take)
                        write_file(self._data.ports_file, json.dumps(ports.taken, indent=2) + "\n")
                    model = ModelState(plan.model, str(plan.model_directory))
                    mesh = self._mesh = Supervisor(guardian, specs, model, self._data.mesh_file, self.say)
                    async with mesh:
                        await self._come_up(mesh)
                        await self._serve(mesh, keys)
                        self.say("stopping …", style="dim")
            finally:
                ports.release()

    async def _plan(self, guardian: Guardian) -> MeshPlan:
        """Makes the model ready, and says what is to run."""
        options = self._options
        reference = options.model or DEFAULT_MODELS[options.engine]
        plan = MeshPlan(
            routers=options.routers,
            schedulers=options.schedulers,
            workers=options.workers,
            engine=options.engine,
            model=served_name(reference),
            model_directory=await self._prepare_model(guardian, reference),
            gpu=shutil.which("nvidia-smi") is not None,
            otlp_endpoint=options.otlp_endpoint,
            pools=options.pools,
            router_drain_s=options.drain_s,
        )
        if unknown := sorted(options.ports.keys() - plan.names):
            raise StartError(f"--port: this mesh has no {', '.join(unknown)}; it has {', '.join(plan.names)}")
        return plan

    async def _prepare_model(self, guardian: Guardian, reference: str) -> Path:
        argv = [sys.executable, "-m", "forebay.worker.prepare_model", reference]
        process = await guardian.spawn(argv, stdout=PIPE, stderr=PIPE)
        assert process.stdout
        assert process.stderr
        printed: deque[str] = deque(maxlen=15)
        with self._console.status(f"preparing model {reference}") as status:
            async for line in process.stderr:
                printed.append(line.decode(errors="replace").rstrip())
                if self._console.is_terminal:
                    status.update(escape(printed[-1]))
                else:
                    self.say(printed[-1])
            directory = (await process.stdout.read()).decode().strip().rpartition("\n")[2]
        if await process.wait() != 0:
            raise StartError("\n".join([f"model {reference} cannot be prepared:", *printed]))
        guardian.release(process.pid)
        return Path(directory)

    async def _come_up(self, mesh: Supervisor) -> None:
        progress = StartProgress(self._console, mesh.children)
        try:
            with progress.shown():
                await mesh.wait_ready(progress.tick)
        except StartError as error:
            if self._data.first_start_file.exists():
                hint = f"It has never been ready: its tenants are in {self._data.tenants_file}, and --tenants replaces them."
                raise StartError(f"{error}\n{hint}") from None
            raise
        came_up(self._data)

    async def _serve(self, mesh: Supervisor, keys: Mapping[str, str]) -> None:
        """Shows where everything is, runs the demonstration, and then only waits."""
        self._console.print(_endpoints(mesh))
        address = mesh.children["router-1"].spec.address
        if self._options.demo:
            answered = await show_demo(self._console, address, keys)
            if not answered and not self._options.serve:
                raise StartError(f"the demonstration failed; the logs are in {self._data.folder('logs')}")
        if self._options.serve:
            self._console.print(_hints(self._data, address, keys))
            await asyncio.Event().wait()

    def say(self, line: str, style: str | None = None) -> None:
        """Prints a line as it is."""
        self._console.print(line, style=style, markup=False)


@contextmanager
def _preparing(data: DataDir) -> Iterator[None]:
    """Says what is wrong with the folder when a file of it cannot be read or written."""
    try:
        yield
    except OSError as error:
        file = f" ({error.filename})" if error.filename else ""
        raise StartError(f"{data.root} cannot be prepared: {error.strerror}{file}") from None


def _known_ports(data: DataDir) -> dict[str, int]:
    """Returns the ports of the run before; none where they cannot be read."""
    try:
        known = json.loads(data.ports_file.read_bytes())
        return {str(name): port for name, port in known.items() if isinstance(port, int) and 0 < port < 65_536}
    except (OSError, ValueError, AttributeError):
        return {}


def _endpoints(mesh: Supervisor) -> Table:
    table = Table(box=None, pad_edge=False)
    for name in ("process", "address", "pid", "log"):
        table.add_column(name)
    for name, child in mesh.children.items():
        table.add_row(name, child.spec.address, str(child.pid), _relative(child.spec.log))
    return table


def _hints(data: DataDir, address: str, keys: Mapping[str, str]) -> Text:
    """Returns what to type next, in another terminal."""
    called = Path(sys.argv[0])
    by_module = "python -m forebay.cli" if called.name == "__main__.py" else _relative(called)
    command = "forebay" if shutil.which("forebay") else by_module
    where = "" if data.root == Path(DEFAULT_DATA).resolve() else f" --data {_relative(data.root)}"
    text = Text("\nA first call, from another terminal:\n\n")
    for tenant, key in list(keys.items())[:1]:
        text.append(f'  {command} generate --tenant {tenant}{where} "Why is the sky blue?"\n', "bold")
        text.append(f'  {command} generate --router {address} --key {key} "Why is the sky blue?"\n\n', "bold")
    text.append(f"  {command} usage tail --all{where}\n  {command} status{where}\n\n")
    for tenant, key in keys.items():
        text.append(f"  {tenant:<12} {masked(key)}\n", "dim")
    text.append(f"\nKeys are in {_relative(data.development_keys_file)}. ", "dim")
    text.append("Ctrl-C stops the mesh.")
    return text


def _relative(path: Path) -> str:
    """Returns a path as one would type it here."""
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)
