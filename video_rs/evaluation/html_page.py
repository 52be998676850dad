"""report.html: one page that stands alone, made of escaped text and embedded pictures."""

from __future__ import annotations

import base64
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from video_rs.evaluation.metrics import most_confused

STYLE = """
:root { --ink: #1f2937; --soft: #6b7280; --line: #e5e7eb; --card: #f9fafb; --blue: #2563eb; --red: #b91c1c }
* { box-sizing: border-box }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); max-width: 1080px; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.6rem; margin: 0 } h2 { font-size: 1.15rem; margin: 2.5rem 0 .75rem }
.soft { color: var(--soft) } .about { margin: .25rem 0 1.5rem; overflow-wrap: anywhere }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(170px, 1fr)); gap: .75rem }
.cards div { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: .75rem 1rem }
.cards b { display: block; font-size: 1.6rem; line-height: 1.3 } .cards span { font-size: .85rem; color: var(--soft) }
img { max-width: 100% } figure { margin: 0 } .figure { text-align: center }
.scroll { max-height: 32rem; overflow: auto; border: 1px solid var(--line); border-radius: 8px }
table { border-collapse: collapse; width: 100%; font-size: .9rem }
th, td { padding: .35rem .75rem; text-align: left; border-bottom: 1px solid var(--line) }
th { position: sticky; top: 0; background: var(--card) } td.n, th.n { text-align: right }
td { font-variant-numeric: tabular-nums; overflow-wrap: anywhere }
.bar { background: var(--line); border-radius: 4px; min-width: 8rem }
.bar i { display: block; height: .6rem; border-radius: 4px; background: var(--blue) }
.mistakes { display: grid; grid-template-columns: repeat(auto-fill, minmax(310px, 1fr)); gap: 1rem }
.mistakes figure { border: 1px solid var(--line); border-radius: 8px; overflow: hidden }
.mistakes img, .mistakes .none { display: block; width: 100%; height: 110px; object-fit: contain; background: #111 }
.mistakes .none { color: #9ca3af; text-align: center; line-height: 110px }
figcaption { padding: .5rem .75rem; font-size: .85rem; overflow-wrap: anywhere } .wrong { color: var(--red) }
"""


@dataclass(frozen=True)
class Mistake:
    """A wrong answer: what it was, what the network took it for, and a picture where the file could be read.

    ``labels`` are names with the probabilities that the network gave them.
    """

    path: str
    labels: Sequence[tuple[str, float]]
    predicted: str
    predicted_prob: float
    jpeg: bytes | None


def render(
    *,
    title: str,
    about: Mapping[str, str],
    metrics: Mapping[str, Any],
    confusion: bytes | None,
    curves: bytes | None,
    mistakes: Sequence[Mistake],
    unscored: Sequence[tuple[str, str]],
) -> str:
    """The page as HTML. All text is escaped here; pictures are PNG (figures) and JPEG (mistakes) bytes."""
    described = " &middot; ".join(f"{escape(key)}: <b>{escape(value)}</b>" for key, value in about.items())
    left_out = f"{len(unscored)} of {metrics['num_videos']}"
    sections = [
        f"<h1>{escape(title)}</h1>\n<p class='about soft'>{described}</p>",
        _cards(metrics),
        _section("Worst mistakes", _mistakes(mistakes), "wrong answers that the network was most sure of"),
        _section("Confusion matrix", _figure(confusion, "confusion matrix")) if confusion else "",
        _section("Most confused", _confused(metrics)) if confusion else "",
        _section("Per class", *(_precisions(metrics) if "map" in metrics else _accuracies(metrics))),
        _section("Not scored", _table(("file", "reason"), unscored), left_out) if unscored else "",
        _section("Training", _figure(curves, "training curves")) if curves else "",
    ]
    return (
        "<!DOCTYPE html>\n<html lang='en'>\n<head>\n<meta charset='utf-8'>\n"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>\n"
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(filter(None, sections))
        + "\n</body>\n</html>\n"
    )


def _cards(m: Mapping[str, Any]) -> str:
    """The figures over the scored videos; below them, where some are missing, those that count the rest as wrong."""
    if "map" in m:
        names, loss = {"map": "mAP", "hit1": "hit@1"}, "mean binary cross entropy"
    else:
        names = {"top1": "top-1", "top5": f"top-{m['top_k']}", "mean_class": "mean of the classes"}
        loss = "mean negative log likelihood"
    complete = m["num_scored"] == m["num_videos"]
    cards = []
    for key, name in names.items():
        over_all = "" if complete else f"<br>{_percent(m[key + '_all'])} with unscored as wrong"
        cards.append((_percent(m[key]), name + over_all))
    cards.append((_number(m["loss"]), loss))
    cards.append((f"{m['num_scored']}&hairsp;/&hairsp;{m['num_videos']}", "scored"))
    return "<div class='cards'>" + "".join(f"<div><b>{v}</b><span>{k}</span></div>" for v, k in cards) + "</div>"


