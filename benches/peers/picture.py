#!/usr/bin/env python3
"""Draws what `run --json` wrote: throughput and p99 as bars, each peer beside the others. picture.py peers.json > peers.svg"""

import json
import sys
from xml.sax.saxutils import escape

COLOURS = ("#2a6f97", "#61a5c2", "#e09f3e", "#9e2a2b", "#6a994e", "#5e548e")
BAR, GAP, LABEL, ROOM, LEFT = 16, 14, 18, 360, 110
PANELS = (("perSecond", "requests/s (more is better)", 0), ("p99Ms", "p99, ms (less is better)", 1))


def text(x, y, words, more=""):
    return f'<text x="{x:.1f}" y="{y:.1f}" {more}>{escape(words)}</text>'


def bar(row, figure, digits, scale, colour, x, y):
    """A bar as long as the median, a line from least to most, and the median in figures."""
    one = row[figure]
    low, middle, high = (x + one[name] * scale for name in ("min", "median", "max"))
    centre = y + BAR / 2
    title = f"{row['peer']}: {one['median']:,.{digits}f} ({one['min']:,.{digits}f}–{one['max']:,.{digits}f})"
    return [
        f'<g><title>{escape(title)}</title><rect x="{x}" y="{y}" width="{middle - x:.1f}" height="{BAR - 2}" fill="{colour}"/>'
        f'<line x1="{low:.1f}" x2="{high:.1f}" y1="{centre - 1}" y2="{centre - 1}" stroke="#222"/></g>',
        text(high + 5, centre + 3, f"{one['median']:,.{digits}f}"),
    ]


def panel(rows, colours, figure, title, digits, x):
    """One figure of all loads; every load has a scale of its own, or the slowest could not be seen. Answers the height, too."""
    parts, y = [text(x, 50, title, 'font-weight="bold"')], 62
    for load in dict.fromkeys(row["load"] for row in rows):
        own = [row for row in rows if row["load"] == load]
        scale = (ROOM - 70) / max(max(row[figure]["max"] for row in own), 1e-9)
        parts.append(text(x - 8, y + BAR * len(own) / 2 + 4, load, 'text-anchor="end"'))
        for row in own:
            parts += bar(row, figure, digits, scale, colours[row["peer"]], x, y)
            y += BAR
        y += GAP
    return parts, y


def draw(told):
    """The whole picture."""
    rows = told["rows"]
    if not rows:
        raise SystemExit("picture: nothing was measured")
    peers = list(dict.fromkeys(row["peer"] for row in rows))
    colours = {peer: COLOURS[index % len(COLOURS)] for index, peer in enumerate(peers)}
    parts, x, height = [], LEFT, 0
    for figure, title, digits in PANELS:
        drawn, bottom = panel(rows, colours, figure, title, digits, x)
        parts += drawn
        x, height = x + ROOM + LEFT, max(height, bottom)
    for index, peer in enumerate(peers):
        left = LEFT + index * 150
        parts.append(f'<rect x="{left}" y="14" width="12" height="12" fill="{colours[peer]}"/>')
        parts.append(text(left + LABEL, 24, peer))
    machine, options = told["machine"], told["options"]
    note = (f"{machine['cores']} cores, {options['connections']} connections, {options['value_bytes']} B, {options['keys']:,} keys; "
            f"medians of {options['rounds']} rounds of {options['seconds']:g} s, lines from least to most; a scale for each load")
    parts.append(text(LEFT, height + 8, note, 'fill="#555"'))
    head = (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {x - LEFT + 40} {height + 24}" '
            'font-family="sans-serif" font-size="12"><rect width="100%" height="100%" fill="#fff"/>')
    return "\n".join([head, *parts, "</svg>"])


def main():
    if len(sys.argv) != 2 or sys.argv[1] in ("-h", "--help"):
        print(__doc__, file=sys.stderr)
        return 0 if "-h" in sys.argv or "--help" in sys.argv else 2
    with open(sys.argv[1], encoding="utf-8") as file:
        print(draw(json.load(file)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
