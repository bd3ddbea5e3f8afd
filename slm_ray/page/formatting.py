"""Figures and texts for people: how the page writes and embeds them, and cost and partial replacement as aligned text.

On the page an undefined number is a dash, and a data block cannot end its element. Shows what is there, computes nothing.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import math
import re
from dataclasses import dataclass
from typing import Any

import markupsafe
import numpy as np

from slm_ray.cost_records import ArmCost, CostReport
from slm_ray.records import PartialReplacement
from slm_ray.tables import format_table
from slm_ray.types import Interval

DASH = "–"
_SHOWN = 5
_WAYS = {"llm": "LLM", "slm": "SLM", "cascade": "cascade"}
_PACKED_FROM = 1_000_000  # characters
_HALF = re.compile("[\ud800-\udfff]")  # of a surrogate pair: JSON can spell it, UTF-8 cannot
_DIFFERENCE = re.compile(r"(?<!threshold )(?<![\w.])[+−-]\d\.\d{4}(?!\d)")
_MARGIN = re.compile(r"\b(by|than|delta|within) (0\.\d+)(?![\d%])(?! %)")
_LEVEL = re.compile(r"(?<!threshold )(?<![\w.+−-])[01]\.\d{4}(?!\d)")
_SESSION = re.compile(r"/[^\s\"']*/runtime_resources/working_dir_files/_ray_pkg_\w+/")
# Spaces that are no space, fillers, joiners, selectors, controls, marks of direction, tags, private and missing letters.
_UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\xa0\xad\u034f\u061c\u115f\u1160\u1680\u17b4\u17b5\u180b-\u180f\u2000-\u200f\u2028-\u202f"
    "\u205f-\u206f\u2800\u3000\u3164\ud800-\uf8ff\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb"
    "\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U0010ffff]"
)


def undefined(value: float | None) -> bool:
    """None, NaN or infinite."""
    return value is None or not math.isfinite(value)


def percent(value: float | None) -> str:
    """A share."""
    return DASH if value is None or undefined(value) else f"{100 * value:.1f} %"


def points(value: float | None) -> str:
    """A difference of two shares, in percentage points."""
    if value is None or undefined(value):
        return DASH
    text = f"{100 * value:+.1f}".replace("-", "−")
    return "0.0" if text in ("+0.0", "−0.0") else text


def half_width(interval: Interval) -> str:
    """How far the wider side of an interval reaches, in percentage points."""
    width = max(interval.upper - interval.estimate, interval.estimate - interval.lower)
    return DASH if undefined(width) else f"±{100 * width:.1f}"


def margin(delta: float) -> str:
    """A margin delta, in percentage points."""
    return f"{100 * delta:.3g} point{'' if delta == 0.01 else 's'}"


def in_points(text: str) -> str:
    """A sentence of the verdict with its shares as the rest of the page writes them: points, and percent for levels.

    A threshold of confidence is no share and stays as it is.
    """
    text = _DIFFERENCE.sub(lambda found: f"{points(float(found[0].replace('−', '-')))} points", text)
    text = _MARGIN.sub(lambda found: f"{found[1]} {margin(float(found[2]))}", text)
    return _LEVEL.sub(lambda found: percent(float(found[0])), text)


def share(value: float) -> str:
    """A small share, such as the error that a test may make."""
    return f"{100 * value:.2g} %"


def sure(level: float) -> str:
    """How sure a bound is that is wrong with probability `level`."""
    return f"{100 - 100 * level:.4g} %"


def visible(value: Any) -> Any:
    """Text with a code in the place of each character that shows nothing or turns the direction of those after it.

    Of a path in the copy of the working folder that Ray makes for a job, and removes with it, what stands below the copy.
    """
    if isinstance(value, markupsafe.Markup) or not isinstance(value, str):
        return value
    return _UNSEEN.sub(lambda found: f"⟨U+{ord(found[0]):04X}⟩", _SESSION.sub("", value))


def seconds(value: float | None) -> str:
    """A time, in the unit that fits."""
    if value is None or undefined(value):
        return DASH
    if value < 1:
        return f"{1000 * value:.0f} ms"
    return f"{value:.2f} s" if value < 100 else f"{int(value // 60)} min {value % 60:.0f} s"


def count(value: float | None) -> str:
    """A number, with thousands apart."""
    if value is None or undefined(value):
        return DASH
    return f"{value:,.1f}" if isinstance(value, float) and value != int(value) else f"{int(value):,}"


def sentence(text: str) -> str:
    """With a capital first letter; the rest stays."""
    return text[:1].upper() + text[1:]


def figure(value: Any) -> str:
    """Anything as text; a fraction to six digits."""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def thousand_usd(value: float | None) -> str:
    """USD per request as USD per thousand of them."""
    return DASH if value is None else money(1000 * value)


def money(value: float | None) -> str:
    """USD: cents where there are any to speak of, else three digits."""
    if value is None or undefined(value):
        return DASH
    return f"{value:,.2f}" if value >= 1 or value == 0 else f"{value:.3g}"


def volumes(cost: CostReport | None, *, stand_in: bool = False) -> dict[str, Any] | None:
    """The ways of answering that have a price at some volume, what each is called, and as JSON what a day of each costs at
    any volume (`volumes.js` reads it); None without a table."""
    if cost is None or not cost.by_volume:
        return None
    ways = [(name, label) for name, label in _WAYS.items() if any(getattr(row, name) for row in cost.by_volume)]
    llm, slm, taken = cost.arms[cost.llm], cost.arms[cost.slm], cost.cascade.share if cost.cascade else 0.0
    parts = {"llm": [(llm, 1.0)], "slm": [(slm, 1.0)], "cascade": [(slm, 1.0), (llm, 1 - taken)]}
    formula = {
        "machine_day_usd": 24 * cost.machine.hourly_usd,
        "requests": cost.requests_per_day or 1000.0,
        "ways": [
            (
                f"{label} (stand-in)" if stand_in and name != "slm" else label,
                [_part(arm, share) for arm, share in parts[name]],
            )
            for name, label in ways
        ],
    }
    return {"ways": ways, "names": _WAYS, "formula": json_text(formula)}


def _part(arm: ArmCost, share: float) -> dict[str, float | None]:
    """A share of the requests that one arm answers: on machines that each answer `capacity` a day, or by the token."""
    capacity = None if arm.per_request_usd is None else arm.capacity_requests_per_day
    return {"share": share, "usd": arm.per_request_usd, "capacity": capacity}


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """What stands in a script element as data: JSON, or where `packed`, gzip of it in base64."""

    text: markupsafe.Markup
    packed: bool


def json_text(value: Any) -> str:
    """JSON in which nothing ends an element or begins a comment, and that UTF-8 can spell."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    text = _HALF.sub(lambda half: f"\\u{ord(half[0]):04x}", text)
    for sign in "<>&":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return text


