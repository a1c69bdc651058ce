"""Matplotlib figures as `<svg>` elements of the report's pages.

Lines and text are drawn in placeholder colours that are replaced by the page's CSS variables, and text stays text: so
plots follow light, dark and print, and have the page's font. Equal drawings give equal bytes.
"""

import io
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


INK, MUTED, RULE, MAIN, WARM, COOL = "#010203", "#010204", "#010205", "#010206", "#010207", "#010208"
LINE_COLOURS = MAIN, WARM, COOL, INK, MUTED  # of curves that have no colour of their own
CSS_VARIABLES = {INK: "ink", MUTED: "muted", RULE: "rule", MAIN: "main", WARM: "warm", COOL: "cool"}
FONT_SIZE = 11.0  # of text, in pixels
GLYPH_WIDTH = 6.4  # mean width of a glyph at that size, in pixels
DISPLAY_SCALE = 1.2  # on a wide page, so that text is as large as the page's own
MATPLOTLIB_STYLE: dict[Any, Any] = {
    "svg.hashsalt": "report",
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": FONT_SIZE,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": RULE,
    "axes.labelcolor": MUTED,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": RULE,
    "grid.linewidth": 0.6,
}


@contextmanager
def figure(width: float, height: float) -> "Iterator[Figure]":
    """Open a figure of so many pixels in the report's style; the browser draws the glyphs that matplotlib's font lacks."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(MATPLOTLIB_STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield Figure(figsize=(width / 72, height / 72), dpi=72)


def use_log_scale(axes: "Axes", write: Callable[[float], str]) -> None:
    """Make the x axis logarithmic, with ticks at 1, 2 and 5 of each decade, labelled by `write`."""
    from matplotlib.ticker import LogLocator

    axes.set_xscale("log")
    axes.xaxis.set_minor_locator(LogLocator(subs=(2, 5)))
    axes.xaxis.set_major_formatter(lambda value, _: write(value))
    axes.xaxis.set_minor_formatter(lambda value, _: write(value))


def render(drawing: "Figure", name: str, description: str) -> str:
    """Return the figure as an `<svg>` element without namespaces, metadata and fixed size.

    Args:
        drawing: the figure.
        name: prefix of all ids in it, unique on the page.
        description: what it shows, for screen readers.
    """
    buffer = io.StringIO()
    drawing.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    body = buffer.getvalue().partition("<svg")[2].partition(">")[2]
    for element in ("metadata", "style"):
        body = re.sub(rf"<{element}\b.*?</{element}>", "", body, flags=re.DOTALL)
    body = re.sub(r'( id="|"#|url\(#)', rf"\g<1>{name}-", body.replace("xlink:href", "href"))
    for colour, variable in CSS_VARIABLES.items():
        body = body.replace(colour, f"var(--{variable})")
    width, height = (round(float(side) * 72, 2) for side in drawing.get_size_inches())
    shape = f'viewBox="0 0 {width} {height}" style="max-width:{DISPLAY_SCALE * width:.0f}px"'
    return f'<svg class="chart" role="img" aria-label="{description}" {shape}>{body}'
