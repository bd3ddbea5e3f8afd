"""How the page writes figures and embeds text: an undefined number is a dash, a data block cannot end its element."""

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

DASH = "–"
_PACKED_FROM = 1_000_000  # characters
_HALF = re.compile("[\ud800-\udfff]")  # of a surrogate pair: JSON can spell it, UTF-8 cannot


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


def signed(value: float | None) -> str:
    """A difference as the verdict says it."""
    return DASH if value is None or undefined(value) else f"{value:+.4f}".replace("-", "−")


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
    return DASH if value is None or undefined(value) else f"{1000 * value:.4g}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """What stands in a script element as data: JSON, or where `packed`, gzip of it in base64."""

    text: markupsafe.Markup
    packed: bool


def data_block(value: Any) -> Block:
    """JSON that may stand in a script element: nothing in it can end the element or begin a comment, and all of it is
    there. Much of it is packed."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    text = _HALF.sub(lambda half: f"\\u{ord(half[0]):04x}", text)
    for sign in "<>&":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    if len(text) < _PACKED_FROM:
        return Block(text=markupsafe.Markup(text), packed=False)
    packed = base64.b64encode(gzip.compress(text.encode("utf-8"), compresslevel=6, mtime=0)).decode("ascii")
    return Block(text=markupsafe.Markup(packed), packed=True)


def csp_hash(text: str) -> str:
    """How a content security policy names inline content that it allows."""
    return "sha256-" + base64.b64encode(hashlib.sha256(str(text).encode("utf-8")).digest()).decode("ascii")


def moment(text: str) -> str:
    """An ISO 8601 time of UTC to the minute, as people write it; any other text as it is."""
    found = re.fullmatch(r"(\d{4}-\d\d-\d\d)T(\d\d:\d\d):\d\d(?:\+00:00|Z)", text)
    return f"{found[1]} {found[2]} UTC" if found else text
