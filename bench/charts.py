"""Charts of the tables: one SVG each beside docs/benchmarks.md, small, readable in light and dark pages."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

OURS, OTHERS, INK = "#0f766e", "#94a3b8", "#334155"
_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "backupsite",
    "font.family": "sans-serif",
    "font.size": 9,
    "text.color": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}
Panel = tuple[str, str, dict[str, float]]


def bars(page: Path, name: str, panels: Sequence[Panel], *, ours: Sequence[str] = ("backupsite",)) -> str:
    """Draw one panel of bars per (title, unit, value by label) into `<page's folder>/benchmarks/<name>.svg`.

    Returns the line of Markdown that shows it. The bars named in `ours` stand out.
    """
    columns = min(len(panels), 3)
    lines = -(-len(panels) // columns)
    most = max(len(values) for _, _, values in panels)
    with rc_context(_STYLE):
        figure = Figure(figsize=(3.5 * columns, (0.27 * most + 0.75) * lines), layout="constrained")
        FigureCanvasSVG(figure)
        figure.patch.set_facecolor("white")
        for number, (title, unit, values) in enumerate(panels):
            axes = figure.add_subplot(lines, columns, number + 1)
            colors = [OURS if label in ours else OTHERS for label in values]
            drawn = axes.barh(list(values), list(values.values()), color=colors, height=0.66)
            axes.bar_label(drawn, [_shown(value, unit) for value in values.values()], padding=3, color=INK, fontsize=8)
            axes.set_title(title, loc="left", fontsize=9.5, fontweight="bold", color=INK)
            axes.invert_yaxis()
            axes.margins(x=0.28)
            axes.xaxis.set_visible(False)
            axes.tick_params(left=False)
            for side in axes.spines.values():
                side.set_visible(False)
        target = page.parent / "benchmarks" / f"{name}.svg"
        target.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(target, format="svg", metadata={"Date": None})
    titles = ", ".join(title for title, _, _ in panels)
    return f"![{titles}](benchmarks/{name}.svg)"


def _shown(value: float, unit: str) -> str:
    number = f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"
    return f"{number} {unit}".strip()
