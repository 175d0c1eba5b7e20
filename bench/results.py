"""Raw figures as JSON, and a plot of them as SVG, under `bench/results/`. The plot is drawn here: bars need no library."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent / "results"


def save(name: str, found: dict[str, Any]) -> None:
    """Write `name`.json, and `name`.svg where there is something to draw."""
    bars = speeds(found)
    save_chart(name, found, bar_chart("Real tokens a second", bars) if bars else None)


def save_chart(name: str, found: dict[str, Any], chart: str | None) -> None:
    """Write `name`.json, and the chart (SVG) as `name`.svg."""
    FOLDER.mkdir(exist_ok=True)
    (FOLDER / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    if chart is not None:
        (FOLDER / f"{name}.svg").write_text(chart, encoding="utf-8")


def speeds(found: dict[str, Any]) -> list[tuple[str, float]]:
    """(label, tokens a second) of every system in the figures."""
    bars = []
    for method in ("lora", "full"):
        if f"tokens_per_second_{method}" in found:
            bars.append((f"afina {method}", found[f"tokens_per_second_{method}"]))
        if f"peer_tokens_per_second_{method}" in found:
            bars.append((f"{found[f'peer_{method}']} {method}", found[f"peer_tokens_per_second_{method}"]))
    return bars


def bar_chart(title: str, bars: Sequence[tuple[str, float]]) -> str:
    """Horizontal bars with their numbers."""
    longest = max(value for _, value in bars) or 1.0
    rows = []
    for index, (label, value) in enumerate(bars):
        y = 40 + 28 * index
        color = "#0f766e" if label.startswith("afina") else "#b4532a"
        rows.append(f'<text x="190" y="{y + 15}" text-anchor="end">{escape(label)}</text>')
        rows.append(f'<rect x="200" y="{y}" width="{420 * value / longest:.1f}" height="20" rx="3" fill="{color}"/>')
        rows.append(f'<text x="{206 + 420 * value / longest:.1f}" y="{y + 15}">{value:,.0f}</text>')
    return frame(title, 700, 60 + 28 * len(bars), rows)


def line_chart(title: str, across: str, lines: dict[str, Sequence[tuple[float, float]]]) -> str:
    """Lines over a logarithmic axis from the smallest to the largest x; y from 0."""
    import math

    xs = [x for points in lines.values() for x, _ in points]
    top = max(y for points in lines.values() for _, y in points) or 1.0
    low, high = math.log(min(xs)), math.log(max(xs))
    colors = ("#0f766e", "#b4532a", "#4b5563", "#7c3aed")
    rows = [
        f'<text x="350" y="292" text-anchor="middle">{escape(across)}</text>',
        f'<text x="8" y="44">{top:,.0f}</text>',
    ]
    for number, (label, points) in enumerate(lines.items()):
        color = colors[number % len(colors)]
        place = [(60 + 600 * (math.log(x) - low) / max(high - low, 1e-9), 260 - 220 * y / top) for x, y in points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in place)
        rows.append(f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="2"/>')
        rows += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{color}"/>' for x, y in place]
        rows.append(f'<text x="70" y="{56 + 18 * number}" fill="{color}">{escape(label)}</text>')
    rows += [
        f'<text x="{60 + 600 * (math.log(x) - low) / max(high - low, 1e-9):.1f}" y="276" text-anchor="middle">{x:,.0f}</text>'
        for x in sorted(set(xs))
    ]
    return frame(title, 700, 300, rows)


def frame(title: str, width: int, height: int, rows: Sequence[str]) -> str:
    """The drawing around `rows`."""
    style = "<style>text{font:13px system-ui,sans-serif;fill:#1f2937}</style>"
    back = f'<rect width="{width}" height="{height}" fill="#ffffff"/>'
    head = f'<text x="12" y="24" style="font-weight:600">{escape(title)}</text>'
    inside = "\n".join([style, back, head, *rows])
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img">\n{inside}\n</svg>\n'