def data_block(value: Any) -> Block:
    """JSON that may stand in a script element: nothing in it can end the element or begin a comment, and all of it is
    there. Much of it is packed."""
    text = json_text(value)
    if len(text) < _PACKED_FROM:
        return Block(text=markupsafe.Markup(text), packed=False)
    packed = base64.b64encode(gzip.compress(text.encode("utf-8"), compresslevel=6, mtime=0)).decode("ascii")
    return Block(text=markupsafe.Markup(packed), packed=True)


def csp_hash(text: str) -> str:
    """How a content security policy names inline content that it allows."""
    return "sha256-" + base64.b64encode(hashlib.sha256(str(text).encode("utf-8")).digest()).decode("ascii")


def row_link(track: str, row_id: str) -> str:
    """Where the page's script finds a row: `#row=TRACK:ID`, each as `encodeURIComponent` writes it or longer."""
    named = ("".join(f"%{byte:02X}" for byte in text.encode("utf-8", "replace")) for text in (track, row_id))
    return f"#row={':'.join(named)}"


def moment(text: str) -> str:
    """An ISO 8601 time of UTC to the minute, as people write it; any other text as it is."""
    match = re.fullmatch(r"(\d{4}-\d\d-\d\d)T(\d\d:\d\d):\d\d(?:\+00:00|Z)", text)
    return f"{match[1]} {match[2]} UTC" if match else text


def unix_moment(seconds: float) -> str:
    """A time in Unix seconds, in UTC."""
    return str(np.datetime64(int(seconds), "s")).replace("T", " ")