def _accuracies(metrics: Mapping[str, Any]) -> tuple[str, str]:
    known = [c for c in metrics["per_class"] if c["scored"]]
    rest = [c for c in metrics["per_class"] if not c["scored"]]
    rows = []
    for c in sorted(known, key=lambda c: c["accuracy"]) + rest:
        width = 100 * c["accuracy"] if c["scored"] else 0
        cells = f"<td>{escape(c['name'])}</td><td class='n'>{_percent(c['accuracy'])}</td><td>{_bar(width)}</td>"
        rows.append(f"<tr>{cells}<td class='n'>{c['correct']}</td><td class='n'>{c['scored']}</td></tr>")
    numbers = "<th class='n'>correct</th><th class='n'>scored</th>"
    head = f"<tr><th>class</th><th class='n'>accuracy</th><th></th>{numbers}</tr>"
    return _rows(head, rows), "lowest accuracy first"


def _precisions(metrics: Mapping[str, Any]) -> tuple[str, str]:
    known = [c for c in metrics["per_class"] if c["scored"]]
    rest = [c for c in metrics["per_class"] if not c["scored"]]
    rows = []
    for c in sorted(known, key=lambda c: c["average_precision"]) + rest:
        precision, width = c["average_precision"], 100 * c["average_precision"] if c["scored"] else 0
        cells = f"<td>{escape(c['name'])}</td><td class='n'>{_percent(precision)}</td><td>{_bar(width)}</td>"
        rows.append(f"<tr>{cells}<td class='n'>{c['scored']}</td></tr>")
    head = "<tr><th>class</th><th class='n'>average precision</th><th></th><th class='n'>videos scored</th></tr>"
    return _rows(head, rows), "lowest average precision first"


def _rows(head: str, rows: Sequence[str]) -> str:
    return f"<div class='scroll'><table><thead>{head}</thead><tbody>{''.join(rows)}</tbody></table></div>"


def _bar(width: float) -> str:
    return f"<div class='bar'><i style='width:{width:.1f}%'></i></div>"


def _confused(metrics: Mapping[str, Any]) -> str:
    names = [c["name"] for c in metrics["per_class"]]
    pairs = [(names[true], names[taken], count) for true, taken, count in most_confused(metrics["confusion"])]
    return _table(("true class", "taken for", "videos"), pairs) if pairs else "<p>No mistakes.</p>"


def _mistakes(mistakes: Sequence[Mistake]) -> str:
    if not mistakes:
        return "<p>None.</p>"
    return f"<div class='mistakes'>{''.join(map(_mistake, mistakes))}</div>"


def _mistake(m: Mistake) -> str:
    picture = _image(m.jpeg, "jpeg", m.path) if m.jpeg else "<div class='none'>no picture</div>"
    labels = "; ".join(f"{escape(name)} ({_percent(prob)})" for name, prob in m.labels) or "nothing that has a name"
    return (
        f"<figure>{picture}<figcaption><span class='wrong'>{escape(m.predicted)} {_percent(m.predicted_prob)}</span>"
        f"<br>is {labels}<br><span class='soft'>{escape(m.path)}</span>"
        "</figcaption></figure>"
    )


def _section(heading: str, body: str, note: str = "") -> str:
    small = f" <small class='soft'>{escape(note)}</small>" if note else ""
    return f"<h2>{escape(heading)}{small}</h2>\n{body}"


def _table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    top = "".join(f"<th>{escape(h)}</th>" for h in head)
    body = "".join("<tr>" + "".join(f"<td>{escape(str(v))}</td>" for v in row) + "</tr>" for row in rows)
    return f"<div class='scroll'><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>"


def _figure(png: bytes, alt: str) -> str:
    return f"<div class='figure'>{_image(png, 'png', alt)}</div>"


def _image(data: bytes, kind: str, alt: str) -> str:
    return f"<img alt='{escape(alt)}' src='data:image/{kind};base64,{base64.b64encode(data).decode()}'>"


def _percent(share: float) -> str:
    return "&ndash;" if math.isnan(share) else f"{100 * share:.2f} %"


def _number(value: float) -> str:
    return "&ndash;" if math.isnan(value) else f"{value:.3f}"
