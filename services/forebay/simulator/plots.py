"""Plots of runs, as PNGs. The only module that imports matplotlib, which the extra `forebay[plots]` installs."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from forebay.simulator.loop import Outcome
from forebay.simulator.measures import first_token_seconds, service_difference
from forebay.simulator.report import ClientReport, Report
from forebay.simulator.scenarios import Scenario

MAX_CLIENTS = 8
"""Clients that have a colour of their own; beyond them a plot would be a puzzle."""

MAX_BARS = 16

_COLOURS = ("#2f6db5", "#e07b28", "#2d9a6a", "#b8457a", "#7659b0", "#8a6a3f", "#3aa0b5", "#c2a11f")
_REFUSED = ("#c9544d", "#e39a6b", "#8d8d97", "#c7b6a3", "#a06f9a", "#6f8fa0")
_INK, _FAINT, _GRID, _REST = "#22262b", "#6c737b", "#e5e8eb", "#c3c9cf"
_OWN = _COLOURS[0]
_STYLE = {
    "font.family": "DejaVu Sans", "font.size": 10, "text.color": _INK, "axes.labelcolor": _FAINT, "axes.edgecolor": _REST,
    "axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True, "axes.titlesize": 10,
    "xtick.color": _FAINT, "ytick.color": _FAINT, "grid.color": _GRID, "legend.frameon": False,
}  # fmt: skip
_SMOOTH_S = 10
_WINDOW_S = 30


def draw(directory: Path, scenario: Scenario, outcomes: Mapping[str, Outcome], own: str, report: Report) -> list[Path]:
    """Writes every plot that has something to show and returns the files.

    Args:
        directory: exists.
        scenario: what was simulated.
        outcomes: of each scheduler.
        own: whose run the plots of single clients show.
        report: of that run.
    """
    outcome = outcomes[own]
    plots: dict[str, Callable[[], Figure]] = {
        "acceptance": lambda: _acceptance(report),
        "attempted": lambda: _attempted(report),
        "utilisation": lambda: _utilisation(outcome, own),
        "service": lambda: _service(outcome, report, own),
        "ttft": lambda: _ttft(outcomes, own, report),
    }
    if any(client.cost_nano_usd for client in report.clients):
        plots["cost"] = lambda: _cost(report)
    if any(service_difference(each) for each in outcomes.values()):
        plots["difference"] = lambda: _difference(outcomes, own)
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
    figure, axes = _canvas(
        "What became of requests", f"share of each client's requests{_cut(report)}", bars=len(clients)
    )
    starts = [0.0] * len(clients)
    parts = [("accepted", _COLOURS[2], [client.accepted / client.attempted for client in clients])]
    for reason, colour in zip(reasons, _REFUSED * len(reasons), strict=False):
        parts.append((f"refused: {_words(reason)}", colour, [c.refused[reason] / c.attempted for c in clients]))
    for label, colour, shares in parts:
        axes.barh(range(len(clients)), shares, left=starts, color=colour, label=label, height=0.62, edgecolor="white")
        for row, (start, share) in enumerate(zip(starts, shares, strict=True)):
            if share >= 0.06:
                axes.text(start + share / 2, row, f"{share:.0%}", ha="center", va="center", color="white", fontsize=9)
        starts = [start + share for start, share in zip(starts, shares, strict=True)]
    axes.set_xlim(0, 1)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{share:.0%}"))
    _rows(axes, clients)
    _legend(axes)
    return figure


def _attempted(report: Report) -> Figure:
    clients = _top(report)
    figure, axes = _canvas("Attempted against accepted", f"requests of each client{_cut(report)}", bars=len(clients))
    most = max(client.attempted for client in clients)
    for row, client in enumerate(clients):
        axes.barh(row, client.attempted, color=_REST, height=0.62, label="attempted" if row == 0 else None)
        axes.barh(row, client.accepted, color=_OWN, height=0.34, label="accepted" if row == 0 else None)
        text = f"{client.accepted:,} of {client.attempted:,}"
        axes.text(client.attempted + most * 0.012, row, text, va="center", fontsize=9, color=_FAINT)
    axes.set_xlim(0, most * 1.2)
    _thousands(axes.xaxis)
    _rows(axes, clients)
    _legend(axes)
    return figure


def _cost(report: Report) -> Figure:
    clients = [client for client in _top(report) if client.cost_nano_usd is not None]
    figure, axes = _canvas(
        "What clients pay", "USD for the tokens of this run, at their plans' prices", bars=len(clients)
    )
    costs = [(client.cost_nano_usd or 0) / 1e9 for client in clients]
    axes.barh(range(len(clients)), costs, color=_OWN, height=0.62)
    for row, (client, cost) in enumerate(zip(clients, costs, strict=True)):
        text = f"${cost:,.4f}  for {client.tokens:,} tokens"
        axes.text(cost + max(costs) * 0.012, row, text, va="center", fontsize=9, color=_FAINT)
    axes.set_xlim(0, max(costs) * 1.42)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda usd, _: f"${usd:,.2f}"))
    _rows(axes, clients)
    return figure


def _utilisation(outcome: Outcome, own: str) -> Figure:
    figure, axes = _canvas("Use of the engines", f"under {own}, mean of {_SMOOTH_S} s")
    for values, colour, label in ((outcome.busy, _REST, "time at work"), (outcome.kv, _OWN, "KV cache in use")):
        smooth = _smooth(values, _SMOOTH_S)
        axes.plot(range(len(smooth)), smooth, color=colour, linewidth=2, label=label)
        if colour == _OWN:
            axes.fill_between(range(len(smooth)), smooth, color=colour, alpha=0.12, linewidth=0)
    axes.set_ylim(0, 1.04)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{share:.0%}"))
    _time(axes, len(outcome.busy))
    _legend(axes)
    return figure


def _service(outcome: Outcome, report: Report, own: str) -> Figure:
    title = f"under {own}: weighted tokens per second (1 for input, 2 for output), mean of {_WINDOW_S} s"
    figure, axes = _canvas("Service over time", title)
    for client, colour in _coloured(report):
        smooth = _smooth(outcome.service[client.client], _WINDOW_S)
        named = colour != _REST
        axes.plot(
            range(len(smooth)), smooth, color=colour, linewidth=1.8 if named else 0.8,
            label=client.client if named else None, zorder=3 if named else 1,
        )  # fmt: skip
    axes.set_ylim(0)
    _thousands(axes.yaxis)
    _time(axes, len(outcome.busy))
    _legend(axes, beyond=len(report.clients) - MAX_CLIENTS)
    return figure


def _difference(outcomes: Mapping[str, Outcome], own: str) -> Figure:
    figure, axes = _canvas(
        "Service difference over time",
        "weighted tokens per second that clients lack in sum, windows of 60 s; less is fairer",
    )
    for name, colour in _compared(outcomes, own):
        points = service_difference(outcomes[name])
        axes.plot([at for at, _ in points], [difference for _, difference in points], color=colour,
                  linewidth=2.4 if name == own else 1.4, label=name, zorder=3 if name == own else 2)  # fmt: skip
    axes.set_ylim(0)
    _thousands(axes.yaxis)
    axes.set_xlabel("time of the run, s")
    axes.grid(axis="y")
    _legend(axes)
    return figure


def _ttft(outcomes: Mapping[str, Outcome], own: str, report: Report) -> Figure:
    """Of the quietest client by scheduler where there are several, else by client."""
    several, quietest = len(outcomes) > 1, report.quietest
    whose = f" of {quietest}, which asks least often," if several else ""
    figure, axes = _canvas(
        "Time to first token", f"share of requests{whose} that had their first token in so many seconds"
    )
    curves: list[tuple[str, str, list[float]]]
    if several:
        curves = [
            (name, colour, first_token_seconds(outcomes[name], quietest)) for name, colour in _compared(outcomes, own)
        ]
    else:
        named = [(client, colour) for client, colour in _coloured(report) if colour != _REST]
        curves = [
            (client.client, colour, first_token_seconds(outcomes[own], client.client)) for client, colour in named
        ]
    for name, colour, seconds in curves:
        ordered = sorted(seconds)
        shares = [(number + 1) / len(ordered) for number in range(len(ordered))]
        axes.step(ordered, shares, where="post", color=colour, linewidth=2.4 if name == own else 1.6, label=name)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda seconds, _: f"{seconds:g} s"))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{share:.0%}"))
    axes.set_ylim(0, 1.02)
    axes.grid()
    _legend(axes, beyond=len(report.clients) - MAX_CLIENTS if len(outcomes) == 1 else 0)
    return figure


def _canvas(title: str, subtitle: str, *, bars: int | None = None) -> tuple[Figure, Axes]:
    """Returns a figure with its headings; one of bars is as high as its rows need."""
    height = 4.6 if bars is None else 1.75 + 0.42 * max(bars, 3)
    figure = Figure(figsize=(9, height), dpi=150, facecolor="white")
    axes = figure.add_axes(
        (0.09 if bars is None else 0.15, 0.62 / height, 0.72 if bars is None else 0.8, (height - 1.6) / height)
    )
    figure.text(0.03, 1 - 0.22 / height, title, fontsize=14, fontweight="bold", va="top")
    figure.text(0.03, 1 - 0.52 / height, subtitle, fontsize=9.5, color=_FAINT, va="top")
    return figure, axes


def _rows(axes: Axes, clients: Sequence[ClientReport]) -> None:
    axes.set_yticks(range(len(clients)), [client.client for client in clients], color=_INK)
    axes.invert_yaxis()
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x")


def _time(axes: Axes, seconds: int) -> None:
    axes.set_xlim(0, max(1, seconds))
    axes.set_xlabel("time of the run, s")
    axes.grid(axis="y")


def _legend(axes: Axes, *, beyond: int = 0) -> None:
    """Puts a legend beside lines and above bars, and says how many are drawn in grey."""
    if beyond > 0:
        axes.plot([], [], color=_REST, linewidth=0.8, label=f"{beyond} more")
    if axes.get_yaxis().get_inverted():
        axes.legend(
            loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=4, fontsize=9, handlelength=1.1, columnspacing=1.4
        )
    else:
        axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.02), fontsize=9, handlelength=1.4)


def _thousands(axis: "mpl.axis.Axis") -> None:
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axis.set_major_locator(MaxNLocator(6, integer=True))


def _cut(report: Report) -> str:
    return f", the {MAX_BARS} of {len(report.clients)} that asked most" if len(report.clients) > MAX_BARS else ""


def _top(report: Report) -> list[ClientReport]:
    """Returns the clients that bars are drawn for, in the report's order."""
    chosen = sorted(report.clients, key=lambda client: -client.attempted)[:MAX_BARS]
    return [client for client in report.clients if client in chosen]


def _coloured(report: Report) -> list[tuple[ClientReport, str]]:
    colours = [*_COLOURS, *[_REST] * len(report.clients)]
    return list(zip(report.clients, colours, strict=False))


def _compared(outcomes: Mapping[str, Outcome], own: str) -> list[tuple[str, str]]:
    others = [name for name in outcomes if name != own]
    return [(own, _OWN), *zip(others, (_COLOURS[1:] * len(others))[: len(others)], strict=True)]


def _smooth(values: Sequence[float], seconds: int) -> list[float]:
    """Returns means of windows around each second, cut at the ends."""
    half = seconds // 2
    windows = (values[max(0, at - half) : at + half + 1] for at in range(len(values)))
    return [sum(window) / len(window) for window in windows]


def _words(reason: str) -> str:
    return reason.replace("_", " ")
