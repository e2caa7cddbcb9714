"""Draws a Grafana dashboard's panels as one SVG: near enough to show an operator what to expect."""

from html import escape

COLUMN, LINE, GAP = 50, 26, 3  # pixels of a grid column, a grid row, and what lies between panels
COLOURS = (
    "#3274d9", "#e0752d", "#56a64b", "#e02f44", "#8f3bb8", "#00a3a3", "#b8860b", "#d6559a", "#5a6b7b", "#7a9e00",
)  # fmt: skip
INK, PALE, GOOD, BAD = "#24292f", "#8b949e", "#56a64b", "#e02f44"
LETTER = 5.6  # pixels, roughly, of one in a legend


def draw(panels, span):
    """`panels`: (a panel of the dashboard's JSON, [(legend, [(Unix time, value)])]); `span`: first and last time."""
    width = COLUMN * max(panel["gridPos"]["x"] + panel["gridPos"]["w"] for panel, _ in panels)
    height = LINE * max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel, _ in panels)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif">',
        f'<rect width="{width}" height="{height}" fill="#f4f5f5"/>',
    ]
    for panel, found in panels:
        at = panel["gridPos"]
        wide, high = at["w"] * COLUMN - 2 * GAP, at["h"] * LINE - 2 * GAP
        parts += [
            f'<g transform="translate({at["x"] * COLUMN + GAP},{at["y"] * LINE + GAP})">',
            f'<rect width="{wide}" height="{high}" fill="#fff" stroke="#d8dade"/>',
            _text(8, 16, panel["title"], INK, size=12),
        ]
        curves = sorted((each for each in found if each[1]), key=lambda curve: -sum(value for _, value in curve[1]))
        if panel["type"] == "stat":
            parts.append(_stat(panel, curves, wide, high))
        elif panel["type"] == "state-timeline":
            parts += _states(sorted(curves), span, wide, high)
        else:
            parts += _curves(curves, panel["fieldConfig"]["defaults"]["unit"], span, wide, high)
        parts.append("</g>")
    return "\n".join([*parts, "</svg>", ""])


def _text(x, y, text, colour=PALE, *, size=10, anchor="start"):
    return f'<text x="{x}" y="{y}" fill="{colour}" font-size="{size}" text-anchor="{anchor}">{escape(text)}</text>'


def _stat(panel, curves, wide, high):
    value = curves[0][1][-1][1]
    about = panel["fieldConfig"]["defaults"]
    unit = about["unit"]
    steps = about.get("thresholds", {}).get("steps", [])
    colour = next((s["color"] for s in reversed(steps) if s["value"] is None or value >= s["value"]), INK)
    names = {name: shown["text"] for each in about.get("mappings", []) for name, shown in each["options"].items()}
    return _text(
        wide / 2, high / 2 + 18, names.get(f"{value:g}") or _shown(value, unit), colour, size=24, anchor="middle"
    )


def _curves(curves, unit, span, wide, high):
    start, end = span
    left, top, right, bottom = 52, 26, wide - 8, high - 40
    most = max((value for _, points in curves for _, value in points), default=1) or 1
    least = min(0, *(value for _, points in curves for _, value in points))
    parts, x, y = [], 10, high - 22
    for share in (0, 0.5, 1):
        at = bottom - share * (bottom - top)
        parts.append(f'<path d="M{left} {at:.1f}H{right}" stroke="#e6e7e9"/>')
        parts.append(_text(left - 4, f"{at + 3:.1f}", _shown(least + share * (most - least), unit), anchor="end"))
    for number, (legend, points) in enumerate(curves):
        path = " ".join(
            f"{left + (at - start) / (end - start) * (right - left):.0f},"
            f"{bottom - (value - least) / (most - least) * (bottom - top):.1f}"
            for at, value in points
        )
        colour = COLOURS[number % len(COLOURS)]
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.4"/>')
        if x + LETTER * len(legend) > wide:
            x, y = 10, y + 13
        if y < high:  # the busiest come first; what has no room is not named
            parts.append(_text(x, y, legend or "(no name)", colour))
        x += LETTER * len(legend or "(no name)") + 14
    return parts


def _states(curves, span, wide, high):
    start, end = span
    left, right, step = 130, wide - 8, (high - 30) / len(curves)
    parts = []
    for number, (legend, points) in enumerate(curves):
        y = 26 + number * step
        parts.append(_text(left - 4, f"{y + step / 2 + 3:.1f}", legend, INK, size=9, anchor="end"))
        runs = []
        for at, value in points:  # neighbours of one colour become one bar
            if runs and runs[-1][2] == value:
                runs[-1][1] = at
            else:
                runs.append([at, at, value])
        for run, following in zip(runs, [*runs[1:], None], strict=True):
            x, to = (
                (at - start) / (end - start) * (right - left) for at in (run[0], following[0] if following else run[1])
            )
            parts.append(
                f'<rect x="{left + x:.0f}" y="{y + 1:.1f}" width="{max(1, to - x):.0f}" height="{step - 2:.1f}" '
                f'fill="{GOOD if run[2] else BAD}"/>'
            )
    return parts


def _shown(value, unit):
    """A figure as Grafana writes it, near enough."""
    if unit == "s":
        for size, name in ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"), (1e-3, "ms")):
            if abs(value) >= size:
                return f"{value / size:.3g} {name}"
        return "0"
    if unit == "bytes":
        for size, name in ((1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
            if abs(value) >= size:
                return f"{value / size:.3g} {name}"
    return f"{value:.3g}"
