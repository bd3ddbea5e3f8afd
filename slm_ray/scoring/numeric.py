"""The gsm8k track: the final number of an answer against the target's, compared exactly.

A text's final number is, in this order, the one that a `####` mark introduces, the last one in the last `\\boxed{…}`,
or the last one of the text. Numbers are read as people write them: `$1,234.50`, `-3`, `18.0`, `3/4`, `2 1/2`, `½`,
`\\frac{3}{4}`, `1.5e3`. The point is the decimal sign. What follows a number is its unit and changes nothing: `18 %`,
`18 eggs`, and `2 million` too. Values are fractions, so `18`, `18.0` and `36/2` are one number and no digit is rounded.
Nothing is calculated, and no text raises. A long text is read from its end; only one of nothing but numbers is read whole
(ten megabytes of them in three seconds).
"""

from __future__ import annotations

import re
import unicodedata
from collections import deque
from collections.abc import Iterable, Iterator
from fractions import Fraction

from slm_ray.scoring.scorer import as_scores
from slm_ray.types import RowScore

METRICS = ("number_match", "number_found")
MAX_CHARACTERS = 1000  # a longer number is none: converting digits to a number is quadratic

_SEPARATOR = r"(?:,\\!|,|\{,\}|\\,|[\u00a0\u2009\u202f])"
_INTEGER = rf"(?:[0-9]{{1,3}}(?:{_SEPARATOR}[0-9]{{3}}){{1,250}}+(?![0-9])|[0-9]++)"
_NUMBER = re.compile(
    # A minus behind a word, a number or a bracket is a hyphen, a range or an operator.
    r"(?P<sign>(?<![\w)\]}])[-−])?(?:\\?[$€£¥₹] ?(?P<inner>[-−])?)?"
    rf"(?:(?<!/)(?:(?P<units>{_INTEGER}) )?(?P<top>{_INTEGER}) ?/ ?(?P<bottom>(?!0+(?![0-9])){_INTEGER})(?!\.?[0-9]|/)"
    rf"|(?P<plain>(?:{_INTEGER}(?:\.[0-9]++)?|\.[0-9]++)(?:[eE][+-]?[0-9]{{1,2}}(?![0-9A-Za-z]))?))"
)
# `#### 3. Add up` is a heading, not a mark.
_MARK = re.compile(rf"####[ \t]*+[*_]*+(?P<number>(?>{_NUMBER.pattern}))(?![.):][ \t]+\S)")
_BOXED = re.compile(r"\\boxed\{((?:[^{}]++|\{[^{}]*+\})*+)\}")
_LATEX_FRACTION = re.compile(r"\\[dt]?frac\{([0-9]++)\}\{([0-9]++)\}")
_FRACTION_SIGNS = "¼½¾⅐⅑⅒⅓⅔⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞"
_BEHIND_DIGIT = re.compile(rf"(?<=[0-9])(?=[{_FRACTION_SIGNS}])")
_DIGIT = re.compile(r"[0-9]")
# What no number holds, whatever stands around it.
_BREAK = re.compile(r"[^0-9.,/ \\!{}$€£¥₹\-−+eE\u00a0\u2009\u202f]")
_CHUNK_CHARACTERS = 4096


def final_number(text: str | None) -> Fraction | None:
    """The final number of a text as an exact fraction; None when it holds none."""
    plain = _spelled_out(text or "")
    if mark := _last(_MARK.finditer(plain)):
        return _last_of(mark["number"])
    if (boxed := _last(_BOXED.finditer(plain))) and (found := _last_of(boxed[1])) is not None:
        return found
    return _last_of(plain)


def written(number: Fraction) -> str:
    """One text per number: `18`, `1234.5`, and `1/3` where decimals do not end."""
    places, rest = 0, number.denominator
    for prime in (2, 5):
        count = 0
        while rest % prime == 0:
            rest //= prime
            count += 1
        places = max(places, count)
    if rest > 1 or not places:
        return str(number)
    digits = str(abs(number.numerator) * 10**places // number.denominator).zfill(places + 1)
    return f"{'-' if number < 0 else ''}{digits[:-places]}.{digits[-places:]}"


def read(text: str | None) -> str | None:
    """The final number of a text as it is written; None where there is none."""
    number = final_number(text)
    return None if number is None else written(number)


def score(example_id: str, prediction: str | None, target: str) -> RowScore:
    """Score one answer; `prediction` None is a failed call and holds no number.

    `number_match`: the final numbers are equal. Both metrics are None when the target has no number. The numbers
    found are facts.
    """
    given, wanted = final_number(prediction), final_number(target)
    match, found = (None, None) if wanted is None else (float(given == wanted), float(given is not None))
    numbers = {"predicted_number": given, "expected_number": wanted}
    return RowScore(
        example_id=example_id,
        scores=as_scores({"number_match": match, "number_found": found}),
        issues=("no_number",) if given is None else ("wrong_number",) * (match == 0),
        facts={name: written(number) for name, number in numbers.items() if number is not None},
    )


def _spelled_out(text: str) -> str:
    """Fraction signs and LaTeX fractions as `a/b`, apart from a whole number in front of them."""

    def slashed(found: re.Match[str]) -> str:
        behind_digit = found.start() > 0 and text[found.start() - 1] in "0123456789"
        return f"{' ' * behind_digit}{found[1]}/{found[2]}"

    text = _LATEX_FRACTION.sub(slashed, text)
    if text.isascii():
        return text
    text = _BEHIND_DIGIT.sub(" ", text)
    for sign in _FRACTION_SIGNS:
        text = text.replace(sign, unicodedata.normalize("NFKC", sign).replace("\N{FRACTION SLASH}", "/"))
    return text


def _last_of(text: str, chunk_characters: int = _CHUNK_CHARACTERS) -> Fraction | None:
    """The last number of the text, looked for from its end: a long answer would else be read whole for its last word."""
    for start, end in _chunks_from_the_end(text, chunk_characters):
        if _DIGIT.search(text, start, end):
            # One character more, so that a number is told by what follows it.
            numbers = _NUMBER.finditer(text, start, end + 1)
            if found := _last(match for match in numbers if len(match[0]) <= MAX_CHARACTERS):
                return _value(found)
    return None


def _chunks_from_the_end(text: str, characters: int) -> Iterator[tuple[int, int]]:
    """Parts of the text, the last first, of about so many characters; all but the text's first begin with one that no
    number holds."""
    end = len(text)
    while end > 0:
        start, size = end, characters
        while start == end:
            begin = max(0, end - size)
            found = _BREAK.search(text, begin, end) if begin else None
            start = found.start() if found else end if begin else 0
            size *= 2
        yield start, end
        end = start


def _last(matches: Iterable[re.Match[str]]) -> re.Match[str] | None:
    kept = deque(matches, maxlen=1)
    return kept[0] if kept else None


def _value(found: re.Match[str]) -> Fraction:
    sign = -1 if found["sign"] or found["inner"] else 1
    if found["plain"]:
        return sign * Fraction(_bare(found["plain"]))
    part = Fraction(int(_bare(found["top"])), int(_bare(found["bottom"])))
    # `5 12/4` is not five and three: the fraction of a mixed number is below one.
    return sign * (int(_bare(found["units"])) + part) if found["units"] and part < 1 else sign * part


def _bare(digits: str) -> str:
    return re.sub(_SEPARATOR, "", digits)
