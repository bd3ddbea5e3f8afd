"""Final numbers as people and models write them, exact comparison, hostile texts, and the real GSM8K."""

from __future__ import annotations

import json
import time
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slm_ray.scoring import numeric
from slm_ray.scoring.numeric import MAX_CHARACTERS, final_number, score, written

GSM8K = Path(__file__).parents[3] / "shared" / "data" / "gsm8k"

FOUND = {
    "A: 18": 18,
    "18": 18,
    "18.0": 18,
    "18.": 18,
    "The answer is **18**.": 18,
    r"\boxed{18}": 18,
    r"\boxed{18}. It took 3 days.": 18,
    r"so \(\boxed{x_1 = -\frac{3}{4}}\), see line 2": Fraction(-3, 4),
    r"\boxed{18 \text{ eggs}}": 18,
    r"\boxed{none}, I mean 7": 7,
    "$1,234.50": Fraction(2469, 2),
    r"it costs \$1{,}234": 1234,
    r"1,\!234,\!567": 1234567,
    "1\u202f234\u202f567": 1234567,
    "1,2345": 2345,
    "100,200,300": 100200300,
    "3/4": Fraction(3, 4),
    "3 / 4": Fraction(3, 4),
    "6/8": Fraction(3, 4),
    "7/0": 0,
    "on 3/4/2024": 2024,
    "2 1/2 cups": Fraction(5, 2),
    "1,000 1/2": Fraction(2001, 2),
    "exercise 5 12/4": 3,
    "2½": Fraction(5, 2),
    "⅓": Fraction(1, 3),
    r"2\frac{1}{2}": Fraction(5, 2),
    "-3": -3,
    "\N{MINUS SIGN}3": -3,
    "-$5": -5,
    "$-5": -5,
    "(-5)": -5,
    "2020-2024": 2024,
    "GPT-4": 4,
    "x=-5": -5,
    "10 - 3": 3,
    "18%": 18,
    "18 percent": 18,
    "18 eggs": 18,
    "18kg": 18,
    "2 million": 2,
    "1.5e3": 1500,
    "2E-2": Fraction(1, 50),
    ".5": Fraction(1, 2),
    "0.1": Fraction(1, 10),
    "9" * 400: 10**400 - 1,
    "two plus 5 <<2+5=7>>7\n#### 7": 7,
    "#### 7": 7,
    "####7": 7,
    "#### -1,234.5 apples": Fraction(-2469, 2),
    "#### $18 for 3 days": 18,
    "#### **42**": 42,
    "#### 7\nLet me check: 3 + 4 = 7, and that is 2 more than 5": 7,
    "#### 6\nNo, that is wrong.\n#### 7": 7,
    r"#### 7 and \boxed{8}": 7,
    "#### Step 1\nadd\n#### Step 2\nso it is 15.": 15,
    "#### 1. Add 3 and 4\n#### 2. Double 1,234. The end is 14": 14,
    "#### 1,234. Add up: 5": 5,
    "the mark is missing ####": None,
    "": None,
    "none": None,
    "####": None,
    "eighteen": None,
    "1" * (MAX_CHARACTERS + 1): None,
}


@pytest.mark.parametrize("text", FOUND, ids=lambda text: text[:30] or "empty")
def test_the_final_number_of_a_text(text: str) -> None:
    found, expected = final_number(text), FOUND[text]
    assert found == expected
    assert (found is None) == (expected is None)


def test_rows() -> None:
    right, wrong, silent, failed = (
        score("r", text, "so it is 18\n#### 1,800") for text in ("about $1,800.00", "18", "lots", None)
    )
    assert (right.value("number_match"), right.value("number_found"), right.issues) == (1.0, 1.0, ())
    assert (wrong.value("number_match"), wrong.value("number_found"), wrong.issues) == (0.0, 1.0, ("wrong_number",))
    assert right.facts == {"predicted_number": "1800", "expected_number": "1800"}
    for row in (silent, failed):
        assert (row.value("number_match"), row.value("number_found"), row.issues) == (0.0, 0.0, ("no_number",))
        assert row.facts == {"expected_number": "1800"}


