#!/usr/bin/env python3
"""Prints a picture of the dashboard in template.yml, as SVG: its own widgets, with sample metrics.

`make dashboard` writes it to docs/dashboard.svg.
"""

import json
import random
import re
from html import escape

from template import Stack

COLUMN, ROW = 50, 46
COLORS = ["#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd"]
STYLE = """
text { font: 12px sans-serif; fill: #16191f } .title { font-weight: bold; font-size: 13px } .dim { fill: #687078 }
.page { fill: #f2f3f3 } .widget { fill: #fff; stroke: #d5dbdb } .axis { stroke: #d5dbdb } .ok { fill: #1d8102 }
@media (prefers-color-scheme: dark) {
  text { fill: #d5dbdb } .dim { fill: #95a5a6 } .page { fill: #0f1b2a } .widget { fill: #16202d; stroke: #414d5c }
  .axis { stroke: #414d5c } .ok { fill: #29ad32 }
}"""
# A row of the table of failed jobs, by field; what is not here is a dash.
FAILED = {
    "@timestamp": "2026-01-15 10:00:05",
    "error_type": "UnknownPodDefinition",
    "pipeline": "example-pipeline",
    "queue": "kubernetes",
    "error": 'no pod definition "gpu"',
    "link": "https://buildkite.com/example-org/example-p…",
}


def text(x, y, words, classes="", **attributes):
    attributes = "".join(f' {name}="{value}"' for name, value in attributes.items())
    return f'<text x="{x:g}" y="{y:g}" class="{classes}"{attributes}>{escape(words)}</text>'


def label(metric):
    """The name of a metric's line: its label, for one queue, or else its metric and statistic."""
    options = metric[-1] if isinstance(metric[-1], dict) else {}
    words = [metric[1], options.get("stat", "")] if len(metric) > 1 else []
    return re.sub(r"\$\{PROP\('Dim.Queue'\)\}", "kubernetes", options.get("label", " ".join(words).strip()))


def lines(properties, width, height):
    """The widget's metrics over three hours; the same name always has the same sample."""
    names = [label(metric) for metric in properties["metrics"]]
    bottom = height - 18 * -(-len(names) // 3) - 12
    yield f'<path class="axis" d="M12 {bottom}H{width - 12}"/>'
    yield text(12, 44, properties.get("yAxis", {}).get("left", {}).get("label", "Count"), "dim")
    for place, (name, color) in enumerate(zip(names, COLORS, strict=False)):
        sample = random.Random(name)
        quiet = re.search("fail|error|throttle|unserved|parking|ignored|there", name, re.IGNORECASE)
        top = 4 if quiet else (bottom - 60) * (0.9 if "p99" in name else 0.5)
        points = [(12 + (width - 24) * step / 36, bottom - top * sample.uniform(0.8, 1) ** 2) for step in range(37)]
        yield f'<polyline fill="none" stroke="{color}" points="{" ".join(f"{x:.0f},{y:.0f}" for x, y in points)}"/>'
        x, y = 12 + place % 3 * (width - 24) / 3, bottom + 20 + place // 3 * 18
        yield f'<rect x="{x:g}" y="{y - 9:g}" width="10" height="10" fill="{color}"/>{text(x + 14, y, name)}'


def alarms(properties, width, _height):
    for place, alarm in enumerate(properties["alarms"]):
        x, y = 12 + place % 5 * (width - 24) / 5, 62 + place // 5 * 50
        yield f'<circle class="ok" cx="{x + 6:g}" cy="{y - 4}" r="5"/>'
        yield text(x + 18, y, alarm.strip("<>").removesuffix(".Arn")) + text(x + 18, y + 17, "OK", "dim")


def table(properties, width, _height):
    fields = re.sub(r"concat\(.*\) as ", "", re.search(r"fields ([^|]*) \|", properties["query"])[1]).split(", ")
    for place, field in enumerate(fields):
        x = 12 + place * (width - 24) / (len(fields) + 1)
        yield text(x, 50, field, "title") + "".join(
            text(x, 76 + 22 * row, FAILED.get(field, "-").replace("05", f"0{5 - row}")) for row in range(2)
        )


def picture():
    widgets = json.loads(Stack().properties("Dashboard")["DashboardBody"])["widgets"]
    drawn = []
    for widget in widgets:
        width, height = widget["width"] * COLUMN - 8, widget["height"] * ROW - 8
        draw = {"metric": lines, "alarm": alarms, "log": table}[widget["type"]]
        drawn += [
            f'<g transform="translate({widget["x"] * COLUMN + 4} {widget["y"] * ROW + 4})">',
            f'<rect class="widget" width="{width}" height="{height}" rx="4"/>',
            text(12, 24, widget["properties"]["title"], "title"),
            *draw(widget["properties"], width, height),
            "</g>",
        ]
    width, height = 24 * COLUMN, ROW * max(widget["y"] + widget["height"] for widget in widgets)
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img">'
    title = "<title>The dashboard, with sample metrics</title>"
    page = f'<rect class="page" width="{width}" height="{height}"/>'
    return "\n".join([head, title, f"<style>{STYLE}\n</style>", page, *drawn, "</svg>\n"])


if __name__ == "__main__":
    print(picture(), end="")
