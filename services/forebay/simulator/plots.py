"""Plots of runs, as PNGs. The only module that imports matplotlib, which the extra `forebay[plots]` installs.

A title says what was found and the line below it what is drawn. Colours are Okabe and Ito's, which colour-blind readers can tell
apart; where there are many, every other one is dashed.
"""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from forebay.simulator.loop import Outcome
from forebay.simulator.measures import first_token_seconds, quantiles, service_difference
from forebay.simulator.report import ClientReport, Report
from forebay.simulator.scenarios import Scenario

MAX_NAMED = 8
"""Clients that have a colour of their own; beyond them a plot would be a puzzle."""

MAX_LINES = 40
MAX_BARS = 16
MAX_TICKS = 12
# Spans that are round to people, in seconds: from 0.1 ms to 10 d.
_FINE_SPANS = (
    1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0,
    1_800.0, 3_600.0, 7_200.0, 18_000.0, 36_000.0, 86_400.0, 172_800.0, 432_000.0, 864_000.0,
)  # fmt: skip
_COARSE_SPANS = (1e-4, 1e-3, 0.01, 0.1, 1.0, 10.0, 60.0, 600.0, 3_600.0, 36_000.0, 86_400.0, 864_000.0)

_BLUE, _VERMILION, _GREEN, _PINK, _ORANGE, _SKY = "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"
_INK, _FAINT, _GRID, _REST = "#22262b", "#5f666e", "#e5e8eb", "#c3c9cf"
_LINES = (
    (_BLUE, "-"), (_VERMILION, "-"), (_GREEN, "-"), (_PINK, "-"), (_ORANGE, "--"), (_SKY, "--"), (_INK, "--"), (_FAINT, ":"),
)  # fmt: skip
_REFUSED = (_VERMILION, _ORANGE, _PINK, _SKY, _FAINT, _REST)
_STYLE = {
    "font.family": "DejaVu Sans", "font.size": 10, "text.color": _INK, "axes.labelcolor": _FAINT, "axes.edgecolor": _REST,
    "axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True,
    "xtick.color": _FAINT, "ytick.color": _FAINT, "grid.color": _GRID, "legend.frameon": False,
    "text.parse_math": False,  # a client may be called $x
}  # fmt: skip
_SMOOTH_S = 10
_WINDOW_S = 30

Line = tuple[str, str]
"""Its colour and its style."""


def draw(directory: Path, scenario: Scenario, outcomes: Mapping[str, Outcome], own: str, report: Report) -> list[Path]:
    """Writes every plot that has something to show and returns the files.

    Args:
        directory: exists.
        scenario: what was simulated.
        outcomes: of each scheduler.
        own: whose run the plots of single clients show.
        report: of that run.

    Raises:
        OSError: a file cannot be written.
    """
    outcome, last = outcomes[own], scenario.arrivals[-1].at
    differences = {name: service_difference(each, scenario.standings) for name, each in outcomes.items()}
    seconds = _first_tokens(outcomes, own, report)
    plots: dict[str, Callable[[], Figure]] = {
        "acceptance": lambda: _acceptance(report),
        "attempted": lambda: _attempted(report),
    }
    if any(client.cost_nano_usd for client in report.clients):
        plots["cost"] = lambda: _cost(report)
    if outcome.busy:
        plots["utilisation"] = lambda: _utilisation(outcome, own, last)
        plots["service"] = lambda: _service(outcome, report, own, last)
    if differences[own]:
        plots["difference"] = lambda: _difference(differences, own)
    if any(seconds.values()):
        plots["ttft"] = lambda: _ttft(outcomes, seconds, own, report)
    files = []
    for name, make in plots.items():
        with mpl.rc_context(_STYLE):
            figure = make()
            files.append(directory / f"{name}.png")
            FigureCanvasAgg(figure).print_png(files[-1])
    return files


