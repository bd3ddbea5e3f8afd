"""The page: one file that escapes everything, loads nothing, labels stand-ins and shows every number it was given."""

import base64
import copy
import hashlib
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
        for _, _, texts in self.open:
            texts.append(data)

    def all(self, tag, css_class=None):
        return [
            e
            for e in self.elements
            if e[0] == tag and (css_class is None or css_class in e[1].get("class", "").split())
        ]


HTML = page(sample())
DOCUMENT = Document(HTML)
(BODY,) = (text for _, _, text in DOCUMENT.all("body"))


def test_the_same_data_gives_the_same_bytes():
    assert page(sample()) == HTML
    assert HTML.startswith("<!doctype html>")


def test_a_hostile_answer_is_only_text():
    assert "onerror" in HTML and "<img" not in HTML and "<script" not in HTML
    assert HOSTILE in BODY
    assert "{{ 7*7 }}" in BODY


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
    assert not found.all("script") and not found.all("img")


def test_nothing_is_loaded_and_nothing_runs():
    for tag, attributes, _ in DOCUMENT.elements:
        assert tag not in {"script", "link", "img", "iframe", "object", "embed", "form", "base"}
        for name, value in attributes.items():
            assert not name.startswith("on") and name not in {"src", "srcset", "style", "action", "data"}
            assert name != "href" or value.startswith("#")
    (style,) = DOCUMENT.all("style")
    assert "url(" not in style[2] and "@import" not in style[2]


def test_the_policy_allows_exactly_the_pages_own_style():
    (policy,) = (a["content"] for _, a, _ in DOCUMENT.all("meta") if a.get("http-equiv") == "Content-Security-Policy")
    (style,) = DOCUMENT.all("style")
    digest = base64.b64encode(hashlib.sha256(style[2].encode()).digest()).decode()
    assert policy == f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"


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
    for tag, css_class in (("article", None), ("table", None), ("svg", None), ("details", "row"), ("div", "decision")):
        found = DOCUMENT.all(tag, css_class)
        assert found
        for _, _, text in found:
            assert "stand-in" in text


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


def test_filters_work_by_class_and_count():
    labels = [" ".join(t.split()) for _, a, t in DOCUMENT.all("label") if "structured" in a["for"]]
    assert labels == ["All 6", "LLM and SLM disagree 2", "SLM lost 1", "Invalid or failed 2"]
    rows = DOCUMENT.all("details", "row")
    assert [
        len([r for r in rows if f"k-{kind}" in r[1]["class"]]) for kind in ("all", "different", "lost", "invalid")
    ] == [6, 2, 1, 2]
    assert [("open" in r[1]) for r in rows].index(True) == 2, "the first lost row is open"


def test_wrong_lines_are_marked_and_failures_say_why():
    marked = [text.strip() for _, _, text in DOCUMENT.all("mark")]
    assert '"city": "Tokyo",' in marked and '"days": 1' in marked
    assert '"city": "Kyoto",' not in marked
    assert "truncated: stopped at 256 tokens" in BODY


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
