"""The raw figures as pictures.

Nothing here knows how they were measured, or what the page says about them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median

import matplotlib as mpl
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .report import Figures, Raw, cost, figures_of, growth

_OURS, _OTHERS = "tab:orange", "tab:gray"


def draw(raw: Raw, folder: Path) -> dict[str, str]:
    """Write the pictures to ``folder``; return their names, and what each shows."""
    mpl.use("Agg")
    made: dict[str, str] = {}
    groups = {
        "messages": "CPU for a round trip",
        "connections": "CPU for a connection",
        "bytes": "CPU for bytes",
        "idle": "Memory for an idle connection",
        "handler": "CPU of your own handler",
    }
    for group, title in groups.items():
        works = [work for work in raw["works"] if work.split("-")[0] == group]
        found = {work: figures_of(raw, work) for work in works}
        if any(found.values()):
            _draw_bars(found, title, folder / f"{group}.png")
            made[f"{group}.png"] = title
    if any(growth(raw)):
        made["growth.png"] = "CPU cost with more connections"
        _draw_growth(raw, made["growth.png"], folder / "growth.png")
    return made


def _draw_bars(
    found: Mapping[str, Mapping[str, Figures]], title: str, file: Path
) -> None:
    figure, grid = plt.subplots(
        1, len(found), figsize=(4 + 3 * len(found), 4), sharey=True, squeeze=False
    )
    figure.suptitle(f"{title} (less is better; whiskers: minimum and maximum)")
    costly = (p for each in found.values() for p, its in each.items() if cost(its))
    peers = list(dict.fromkeys(costly))
    for axes, (work, figures) in zip(grid[0], found.items(), strict=True):
        axes.set_title(work)
        for place, peer in enumerate(reversed(peers)):
            measured = figures.get(peer, {})
            if unit := cost(measured):
                axes.set_xlabel(unit)
                _draw_bar(axes, place, peer, measured[unit])
        axes.set_yticks(range(len(peers)), list(reversed(peers)))
    _save(figure, file)


def _draw_bar(axes: Axes, place: int, peer: str, values: Sequence[float]) -> None:
    middle = median(values)
    color = _OURS if peer.startswith("trioserve") else _OTHERS
    spread = [[middle - min(values)], [max(values) - middle]]
    axes.barh(place, middle, color=color, xerr=spread, capsize=3)


def _draw_growth(raw: Raw, title: str, file: Path) -> None:
    series = list(dict.fromkeys(name for name, *_ in growth(raw)))
    figure, grid = plt.subplots(1, len(series), figsize=(12, 5), squeeze=False)
    figure.suptitle(title)
    colors = {peer: f"C{number}" for number, peer in enumerate(raw["peers"])}
    for axes, name in zip(grid[0], series, strict=True):
        for each, peer, numbers, costs in growth(raw):
            if each == name:
                line = "o-" if peer.startswith("trioserve") else "o--"
                axes.plot(numbers, costs, line, color=colors[peer], label=peer)
        axes.set(title=name, xlabel="connections", ylabel="CPU us per unit of work")
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.legend(fontsize="small")
    _save(figure, file)


def _save(figure: Figure, file: Path) -> None:
    figure.tight_layout()
    figure.savefig(file, dpi=100)
    plt.close(figure)