def _acceptance(report: Report) -> Figure:
    clients = _top(report)
    reasons = sorted({reason for client in clients for reason in client.refused})
    accepted, attempted = _total(report)
    figure, axes = _canvas(
        f"{accepted / attempted:.0%} of the requests were accepted",
        f"what became of each client's requests{_cut(report)}", bars=len(clients),
    )  # fmt: skip
    starts = [0.0] * len(clients)
    parts = [("accepted", _BLUE, [client.accepted / client.attempted for client in clients])]
    for reason, colour in zip(reasons, itertools.cycle(_REFUSED), strict=False):
        parts.append((f"refused: {_words(reason)}", colour, [c.refused[reason] / c.attempted for c in clients]))
    for label, colour, shares in parts:
        axes.barh(range(len(clients)), shares, left=starts, color=colour, label=label, height=0.62, edgecolor="white")
        for row, (start, share) in enumerate(zip(starts, shares, strict=True)):
            if share >= 0.06:
                ink = _readable_on(colour)
                axes.text(start + share / 2, row, f"{share:.0%}", ha="center", va="center", color=ink, fontsize=9)
        starts = [start + share for start, share in zip(starts, shares, strict=True)]
    axes.set_xlim(0, 1)
    axes.xaxis.set_major_formatter(FuncFormatter(_percent))
    axes.set_xlabel("share of requests")
    _rows(axes, clients)
    _legend_above(axes)
    return figure


def _attempted(report: Report) -> Figure:
    clients = _top(report)
    accepted, attempted = _total(report)
    figure, axes = _canvas(
        f"Of {attempted:,} requests attempted, {accepted:,} were accepted",
        f"requests of each client{_cut(report)}", bars=len(clients),
    )  # fmt: skip
    most = max(client.attempted for client in clients)
    for row, client in enumerate(clients):
        axes.barh(row, client.attempted, color=_REST, height=0.62, label="attempted" if row == 0 else None)
        axes.barh(row, client.accepted, color=_BLUE, height=0.34, label="accepted" if row == 0 else None)
        _at_end(axes, row, client.attempted + most * 0.012, f"{client.accepted:,} of {client.attempted:,}")
    axes.set_xlim(0, most * 1.2)
    axes.set_xlabel("requests")
    _thousands(axes.xaxis)
    _rows(axes, clients)
    _legend_above(axes)
    return figure


def _cost(report: Report) -> Figure:
    clients = [client for client in _top(report) if client.cost_nano_usd is not None]
    costs = [(client.cost_nano_usd or 0) / 1e9 for client in clients]
    whole = sum(client.cost_nano_usd or 0 for client in report.clients) / 1e9
    figure, axes = _canvas(
        f"Together clients pay ${whole:,.2f}", f"for the tokens of this run, at their plans' prices{_cut(report)}",
        bars=len(clients),
    )  # fmt: skip
    axes.barh(range(len(clients)), costs, color=_BLUE, height=0.62)
    for row, (client, cost) in enumerate(zip(clients, costs, strict=True)):
        _at_end(axes, row, cost + max(costs) * 0.012, f"${cost:,.4f} for {client.tokens:,} tokens")
    axes.set_xlim(0, max(costs) * 1.42)
    axes.set_xlabel("USD")
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"${_digits(value)}"))
    _rows(axes, clients)
    return figure


def _utilisation(outcome: Outcome, own: str, last: float) -> Figure:
    at_work, full = (sum(shares) / outcome.ended_at for shares in (outcome.busy, outcome.kv))
    figure, axes = _canvas(
        f"Engines were at work {at_work:.0%} of the time, their KV cache {full:.0%} full",
        f"under {own}; means of {_SMOOTH_S} s",
    )
    for values, (colour, style), label in (
        (outcome.busy, _LINES[1], "time at work"),
        (outcome.kv, _LINES[0], "KV cache in use"),
    ):
        smooth = _smooth(values, _SMOOTH_S)
        axes.plot(range(len(smooth)), smooth, color=colour, linestyle=style, linewidth=2, label=label)
    axes.fill_between(range(len(smooth)), smooth, color=colour, alpha=0.12, linewidth=0)
    axes.set_ylim(0, 1.04)
    axes.yaxis.set_major_formatter(FuncFormatter(_percent))
    _time(axes, len(outcome.busy), last)
    _legend_beside(axes)
    return figure


