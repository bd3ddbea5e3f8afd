"""The page: one file that escapes everything, loads nothing, labels stand-ins and shows every number it was given."""

import base64
import copy
import hashlib
import json
import re
from html.parser import HTMLParser

import pytest
from page_sample import ADAPTER, BASE, HOSTILE, LLM, sample

from slm_ray.verdict.page import page

VOID = {"meta", "input", "br", "link", "img"}


class Document(HTMLParser):
    """Elements as (tag, attributes, text inside), in the order they end."""

    def __init__(self, html):
        super().__init__()
        self.elements, self.open = [], []
        self.feed(html)
        assert not self.open, "every element is closed"

    def handle_starttag(self, tag, attrs):
        if tag in VOID:
            self.elements.append((tag, dict(attrs), ""))
        else:
            self.open.append((tag, dict(attrs), []))

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs), ""))

    def handle_endtag(self, tag):
        name, attrs, texts = self.open.pop()
        assert name == tag
        self.elements.append((name, attrs, "".join(texts)))
        if tag in {"td", "th"}:
            self.handle_data(" ")

    def handle_data(self, data):
        within = self.open[-1:] if self.open and self.open[-1][0] == "script" else self.open  # what is no text to read
        for _, _, texts in within:
            texts.append(data)

    def all(self, tag, css_class=None):
        return [
            e
            for e in self.elements
            if e[0] == tag and (css_class is None or css_class in e[1].get("class", "").split())
        ]


HTML = page(sample())
DOCUMENT = Document(HTML)


def blocks(document):
    return [json.loads(text) for _, a, text in document.all("script") if a.get("type") == "application/json"]


(ROWS,) = blocks(DOCUMENT)
(BODY,) = (text for _, _, text in DOCUMENT.all("body"))


def test_the_same_data_gives_the_same_bytes():
    assert page(sample()) == HTML
    assert HTML.startswith("<!doctype html>")


def test_a_hostile_answer_is_only_text():
    assert "onerror" in HTML and "<img" not in HTML and HTML.count("<script") == 2 and HTML.count("</script") == 2
    assert HOSTILE in [answer.get("t") for row in ROWS["rows"] for answer in row["a"]]
    assert "{{ 7*7 }}" in HTML


@pytest.mark.parametrize("place", ["title", "run_dir", "stand_in_note", "client_snippet"])
def test_every_text_is_escaped(place):
    assert HOSTILE in Document(page(sample() | {place: HOSTILE})).all("html")[0][2]


def test_specs_tags_reasons_and_issue_names_are_escaped():
    data = sample()
    track = data["tracks"][0]
    track["rows"][0]["tags"] = {HOSTILE: HOSTILE}
    track["decisions"][0]["because"] = [HOSTILE]
    track["reports"]["test"]["models"][ADAPTER]["issues"] = {HOSTILE: 1}
    track["reports"]["test"]["models"][f"served:{HOSTILE}"] = copy.deepcopy(track["reports"]["test"]["models"][BASE])
    track["adapter"]["metrics"] = {HOSTILE: HOSTILE}
    found = Document(page(data))
    assert len(found.all("script")) == 2 and not found.all("img")
    assert found.all("script")[-1] == DOCUMENT.all("script")[-1], "the one script that runs is the page's own"


def test_nothing_is_loaded_and_nothing_runs():
    for tag, attributes, _ in DOCUMENT.elements:
        assert tag not in {"link", "img", "iframe", "object", "embed", "form", "base"}
        for name, value in attributes.items():
            assert not name.startswith("on") and name not in {"src", "srcset", "style", "action", "data"}
            assert name != "href" or value.startswith("#")
    (style,) = DOCUMENT.all("style")
    assert "url(" not in style[2] and "@import" not in style[2]


def test_the_policy_allows_exactly_the_pages_own_style():
    (policy,) = (a["content"] for _, a, _ in DOCUMENT.all("meta") if a.get("http-equiv") == "Content-Security-Policy")
    (style,) = DOCUMENT.all("style")
    digest = base64.b64encode(hashlib.sha256(style[2].encode()).digest()).decode()
    (script,) = (text for _, a, text in DOCUMENT.all("script") if "type" not in a)
    runs = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    allowed = f"default-src 'none'; style-src 'sha256-{digest}'; script-src 'sha256-{runs}'"
    assert policy == f"{allowed}; base-uri 'none'; form-action 'none'"
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|https?:", script)


