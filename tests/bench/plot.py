"""The plot of compare.py: horizontal bars, a group for each work, as SVG."""

import math
from xml.sax.saxutils import escape

STYLE = """
text { font: 13px system-ui, "Segoe UI", Helvetica, Arial, sans-serif; fill: #1f2328; }
.title { font-size: 17px; font-weight: 600; }
.quiet, .value { font-size: 11px; fill: #59636e; }
.grid { stroke: #8b949e; stroke-opacity: .35; }
.one { stroke: #cf222e; stroke-width: 1.5; }
.bar0 { fill: #2f81d6; } .bar1 { fill: #d4861a; } .bar2 { fill: #3f9c54; } .bar3 { fill: #9a6bd0; }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3; } .quiet, .value { fill: #9198a1; } .one { stroke: #ff7b72; }
}
"""

LEFT, PLOT, RIGHT = 290, 520, 120
BAR, GAP, TOP = 12, 10, 96
MOST = 2.5  # longer bars are cut off; their numbers tell


def svg(rows, servers, note):
    """`rows` of a label, what the reference costs, and a ratio for each server."""
    ratios = [ratio for _, _, by_server in rows for ratio in by_server.values()]
    limit = min(MOST, max(1.25, math.ceil(max(ratios, default=1) * 4) / 4))
    group = len(servers) * BAR + GAP
    bottom = TOP + len(rows) * group
    width, height = LEFT + PLOT + RIGHT, bottom + 66

    def x(ratio):
        return LEFT + PLOT * min(ratio, limit) / limit

    def text(at_x, at_y, content, anchor="start", kind=""):
        kind = f' class="{kind}"' if kind else ""
        parts.append(f'<text x="{at_x:.1f}" y="{at_y:.1f}" text-anchor="{anchor}"{kind}>{escape(content)}</text>')

    def line(at_x, kind):
        parts.append(f'<line class="{kind}" x1="{at_x:.1f}" x2="{at_x:.1f}" y1="{TOP - 4}" y2="{bottom}"/>')

    title = "Cost to the server, relative to one by hand on asio::ssl::stream"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'role="img">',
        f"<title>{escape(title)}</title>",
        f"<style>{STYLE}</style>",
    ]
    text(16, 28, title, kind="title")
    at = LEFT
    for index, name in enumerate(servers):
        parts.append(f'<rect class="bar{index % 4}" x="{at}" y="44" width="{BAR}" height="{BAR}" rx="2"/>')
        text(at + BAR + 6, 55, name)
        at += 40 + 8 * len(name)
    text(LEFT + PLOT + RIGHT - 8, TOP - 8, "by hand", "end", "quiet")
    for quarter in range(0, int(limit * 4) + 1):
        at = x(quarter / 4)
        line(at, "grid")
        text(at, bottom + 16, f"{quarter / 4:g}", "middle", "quiet")
    text(x(1), TOP - 8, "by hand = 1", "middle", "quiet")
    text(LEFT + PLOT / 2, bottom + 34, "CPU time or memory, relative (less is better)", "middle")
    text(16, bottom + 56, note, kind="quiet")
    for row, (label, absolute, by_server) in enumerate(rows):
        top = TOP + row * group + GAP / 2
        middle = top + len(servers) * BAR / 2 + 4
        text(LEFT - 10, middle, label, "end")
        text(LEFT + PLOT + RIGHT - 8, middle, absolute, "end", "quiet")
        for index, name in enumerate(servers):
            if name not in by_server:
                continue
            end, y = x(by_server[name]), top + index * BAR
            parts.append(f'<rect class="bar{index % 4}" x="{LEFT}" y="{y:.1f}" width="{max(0, end - LEFT):.1f}" '
                         f'height="{BAR - 1}" rx="1.5"/>')
            past_the_line = x(1) if end < x(1) < end + 30 else end
            text(past_the_line + 4, y + BAR - 3, f"{by_server[name]:.2f}", kind="value")
    line(x(1), "one")
    return "\n".join([*parts, "</svg>", ""])
