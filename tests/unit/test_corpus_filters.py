"""Filters: each drops what it names, keeps its neighbours, counts both and changes no row."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slm_ray.corpus import filters
from slm_ray.corpus.filters import Step, filter_rows
from slm_ray.corpus.unicode_text import SCRIPTS, scripts, words
from slm_ray.errors import ConfigError
from slm_ray.types import Example, Message, Prompt


def example(answer: Any, question: Any = "Ask something", name: Any = "x") -> Any:
    turns = (Message(role="system", content="Системный текст"), Message(role="user", content=question))
    return Example(id=name, prompt=Prompt(messages=turns), target=answer)


def kept(step: Any, answers: Any) -> Any:
    return [row.target for row in step([example(answer, name=str(place)) for place, answer in enumerate(answers)])[0]]


@given(st.lists(st.integers(0, 9)))
def test_a_filter_loses_nothing_and_counts_every_reason(numbers: Any) -> None:
    rows = [example(str(number)) for number in numbers]
    found, step = filter_rows("odd", rows, lambda row: f"is {row.target}" if int(row.target) % 2 else None)
    assert [row.target for row in found] == [str(number) for number in numbers if number % 2 == 0]
    assert (step.kept, step.dropped) == (len(found), len(numbers) - len(found))
    counts = [int(part.rsplit(": ", 1)[1]) for part in step.note.split(", ") if part]
    assert sum(counts) == step.dropped
    assert counts == sorted(counts, reverse=True)


def test_a_step_reads_as_a_line() -> None:
    assert str(Step(name="cap", kept=1200, dropped=34)) == "cap: 34 of 1,234 rows dropped"


def test_length_counts_the_words_of_question_and_answer() -> None:
    rows = [example("one two three"), example("one, two"), example("one two three", question="short")]
    rows.append(example("one two three four five"))
    found, step = filters.length(rows, prompt_words=(2, None), target_words=(3, 4))
    assert found == rows[:1]
    assert step.note == "answer over 4 words: 1, answer under 3 words: 1, question under 2 words: 1"
    with pytest.raises(ConfigError, match="target_words asks for at least 5 and at most 4"):
        filters.length(rows, prompt_words=(0, None), target_words=(5, 4))


PROSE = "The ferry leaves at nine. It takes forty minutes to cross, and the tickets are sold on board by the crew"
WHOLE = [
    "card_arrival",
    "What a title without a full stop looks like when it has more than eight words in all",
    "select a, b, c from one join two on one.a = two.a where a is not null and b in c group by a order by b",
    f"{PROSE}.",
    f"{PROSE}.)",
    f"{PROSE}!”",
    f"{PROSE}.\n#### 18",
    f"{PROSE}.\n- and a list whose last entry has no full stop at all, as they seldom do",
    f"{PROSE}.\n\nYours sincerely\nAda",
    "船は九時に出ます。四十分かかります。切符は船の上で買えます。",
    '{"a": "it has a { in it", "b": [1, 2]}',
    "[sic] as it was written",
    "```python\nprint(1)\n```",
    '<tool_call name="f">{"a": 1}</tool_call>',
    "",
]
CUT = [
    (PROSE, "open sentence"),
    (f"{PROSE},", "open sentence"),
    (f"{PROSE} (", "open sentence"),
    ('{"a": "it has a } in it", "b": [1, 2', "open JSON"),
    ('{"a": "stops here', "open JSON"),
    ('[{"a": 1},', "open JSON"),
    ("Here it is:\n```python\nprint(1)", "open code fence"),
    ('<tool_call name="f">{"a": 1}', "open tool call"),
]


def test_answers_that_end_are_kept() -> None:
    assert kept(filters.cut, WHOLE) == WHOLE


@pytest.mark.parametrize(("answer", "reason"), CUT)
def test_answers_that_were_cut_are_named_for_what_is_open(answer: Any, reason: Any) -> None:
    found, step = filters.cut([example(answer)])
    assert found == []
    assert step.note == f"{reason}: 1"


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@pytest.mark.parametrize("start", ['{"a": {"b": 1}, "c": "d}', '{"a": "]\\', '{"a": "}\\"'])
def test_a_bracket_in_a_string_that_breaks_off_closes_nothing(start: Any) -> None:
    assert kept(filters.cut, [start]) == []


@given(st.dictionaries(st.text(max_size=4), values, min_size=1, max_size=3), st.data())
def test_json_is_whole_and_any_beginning_of_it_is_cut(value: Any, data: Any) -> None:
    text = json.dumps(value, ensure_ascii=False)
    if text.count("```") % 2 == 0 and "<tool_call" not in text:
        assert kept(filters.cut, [text]) == [text]
    start = text[: data.draw(st.integers(1, len(text) - 1))]
    assert kept(filters.cut, [start]) == []


DECLINED = [
    "I'm sorry, but I can't help with that.",
    "I’m sorry, I cannot assist you with this request.",
    "I am very sorry, but I am unable to provide that.",
    "Sorry, I can't do that.",
    "I cannot fulfill this request.",
    "I can't really help you there.",
    "Unfortunately, I'm not able to access the internet.",
    "I apologize, but I cannot complete the task as it was given.",
    "As an AI language model, I don't have opinions. That said, …",
    "Well, as an AI, I cannot feel rain.",
    "“I won't write that.”",
]
ANSWERED = [
    "I'm sorry to hear that. Here is what you can do: call the bank.",
    "Sorry, I can't make it to the party on Friday.",
    "As an AI engineer, you build models.",
    "I can help with that.",
    "You cannot provide a refund after 30 days.",
    "Unfortunately, the shop is closed.",
    '{"answer": "no"}',
    "The model said: sorry.",
]


def test_refusals_are_dropped_and_mere_regrets_are_not() -> None:
    assert kept(filters.refusals, [*DECLINED, *ANSWERED]) == ANSWERED
    assert filters.refusals([example(text) for text in DECLINED])[1].note == f"declines: {len(DECLINED)}"


def test_a_refusal_is_looked_for_where_an_answer_opens() -> None:
    assert kept(filters.refusals, ["x" * 240 + " as an AI model, I cannot"]) != []


def test_script_is_told_by_the_letters_of_question_and_of_answer() -> None:
    rows = [
        example("Ein Café, bitte: 3 €", name="latin"),
        example("кофе", name="cyrillic answer"),
        example("coffee", question="Один кофе, пожалуйста", name="cyrillic question"),
        example("12 + 3 = 15", name="no letters"),
        example("the word кофе is Russian for coffee", name="mixed"),
    ]
    found, step = filters.script(rows, allowed=["latin"])
    assert [row.id for row in found] == ["latin", "no letters", "mixed"]
    assert step.note == "answer in cyrillic: 1, question in cyrillic: 1"
    assert [row.id for row in filters.script(rows, allowed=["latin"], share=0.9)[0]] == ["latin", "no letters"]
    assert len(filters.script(rows, allowed=["latin", "cyrillic"])[0]) == 5
    with pytest.raises(ConfigError, match="unknown script 'cyrilic': did you mean 'cyrillic'"):
        filters.script(rows, allowed=["cyrilic"])


@pytest.mark.parametrize(
    ("text", "script"),
    [
        ("Straße ﬁn Ｗide", "latin"), ("Ελληνικά", "greek"), ("Україна", "cyrillic"), ("עברית", "hebrew"),
        ("العربية", "arabic"), ("हिन्दी", "devanagari"), ("ไทย", "thai"), ("한국어", "hangul"), ("ひらがな", "hiragana"),
        ("カタカナ", "katakana"), ("漢字𠀀", "han"), ("Ꮳ", "other"),
    ],
)  # fmt: skip
def test_scripts_are_told_by_block(text: Any, script: Any) -> None:
    assert set(scripts(text)) == {script}
    assert script in SCRIPTS or script == "other"


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("one, two – three!", 3),
        ("snake_case x1", 2),
        ("हिन्दी में", 2),
        ("漢字です", 4),
        ("naïve", 1),
        ("...", 0),
        ("", 0),
    ],
)
def test_words_of_every_script(text: Any, count: Any) -> None:
    assert len(words(text)) == count


def test_scripts_are_those_of_unicode_also_outside_the_first_blocks() -> None:
    assert scripts("Ꭓ𝼀 ﬁ Å ǆ") == {"latin": 5}
    assert scripts("ㇰ 𛀁 ﾊ") == {"katakana": 2, "hiragana": 1}
    assert scripts("コーヒー") == {"katakana": 2}  # ー is of hiragana and katakana alike
    assert scripts("𞤀") == {"other": 1}