def test_verdicts_come_in_words_with_their_rule_and_reasons():
    first, second = (text for _, _, text in DOCUMENT.all("article"))
    assert "Swap" in first and "fine-tune" in first and "Inconclusive" in second
    assert "Rule fixed beforehand: paired, delta 0.02" in " ".join(first.split())
    for track in sample()["tracks"]:
        for decision in track["decisions"]:
            assert all(sentence in BODY for sentence in decision["because"])


def test_every_number_is_there():
    for track in sample()["tracks"]:
        for report in track["reports"].values():
            assert report["examples"]["digest"] in BODY
            for spec, model in report["models"].items():
                assert spec in BODY and all(name in BODY for name in model["served_by"])
                for name, value in model["metrics"].items():
                    assert name in BODY
                    assert value is None or f"{100 * value:.1f} %" in BODY
                for issue, count in model["issues"].items():
                    assert re.search(rf"{issue.replace('_', ' ')} [\d ]*\b{count}\b", BODY)
        for decision in track["decisions"]:
            for value in decision["interval"].values():
                assert f"{value:+.4f}".replace("-", "−") in BODY
    for text in ("+11.0", "−34.0", "42 ms", "97 ms", "62.1", "41.3", "10,340", "2 truncated", "2 min 12 s", "2.60.0"):
        assert text in BODY
    for text in ("60 rows in, 60 scored", "100 rows in, 100 scored", "5d1f" * 8, "make setup", "base_url"):
        assert text in BODY


def test_undefined_is_a_dash_and_never_zero_or_nan():
    cells = [text.split() for _, _, text in DOCUMENT.all("tr", "extra")]
    assert ["args_keys_match", *["–"] * 5] in cells, "three arms and two gaps on test rows"
    assert ["args_keys_match", *["–"] * 3] in cells, "two arms and one gap on validation rows"
    assert ["args_partial_match", "71.0", "%", "–", "80.3", "%", "–", "+9.3"] in cells
    data = sample()
    data["tracks"][1]["reports"]["test"]["models"][BASE]["metrics"]["args_f1"] = float("nan")
    for html in (HTML, page(data)):
        text = Document(html).all("body")[0][2]
        assert not re.search(r"\b(nan|None|inf|undefined %)\b", text)


def test_a_stand_in_is_named_in_every_strip_table_chart_and_row():
    for tag, css_class in (("article", None), ("table", None), ("svg", None), ("div", "decision")):
        found = DOCUMENT.all(tag, css_class)
        assert found
        for _, _, text in found:
            assert "stand-in" in text
    assert [arm["standIn"] for arm in ROWS["arms"]] == [True, False, False]


def test_a_real_llm_is_not_called_a_stand_in():
    data = sample() | {"stand_in_note": None}
    for track in data["tracks"]:
        for decision in track["decisions"]:
            decision["llm"] = "azure:large"
            decision["because"] = ["because."]
        for report in track["reports"].values():
            report["models"] = {"azure:large": report["models"].pop(LLM), **report["models"]}
            report["models"]["azure:large"] |= {"stand_in": False, "served_by": ["large-2024"]}
        for row in track["rows"]:
            row["models"]["azure:large"] = row["models"].pop(LLM)
    assert "stand-in" not in Document(page(data)).all("body")[0][2]
    assert "stand-in" in Document(page(data | {"stand_in_note": "It was."})).all("article")[0][2]


def test_filters_count_and_rows_know_theirs():
    labels = [" ".join(t.split()) for _, a, t in DOCUMENT.all("label") if "structured" in a.get("for", "")]
    assert labels == [
        "All 6", "LLM and SLM disagree 2", "SLM lost 1", "SLM won 1", "Invalid or failed 2", "Refused 0",
    ]  # fmt: skip
    assert [row["k"] for row in ROWS["rows"]] == [
        [], ["different", "won"], ["different", "lost"], ["invalid"], ["invalid"], [],
    ]  # fmt: skip
    assert ROWS["open"] == 2, "the first lost row is open"