def test_a_reference_without_a_number_scores_nobody() -> None:
    row = score("r", "5", "who knows")
    assert (row.value("number_match"), row.value("number_found"), row.issues) == (None, None, ())


def test_no_digit_is_rounded() -> None:
    assert score("r", "0.1000000000000000055511151231257827", "0.1").value("number_match") == 0.0
    assert score("r", "9007199254740993", "9007199254740992").value("number_match") == 0.0
    assert score("r", "0.30", "3/10").value("number_match") == 1.0


@given(st.text(alphabet=st.characters(codec=None)) | st.text(alphabet="0123456789,./-−$ #{}\\½e%boxed") | st.none())
def test_no_text_raises(text: str | None) -> None:
    row = score("r", text, text or "")
    assert row.value("number_match") in (1.0, None)
    if (found := final_number(text)) is not None:
        assert final_number(written(found)) == found


@given(st.decimals(allow_nan=False, allow_infinity=False, places=4))
def test_decimals_are_read_exactly_with_separators_and_around_words(number: Decimal) -> None:
    for text in (f"{number:f}", f"{number:,f}", f"A: {number:,f} eggs.", f"#### {number:f}", f"\\boxed{{{number:,f}}}"):
        assert final_number(f"Take 3 of 7. {text}") == Fraction(number)


@given(st.fractions(), st.integers(min_value=0, max_value=10**6))
def test_fractions_are_read_exactly(number: Fraction, whole: int) -> None:
    assert final_number(f"{number.numerator}/{number.denominator}") == number
    part = Fraction(abs(number.numerator) % number.denominator, number.denominator)
    assert final_number(f"it is {whole} {part.numerator}/{part.denominator}") == whole + part


HOSTILE = {
    "separators that end badly": "1,111" * 200_000 + "1",
    "digits": "1" * 2_000_000,
    "boxes": "\\boxed{" * 200_000,
    "nested boxes": "\\boxed{{a}" * 100_000,
    "marks": "####" * 300_000,
    "headings": "#### 1. a" * 100_000,
    "slashes": "1/" * 500_000,
    "signs": "-$" * 500_000,
    "spaces": " " * 2_000_000,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_texts_are_quick(name: str) -> None:
    started = time.monotonic()
    row = score("r", HOSTILE[name], "#### 18")
    assert row.value("number_match") == 0.0
    assert time.monotonic() - started < 10


@pytest.mark.skipif(not GSM8K.is_dir(), reason="GSM8K is not here")
def test_every_reference_of_gsm8k_has_its_number() -> None:
    answers = [
        json.loads(line)["answer"]
        for name in ("train", "test")
        for line in (GSM8K / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    assert len(answers) == 7473 + 1319
    for answer in answers:
        marked = answer.rpartition("####")[2]
        row = score("r", answer, answer)
        assert row.facts["expected_number"] == written(Fraction(marked.strip().replace(",", "").replace("$", "")))
        assert (row.value("number_match"), row.value("number_found"), row.issues) == (1.0, 1.0, ())
        assert score("r", f"The answer is {marked.strip()}.", answer).value("number_match") == 1.0


@given(
    st.lists(st.sampled_from([*"01/ .,-−eE+$a\n½({}", "23", "999", "1,234", "\\frac{3}{4}", "{,}", " 1/2", "x" * 9]), max_size=40),
    st.sampled_from([3, 10, 64]),
)  # fmt: skip
def test_a_text_read_from_its_end_has_the_number_of_the_whole(parts: list[str], size: int) -> None:
    text = numeric._spelled_out("".join(parts))
    whole = [found for found in numeric._NUMBER.finditer(text) if len(found[0]) <= numeric.MAX_CHARACTERS]
    cuts = list(numeric._chunks_from_the_end(text, size))
    assert "".join(text[start:end] for start, end in reversed(cuts)) == text
    assert numeric._last_of(text, size) == (numeric._value(whole[-1]) if whole else None)