def _service(outcome: Outcome, report: Report, own: str, last: float) -> Figure:
    figure, axes = _canvas(
        f"What clients received over what they were owed: Jain's index {report.jain:.3f}",
        f"service under {own}, 1 for a token of input and 2 for one of output; means of {_WINDOW_S} s",
    )
    for client, line in _lines(report):
        seconds = outcome.service[client.client]
        smooth = _smooth([*seconds, *[0.0] * (len(outcome.busy) - len(seconds))], _WINDOW_S)
        if line:
            axes.plot(smooth, color=line[0], linestyle=line[1], linewidth=1.8, label=_short(client.client), zorder=3)
        else:
            axes.plot(smooth, color=_REST, linewidth=0.8, zorder=1)
    axes.set_ylim(0)
    axes.set_ylabel("weighted tokens per second")
    _thousands(axes.yaxis)
    _time(axes, len(outcome.busy), last)
    _legend_beside(axes, beyond=min(len(report.clients), MAX_LINES) - MAX_NAMED)
    return figure


def _difference(differences: Mapping[str, Sequence[tuple[float, float]]], own: str) -> Figure:
    most = {name: max(difference for _, difference in points) for name, points in differences.items()}
    against = "".join(f", {most[name]:,.0f} under {name}" for name in _furthest(most, own))
    figure, axes = _canvas(
        f"Service difference: at most {most[own]:,.0f} under {own}{against}",
        "what all clients together lack against the best served, in windows of 60 s; less is fairer",
    )
    for name, line in _compared(differences, own):
        _curve(axes.plot, name, line, own, *zip(*differences[name], strict=True))
    axes.set_ylim(0)
    axes.set_ylabel("weighted tokens per second")
    _thousands(axes.yaxis)
    axes.set_xlabel("middle of the window, s from the start")
    _thousands(axes.xaxis)
    axes.grid(axis="y")
    _legend_beside(axes)
    return figure


def _first_tokens(outcomes: Mapping[str, Outcome], own: str, report: Report) -> dict[str, list[float]]:
    """Returns times to the first token: of the quiet clients by scheduler where there are several, else by client."""
    if len(outcomes) > 1:
        return {name: sorted(first_token_seconds(outcome, *report.quiet)) for name, outcome in outcomes.items()}
    named = [client.client for client in report.clients[:MAX_NAMED]]
    return {client: sorted(first_token_seconds(outcomes[own], client)) for client in named}


def _ttft(outcomes: Mapping[str, Outcome], seconds: Mapping[str, list[float]], own: str, report: Report) -> Figure:
    if len(outcomes) > 1:
        accepted = {name: _accepted(outcome, report.quiet) for name, outcome in outcomes.items()}
        medians = {name: _median(ordered, accepted[name]) for name, ordered in seconds.items()}
        title = f"Half had a first token in {_span(medians[own])} under {own}"
        for name in _furthest(medians, own):
            title += f", {_span(medians[name])} under {name}"
        quiet = report.quiet[0] if len(report.quiet) == 1 else f"the {len(report.quiet):,} clients that ask least often"
        whose, lines = f"requests of {quiet}", _compared(seconds, own)
    else:
        accepted = {client: _accepted(outcomes[own], [client]) for client in seconds}
        every = sorted(first_token_seconds(outcomes[own]))
        medians = {own: _median(every, _total(report)[0])}
        title = f"Half had a first token in {_span(medians[own])}, 99 of 100 in {_span(quantiles(every).p99)}"
        whose, lines = f"each client's requests under {own}", list(zip(seconds, _LINES, strict=False))
        if len(report.clients) > len(seconds):
            whose += f", the {len(seconds)} of {len(report.clients):,} that are owed most"
    if math.inf in medians.values():
        title = "Time to the first token, until the run was cut"
    figure, axes = _canvas(title, f"{whose}: how many of them had their first token after so long")
    for name, line in lines:
        ordered = seconds[name]
        shares = [number / accepted[name] for number in range(1, len(ordered) + 1)]
        _curve(axes.step, name, line, own, [*ordered[:1], *ordered], [0.0, *shares] if ordered else [], where="post")
    least, most = (each(each(ordered) for ordered in seconds.values() if ordered) for each in (min, max))
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(_span_ticks(least, most)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _span(value)))
    axes.set_xlabel("time to the first token")
    axes.yaxis.set_major_formatter(FuncFormatter(_percent))
    axes.set_ylim(0, 1.02)
    axes.set_ylabel("share of requests")
    axes.grid()
    _legend_beside(axes)
    return figure