def test_a_refusal_is_its_own_outcome():
    data = sample()
    refused = {"kind": "refused", "reason": "content filter", "status": None}
    data["tracks"][0]["rows"][0]["models"][LLM] |= {"text": None, "failure": refused}
    (found,) = blocks(Document(page(data)))
    row = found["rows"][0]
    assert row["k"] == ["different", "won", "invalid", "refused"]
    assert (row["a"][0]["o"], row["a"][0]["f"]) == ("refused", "refused: content filter")


def test_wrong_lines_are_marked_and_failures_say_why():
    marked = {
        answer["t"].split("\n")[line].strip()
        for row in ROWS["rows"]
        for answer in row["a"]
        for line in answer.get("d", ())
    }
    assert '"city": "Tokyo",' in marked and '"days": 1' in marked
    assert '"city": "Kyoto",' not in marked
    assert "truncated: stopped at 256 tokens" in [answer.get("f") for row in ROWS["rows"] for answer in row["a"]]


def test_rows_carry_what_an_export_needs_byte_for_byte():
    for row, source in zip(ROWS["rows"], sample()["tracks"][0]["rows"], strict=True):
        assert row.get("xr", row["x"]) == source["reference"]
        turns = [*ROWS["earlier"][row["e"]], ["user", row["q"]]]
        assert turns == [[turn["role"], turn["content"]] for turn in source["prompt"]]
        for answer in row["a"]:
            spec = ROWS["arms"][answer["m"]]["spec"]
            assert answer.get("tr", answer.get("t")) == source["models"][spec]["text"]


def test_cost_and_the_share_it_may_take_are_shown_with_their_reasons():
    for text in (
        "a stand-in has no price",
        "127.0.0.1 (your own machine or network)",
        "0.00125",
        "0.00198",
        "RTX 3090",
        "SLM can take 25 % at delta 0.02",
    ):
        assert text in BODY
    without = sample()
    without["tracks"][0] |= {"cost": None, "partial": None}
    plain = Document(page(without)).all("body")[0][2]
    assert "If not all, how much?" not in plain and "rows go to" not in plain and "no price" in plain


def test_a_thousand_rows_stay_below_five_megabytes():
    data = sample()
    track = data["tracks"][0]
    track["rows"] = [{**row, "id": f"{row['id']}-{turn}"} for turn in range(170) for row in track["rows"]]
    assert len(track["rows"]) > 1000
    assert len(page(data).encode()) < 5_000_000


def test_missing_rows_and_leaks_are_not_ticked():
    data = sample()
    data["tracks"][0]["reports"]["test"]["models"][ADAPTER] |= {"n": 98, "trained_on": 3}
    doubts = [text for _, _, text in Document(page(data)).all("li", "no")]
    assert doubts == [
        "tuned SLM: 100 rows in, 98 scored, no call failed",
        "tuned SLM: 3 of these rows known to be in its training",
    ]


def test_a_loop_that_only_validated_and_one_that_decided_nothing_still_have_a_page():
    data = sample()
    only = data["tracks"][0]
    only |= {
        "decisions": only["decisions"][:1],
        "reports": {"validation": only["reports"]["validation"]},
        "rows": [],
        "adapter": None,
    }
    data["tracks"][1] = {"track": "toolcall", "decisions": [], "reports": {}}
    data["tracks"][0]["decisions"][0]["interval"] = None
    first, second = (text for _, _, text in Document(page(data)).all("article"))
    assert "Fine-tune" in first and "No decision" in second
    minimal = {"title": "t", "generated": "g", "run_dir": "r", "tracks": []}
    assert Document(page(minimal)).all("article") == []


def test_half_a_surrogate_pair_does_not_break_the_file():
    data = sample()
    data["tracks"][0]["rows"][0]["models"][BASE]["text"] = "\ud83d"
    page(data).encode("utf-8")