def cost_text(cost: CostReport) -> str:
    """A line per arm (money, correct answers, latency, where its rows go), the break-even, and what each figure is of."""
    machine = cost.machine
    lines = [
        ["cost", "USD/1,000 requests", "USD/1,000 correct", "p50 s", "p95 s", "p99 s", "rows go to"],
        *(_arm(spec, arm) for spec, arm in cost.arms.items()),
    ]
    notes = [f"- {spec}: {arm.reason or _based(arm)}" for spec, arm in cost.arms.items()]
    return "\n".join(
        [
            *format_table(lines, left=(0, 6)),
            f"prices as of {cost.prices_as_of}; machine: {machine.name}, {machine.hourly_usd:g} USD/h,"
            f" busy at most {machine.utilisation:.0%} of the time",
            *volume_lines(cost),
            *([f"- {cost.at_my_volume}"] if cost.at_my_volume else []),
            f"- {cost.break_even.because}",
            f"- {cost.training.words}",
            *_cascade(cost),
            *notes,
        ]
    )


def volume_lines(cost: CostReport) -> list[str]:
    """The table by volume; the reader's own has a mark, and a column of a way that has no price is left out."""
    table = cost.by_volume
    if not table:
        return []
    shown = [(name, label) for name, label in _WAYS.items() if any(getattr(row, name) is not None for row in table)]
    head = ["requests/day", "machines", *(f"{label}/month" for _, label in shown)]
    head += [*(f"{label}/1,000" for _, label in shown), "cheapest", "payback days"]
    lines = [head]
    for row in table:
        prices = [getattr(row, name) for name, _ in shown]
        lines.append([
            f"{'* ' if row.is_mine else ''}{row.requests_per_day:,.0f}",
            "-" if row.machines is None else f"{row.machines:,}",
            *("-" if price is None else f"{price.month_usd:,.2f}" for price in prices),
            *("-" if price is None else f"{price.per_thousand_usd:,.4g}" for price in prices),
            _WAYS.get(row.cheapest or "", "-"), "-" if row.payback_days is None else f"{row.payback_days:,.1f}",
        ])  # fmt: skip
    said = ", hypothetical" if cost.break_even.hypothetical else ""
    return [f"by volume, in USD{said}{' (* yours)' if cost.requests_per_day else ''}", *format_table(lines, left=())]


def _cascade(cost: CostReport) -> list[str]:
    cascade = cost.cascade
    if cascade is None:
        return []
    times = [cascade.latency_s.p50, cascade.latency_s.p95, cascade.mean_latency_s]
    median, slow, mean = (_number(value) for value in times)
    return [
        f"- cascade, the SLM first and the LLM for the {1 - cascade.share:.0%} that it does not take: p50 {median} s,"
        f" p95 {slow} s, mean {mean} s, worked out from {cascade.rows} rows; {cascade.break_even.because}"
    ]


def partial_replacement_text(partial: PartialReplacement) -> str:
    """The one line of the verdict, what it rests on, and a few points of the validation curve."""
    lines = [f"partial: {partial.line}", *(f"- {sentence}" for sentence in partial.because)]
    curve = partial.curve
    if curve:
        step = max(1, (len(curve) - 1) // (_SHOWN - 1))
        points = [*curve[:-1:step][: _SHOWN - 1], curve[-1]]
        table = [["share", *(f"{point.share:.0%}" for point in points)]]
        table.append(["quality", *(_number(point.quality) for point in points)])
        if any(point.per_request_usd is not None for point in points):
            table.append(["USD/1,000 req", *(_thousand(point.per_request_usd) for point in points)])
        lines += format_table(table, left=(0, len(points)))
    return "\n".join(lines)


def _arm(spec: str, arm: ArmCost) -> list[str]:
    latencies = [_number(value) for value in (arm.latency_s.p50, arm.latency_s.p95, arm.latency_s.p99)]
    money = [_thousand(arm.per_request_usd), _thousand(arm.per_correct_usd)]
    mark = " [hypothetical]" if arm.hypothetical else ""
    return [spec + mark, *money, *latencies, arm.goes_to.words]


def _based(arm: ArmCost) -> str:
    said = arm.basis
    if arm.hypothetical:
        supposed = "had used these tokens" if arm.kind == "tokens" else "had served in these seconds, which a CPU took"
        said = f"hypothetical, as if {arm.priced_as} {supposed}: {said}"
    return said if arm.per_correct_usd is not None else f"{said}; no cost per correct answer: {arm.per_correct_reason}"


def _thousand(usd: float | None) -> str:
    if usd is None:
        return "-"
    return f"{1000 * usd:,.4f}" if usd == 0 or usd >= 1e-6 else f"{1000 * usd:.1e}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