def _accepted(outcome: Outcome, clients: Sequence[str]) -> int:
    """Returns how many requests of these clients were let in, whether they had a token before the run ended or not."""
    wanted = set(clients)
    return sum(one.arrival.client in wanted and not one.refusal for one in outcome.served)


def _median(ordered: Sequence[float], accepted: int) -> float:
    """Returns the time in which half of the accepted requests had their first token; infinity if half of them had none."""
    return quantiles([*ordered, *[math.inf] * (accepted - len(ordered))]).p50


def _canvas(title: str, subtitle: str, *, bars: int | None = None) -> tuple[Figure, Axes]:
    """Returns a figure with its headings; one of bars is as high as its rows need."""
    height = 4.6 if bars is None else 1.85 + 0.42 * bars
    figure = Figure(figsize=(9, height), dpi=150, facecolor="white")
    above = 1.0 if bars is None else 1.1
    axes = figure.add_axes(
        (0.09 if bars is None else 0.15, 0.62 / height, 0.72 if bars is None else 0.8, (height - 0.62 - above) / height)
    )
    figure.text(0.03, 1 - 0.22 / height, title, fontsize=13, fontweight="bold", va="top")
    figure.text(0.03, 1 - 0.52 / height, subtitle, fontsize=9.5, color=_FAINT, va="top")
    return figure, axes


def _rows(axes: Axes, clients: Sequence[ClientReport]) -> None:
    names = (client.client for client in clients)
    axes.set_yticks(range(len(clients)), [_short(name) for name in names], color=_INK)
    axes.set_ylim(len(clients) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x")


def _at_end(axes: Axes, row: int, at: float, text: str) -> None:
    """Writes a figure behind a bar, so that lines of the grid do not cross it."""
    axes.text(
        at, row, text, va="center", fontsize=9, color=_FAINT,
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.5},
    )  # fmt: skip


def _curve(method: Callable[..., object], name: str, line: Line, own: str, *points: object, **style: object) -> None:
    first = name == own
    method(
        *points, color=line[0], linestyle=line[1], label=_short(name), linewidth=2.6 if first else 1.6,
        zorder=3 if first else 2, **style,
    )  # fmt: skip


def _time(axes: Axes, seconds: int, last: float) -> None:
    """Draws the axis of time, and shades what comes after the last request, when there is nothing more to share."""
    axes.set_xlim(0, max(1, seconds))
    axes.set_xlabel("time of the run, s")
    _thousands(axes.xaxis)
    axes.grid(axis="y")
    if last < 0.98 * seconds:
        axes.axvspan(last, seconds, color=_GRID, alpha=0.6, linewidth=0, zorder=0, label="no more requests")


def _legend_above(axes: Axes) -> None:
    axes.legend(loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=4, fontsize=9, handlelength=1.1, columnspacing=1.4)


def _legend_beside(axes: Axes, *, beyond: int = 0) -> None:
    """Says, too, how many lines are grey."""
    if beyond > 0:
        axes.plot([], [], color=_REST, linewidth=0.8, label=f"{beyond} more")
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.02), fontsize=9, handlelength=1.8)


