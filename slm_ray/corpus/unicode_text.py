"""What a text is made of: its words, and the scripts its letters belong to.

Scripts are those of Unicode, as far as they are listed here; a letter of another one is `other`. Nothing knows a language:
Portuguese and Polish are both `latin`.
"""

from __future__ import annotations

from collections import Counter
from functools import lru_cache

import regex

from slm_ray.types import Example

OTHER = "other"
SCRIPTS = (
    "arabic", "armenian", "bengali", "cyrillic", "devanagari", "ethiopic", "georgian", "greek", "gujarati", "gurmukhi",
    "han", "hangul", "hebrew", "hiragana", "kannada", "katakana", "khmer", "lao", "latin", "malayalam", "myanmar",
    "tamil", "telugu", "thai",
)  # fmt: skip
_SHARED = "shared"
_SCRIPT = regex.compile(
    "|".join(f"(?P<{script}>\\p{{Script={script}}})" for script in SCRIPTS)
    + f"|(?P<{_SHARED}>[\\p{{Script=Common}}\\p{{Script=Inherited}}])"
)
# Scripts that are written without spaces: each of their signs counts as a word, or a whole sentence would be one.
_UNSPACED = "".join(
    f"\\p{{Script={script}}}" for script in ("han", "hiragana", "katakana", "thai", "lao", "khmer", "myanmar")
)
# Vowel signs and accents (\p{M}) stand after their letter and do not end a word.
_WORD = regex.compile(rf"[{_UNSPACED}]|[\w\p{{M}}--[{_UNSPACED}]]+", regex.V1)


def words(text: str) -> list[str]:
    """The words of `text` in order, without punctuation and as they are written."""
    found: list[str] = _WORD.findall(text)
    return found


def question(example: Example) -> str:
    """What the example asks: every turn but the system's, one below the other."""
    return "\n".join(turn.content for turn in example.prompt.messages if turn.role != "system")


def scripts(text: str) -> Counter[str]:
    """How many letters of `text` each script has; digits, signs, spaces and letters that scripts share belong to none."""
    counts = Counter(_script(char) for char in text if char.isalpha())
    counts.pop(_SHARED, None)
    return counts


@lru_cache(maxsize=4096)
def _script(letter: str) -> str:
    found = _SCRIPT.match(letter)
    return str(found.lastgroup) if found else OTHER
