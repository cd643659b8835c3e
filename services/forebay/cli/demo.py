"""The demonstration: tenants on different plans ask at the same time; what each got and pays is laid side by side."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field

from rich.columns import Columns
from rich.console import Console, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.text import Text

from forebay.cli.answer import Told, tell
from forebay.cli.explain import explain
from forebay.cli.figures import duration, usd
from forebay.cli.rows import Rows
from forebay.client import ForebayClient, MeshError

QUESTIONS = (
    "What is the capital of France?",
    "Why is the sky blue? Answer in one sentence.",
    "Name three fruits that are red.",
)
MAX_TOKENS = 64
_PANEL_WIDTH = 40


@dataclass(slots=True)
class _Asking:
    """One tenant's request as it goes."""

    tenant: str
    question: str
    key: str
    text: str = ""
    told: Told | None = None
    error: MeshError | None = None
    news: asyncio.Event = field(default_factory=asyncio.Event)

    async def ask(self, address: str) -> None:
        try:
            async with ForebayClient(address, self.key) as client:
                self.told = await tell(
                    client, self.question, {"max_tokens": MAX_TOKENS, "temperature": 0.0}, self._heard
                )
        except MeshError as error:
            self.error = error
        finally:
            self.news.set()

    @property
    def over(self) -> bool:
        return self.told is not None or self.error is not None

    def _heard(self, text: str) -> None:
        self.text += text
        self.news.set()


async def show_demo(console: Console, address: str, keys: Mapping[str, str]) -> bool:
    """Asks for the first three tenants, shows the answers as they come, then a table; returns whether all were answered.

    Args:
        address: a router.
        keys: the tenants' development keys.
    """
    asking = [_Asking(tenant, question, key) for (tenant, key), question in zip(keys.items(), QUESTIONS, strict=False)]
    async with asyncio.TaskGroup() as group:
        for one in asking:
            group.create_task(one.ask(address))
        await (_side_by_side(console, asking) if console.is_terminal else _one_by_one(console, asking))
    console.print()
    console.print(_table(asking))
    for one in asking:
        if one.error:
            console.print(f"{one.tenant}: {explain(one.error)}", style="red", markup=False)
    return bool(asking) and all(one.told for one in asking)


async def _side_by_side(console: Console, asking: list[_Asking]) -> None:
    """Draws a panel for each tenant until all are answered."""
    console.print()
    with Live(console=console, refresh_per_second=12) as live:
        while not all(one.over for one in asking):
            live.update(_panels(console, asking))
            await asyncio.sleep(0.05)
        live.update(_panels(console, asking))


def _panels(console: Console, asking: list[_Asking]) -> RenderableType:
    texts = [
        Text.assemble((one.question, "bold"), "\n\n", one.text.strip(), ("" if one.over else " ▌", "dim"))
        for one in asking
    ]
    height = max(len(text.wrap(console, _PANEL_WIDTH - 4)) for text in texts) + 2
    return Columns(
        [
            Panel(
                text,
                title=one.tenant,
                border_style="red" if one.error else "green" if one.over else "yellow",
                width=_PANEL_WIDTH,
                height=height,
            )
            for text, one in zip(texts, asking, strict=True)
        ]
    )


async def _one_by_one(console: Console, asking: list[_Asking]) -> None:
    """Prints each answer to its end before the next: all are asked at once, but a log can show but one at a time."""
    for one in asking:
        console.print(f"\n{one.tenant} asks: {one.question}", markup=False, highlight=False)
        shown = 0
        while True:
            one.news.clear()
            console.file.write(one.text[shown:])
            console.file.flush()
            shown = len(one.text)
            if one.over:
                break
            await one.news.wait()
        console.print()


def _table(asking: list[_Asking]) -> Rows:
    rows = Rows("tenant", "plan", figures=("in", "out", "first token", "cost"), more=("trace",))
    for one in asking:
        rows.add(one.tenant, *(_cells(one.told) if one.told else ()))
    return rows


def _cells(told: Told) -> list[str]:
    return [
        told.bill.entries[0].plan if told.bill.entries else "–",
        f"{told.finished.usage.prompt:,}",
        f"{told.finished.usage.completion:,}",
        duration(told.finished.time_to_first_token),
        usd(told.bill.cost_nano_usd) if told.bill.entries else "–",
        told.started.trace_id,
    ]