def _thousands(axis: "mpl.axis.Axis") -> None:
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axis.set_major_locator(MaxNLocator(6, integer=True))


def _percent(share: float, _: int) -> str:
    return f"{share:.0%}"


def _span(seconds: float) -> str:
    """Returns a span in the units that people use, to three digits: 0.5 ms, 20 ms, 1.25 s, 2 min 5 s, 3 h 20 min, 2 d."""
    if not math.isfinite(seconds):
        return "an endless time"
    if seconds < 0.9995:
        return f"{_digits(seconds * 1000)} ms"
    if seconds < 59.95:
        return f"{_digits(seconds)} s"
    whole = round(seconds)
    for (unit, size), (next_unit, next_size) in itertools.pairwise(
        (("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1))
    ):
        if whole >= size:
            count, rest = divmod(whole, size)
            return f"{count:,} {unit}" + (f" {rest // next_size} {next_unit}" if rest >= next_size else "")
    return f"{whole} s"


def _digits(number: float) -> str:
    """Returns a number to three digits, and never with an exponent."""
    decimals = max(0, 2 - math.floor(math.log10(number))) if number > 0 else 0
    text = f"{number:,.{min(decimals, 9)}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def _span_ticks(least: float, most: float) -> list[float]:
    """Returns the round spans of an axis from `least` to `most`: at most a dozen, and at least the two that enclose it."""
    for steps in (_FINE_SPANS, _COARSE_SPANS):
        first = max((number for number, span in enumerate(steps) if span <= least), default=0)
        last = min((number for number, span in enumerate(steps) if span >= most), default=len(steps) - 1)
        ticks = list(steps[first : max(last, first + 1) + 1])
        if len(ticks) <= MAX_TICKS:
            break
    return ticks


def _short(name: str) -> str:
    return name if len(name) <= 15 else f"{name[:14]}…"


def _readable_on(colour: str) -> str:
    red, green, blue = to_rgb(colour)
    return "white" if 0.3 * red + 0.59 * green + 0.11 * blue < 0.55 else _INK


def _cut(report: Report) -> str:
    return f", the {MAX_BARS} of {len(report.clients):,} that asked most" if len(report.clients) > MAX_BARS else ""


def _total(report: Report) -> tuple[int, int]:
    """Returns how many requests were accepted, and attempted."""
    return sum(client.accepted for client in report.clients), sum(client.attempted for client in report.clients)


def _top(report: Report) -> list[ClientReport]:
    """Returns the clients that bars are drawn for, in the report's order."""
    chosen = sorted(report.clients, key=lambda client: -client.attempted)[:MAX_BARS]
    return [client for client in report.clients if client in chosen]


def _lines(report: Report) -> list[tuple[ClientReport, Line | None]]:
    """Returns the clients that lines are drawn for; those without one of their own are grey."""
    return list(zip(report.clients[:MAX_LINES], itertools.chain(_LINES, itertools.repeat(None)), strict=False))


def _compared(names: Mapping[str, object], own: str) -> list[tuple[str, Line]]:
    return list(zip((own, *(name for name in names if name != own)), itertools.cycle(_LINES), strict=False))


def _furthest(values: Mapping[str, float], own: str) -> list[str]:
    """Returns the one whose value is the largest, unless it is the product's own."""
    name = max(values, key=values.__getitem__)
    return [] if name == own else [name]


def _smooth(values: Sequence[float], seconds: int) -> list[float]:
    """Returns means of windows around each second, cut at the ends."""
    sums = [0.0, *itertools.accumulate(values)]
    half, end = seconds // 2, len(values)
    windows = ((max(0, at - half), min(end, at + half + 1)) for at in range(end))
    return [(sums[to] - sums[begin]) / (to - begin) for begin, to in windows]


def _words(reason: str) -> str:
    return reason.replace("_", " ")
