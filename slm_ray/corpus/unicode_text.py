"""What a text is made of: its words, and the scripts its letters belong to.

Scripts are told by Unicode block, for the scripts listed here; a letter of another block is `other`. Nothing knows a
language: Portuguese and Polish are both `latin`.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections import Counter
from functools import lru_cache

from slm_ray.types import Example

OTHER = "other"
_BLOCKS = (
    (0x0041, 0x024F, "latin"), (0x0250, 0x02AF, "latin"), (0x1E00, 0x1EFF, "latin"), (0x2C60, 0x2C7F, "latin"),
    (0xA720, 0xA7FF, "latin"), (0xFB00, 0xFB06, "latin"), (0xFF21, 0xFF5A, "latin"), (0x0370, 0x03FF, "greek"),
    (0x1F00, 0x1FFF, "greek"), (0x0400, 0x052F, "cyrillic"), (0x1C80, 0x1C8F, "cyrillic"),
    (0x2DE0, 0x2DFF, "cyrillic"), (0xA640, 0xA69F, "cyrillic"), (0x0530, 0x058F, "armenian"),
    (0x0590, 0x05FF, "hebrew"), (0x0600, 0x06FF, "arabic"), (0x0750, 0x077F, "arabic"), (0x08A0, 0x08FF, "arabic"),
    (0xFB50, 0xFDFF, "arabic"), (0xFE70, 0xFEFC, "arabic"), (0x0900, 0x097F, "devanagari"),
    (0x0980, 0x09FF, "bengali"), (0x0A00, 0x0A7F, "gurmukhi"), (0x0A80, 0x0AFF, "gujarati"), (0x0B80, 0x0BFF, "tamil"),
    (0x0C00, 0x0C7F, "telugu"), (0x0C80, 0x0CFF, "kannada"), (0x0D00, 0x0D7F, "malayalam"), (0x0E00, 0x0E7F, "thai"),
    (0x0E80, 0x0EFF, "lao"), (0x1000, 0x109F, "myanmar"), (0x10A0, 0x10FF, "georgian"), (0x1100, 0x11FF, "hangul"),
    (0x3130, 0x318F, "hangul"), (0xAC00, 0xD7FF, "hangul"), (0x1200, 0x139F, "ethiopic"), (0x1780, 0x17FF, "khmer"),
    (0x3040, 0x309F, "hiragana"), (0x30A0, 0x30FF, "katakana"), (0x31F0, 0x31FF, "katakana"),
    (0xFF66, 0xFF9D, "katakana"), (0x2E80, 0x2FDF, "han"), (0x3005, 0x3007, "han"), (0x3400, 0x4DBF, "han"),
    (0x4E00, 0x9FFF, "han"), (0xF900, 0xFAFF, "han"), (0x20000, 0x3FFFF, "han"),
)  # fmt: skip
_SORTED = sorted(_BLOCKS)
_STARTS = [start for start, _, _ in _SORTED]
SCRIPTS = tuple(sorted({script for _, _, script in _BLOCKS}))

# Scripts that are written without spaces: each of their signs counts as a word, or a whole sentence would be one.
_UNSPACED = "".join(
    f"{chr(start)}-{chr(end)}"
    for start, end, script in _BLOCKS
    if script in {"han", "hiragana", "katakana", "thai", "lao", "khmer", "myanmar"}
)
# Vowel signs and accents that stand after their letter; to `re` they end a word.
_MARKS = "\u0300-\u036f\u0591-\u05bd\u05bf-\u05c7\u0610-\u061a\u064b-\u065f\u0900-\u0963\u0966-\u0dff"
_WORD = re.compile(rf"[{_UNSPACED}]|(?:[^\W{_UNSPACED}]|[{_MARKS}])+")


def words(text: str) -> list[str]:
    """The words of `text` in order, without punctuation and as they are written."""
    return _WORD.findall(text)


def question(example: Example) -> str:
    """What the example asks: every turn but the system's, one below the other."""
    return "\n".join(turn.content for turn in example.prompt.messages if turn.role != "system")


def scripts(text: str) -> Counter[str]:
    """How many letters of `text` each script has; digits, signs and spaces belong to none."""
    return Counter(_script(char) for char in text if char.isalpha())


@lru_cache(maxsize=4096)
def _script(letter: str) -> str:
    place = bisect_right(_STARTS, ord(letter)) - 1
    if place < 0 or ord(letter) > _SORTED[place][1]:
        return OTHER
    return _SORTED[place][2]
