"""The page: one file that escapes everything, loads nothing, labels stand-ins and shows every number it was given."""

import base64
import copy
import fnmatch
import gzip
import hashlib
import json
import math
import random
import re
import tomllib
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from page_sample import (
    ADAPTER,
    BASE,
    CHANGES,
    FIGURES,
    HOSTILE,
    LLM,
    part,
    priced,
    provenance,
    render,
    sample,
    sequential,
    tried_before,
)
from plain_records import facts, plain, record

from slm_ray.cost_records import CostReport, TrainingCost
from slm_ray.costs.volume import priced_by_volume, with_cascade
from slm_ray.page import page as page_module
from slm_ray.page.charts import daily, sequence, ticks
from slm_ray.page.formatting import in_points, visible, volumes
from slm_ray.types import SequentialResult

VOID = {"meta", "input", "br", "link", "img"}


class Document(HTMLParser):
    """Elements as (tag, attributes, text inside), in the order they end."""

    def __init__(self, html: Any) -> None:
        super().__init__()
        self.elements: list[Any] = []
        self.open: list[Any] = []
        self.feed(html)
        assert not self.open, "every element is closed"

    def handle_starttag(self, tag: Any, attrs: Any) -> None:
        if tag in VOID:
            self.elements.append((tag, dict(attrs), ""))
        else:
            self.open.append((tag, dict(attrs), []))

    def handle_startendtag(self, tag: Any, attrs: Any) -> None:
        self.elements.append((tag, dict(attrs), ""))

    def handle_endtag(self, tag: Any) -> None:
        name, attrs, texts = self.open.pop()
        assert name == tag
        self.elements.append((name, attrs, "".join(texts)))
        if tag in {"td", "th"}:
            self.handle_data(" ")

    def handle_data(self, data: Any) -> None:
        within = self.open[-1:] if self.open and self.open[-1][0] == "script" else self.open  # what is no text to read
        for _, _, texts in within:
            texts.append(data)

    def all(self, tag: Any, css_class: Any = None) -> Any:
        return [
            e
            for e in self.elements
            if e[0] == tag and (css_class is None or css_class in e[1].get("class", "").split())
        ]


HTML = render(sample())
DOCUMENT = Document(HTML)


def blocks(document: Any) -> Any:
    found = [(a, text) for _, a, text in document.all("script") if a.get("type") == "application/json"]
    return [json.loads(gzip.decompress(base64.b64decode(text)) if "data-packed" in a else text) for a, text in found]


(ROWS,) = blocks(DOCUMENT)
(BODY,) = (text for _, _, text in DOCUMENT.all("body"))


def test_the_same_data_gives_the_same_bytes() -> None:
    assert render(sample()) == HTML
    assert HTML.startswith("<!doctype html>")


def test_a_hostile_answer_is_only_text() -> None:
    assert "onerror" in HTML and "<img" not in HTML and HTML.count("<script") == 2 and HTML.count("</script") == 2
    assert HOSTILE in [answer.get("t") for row in ROWS["rows"] for answer in row["a"]]
    assert "{{ 7*7 }}" in HTML


@pytest.mark.parametrize("place", ["title", "run_dir", "stand_in_note", "client_snippet"])
def test_every_text_is_escaped(place: Any) -> None:
    assert HOSTILE in Document(render(sample() | {place: HOSTILE})).all("html")[0][2]


def test_specs_tags_reasons_and_issue_names_are_escaped() -> None:
    data = sample()
    track = data["tracks"][0]
    track["rows"][0]["tags"] = {HOSTILE: HOSTILE}
    track["decisions"][0]["decision"]["because"] = [HOSTILE]
    track["reports"]["test"]["models"][ADAPTER]["issues"] = {HOSTILE: 1}
    track["reports"]["test"]["models"][f"served:{HOSTILE}"] = copy.deepcopy(track["reports"]["test"]["models"][BASE])
    track["adapter"]["metrics"] = {HOSTILE: HOSTILE}
    found = Document(render(data))
    assert len(found.all("script")) == 2 and not found.all("img")
    assert found.all("script")[-1] == DOCUMENT.all("script")[-1], "the one script that runs is the page's own"


def test_nothing_is_loaded_and_nothing_runs() -> None:
    for tag, attributes, _ in DOCUMENT.elements:
        assert tag not in {"link", "img", "iframe", "object", "embed", "form", "base"}
        for name, value in attributes.items():
            assert not name.startswith("on") and name not in {"src", "srcset", "style", "action", "data"}
            assert name != "href" or value.startswith("#")
    (style,) = DOCUMENT.all("style")
    assert "url(" not in style[2] and "@import" not in style[2]


def test_the_policy_allows_exactly_the_pages_own_style() -> None:
    (policy,) = (a["content"] for _, a, _ in DOCUMENT.all("meta") if a.get("http-equiv") == "Content-Security-Policy")
    (style,) = DOCUMENT.all("style")
    digest = base64.b64encode(hashlib.sha256(style[2].encode()).digest()).decode()
    (script,) = (text for _, a, text in DOCUMENT.all("script") if "type" not in a)
    runs = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    allowed = f"default-src 'none'; style-src 'sha256-{digest}'; script-src 'sha256-{runs}'"
    assert policy == f"{allowed}; base-uri 'none'; form-action 'none'"
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|https?:", script)


def test_verdicts_come_in_words_with_their_rule_and_reasons() -> None:
    first, second = (text for _, _, text in DOCUMENT.all("article"))
    assert "Swap" in first and "fine-tune" in first and "Inconclusive" in second
    assert "No rule was declared before the first call: rule paired, delta 2 points" in " ".join(first.split())
    for track in sample()["tracks"]:
        for decision in track["decisions"]:
            assert all(in_points(sentence) in BODY for sentence in decision["decision"]["because"])


@pytest.mark.parametrize(
    ("declared", "words"),
    [
        (None, "No rule was declared before the first call"),
        ({"answers_before": 0}, "Declared before the first call: rule paired"),
        ({"answers_before": 200}, "The rule was declared when 200 answers were already there"),
        ({"answers_before": 0, "delta": 0.05}, "Exploratory: not the rule that was declared"),
    ],
)
def test_when_the_rule_was_fixed_is_said_as_it_was_recorded(declared: Any, words: str) -> None:
    data = sample()
    rule = {
        "rule": "paired", "stop": "never", "candidates": None, "delta": 0.02, "primary": "exact_match", "guardrails": [],
        "min_paired_share": 0.95, "quality_floor": None, "baselines": [], "track": "", "examples": "",
        "rows": 100,
    }  # fmt: skip
    made = data["tracks"][0]["decisions"][1]
    made["declared"] = declared and rule | declared
    if declared and "delta" in declared:
        made["decision"] |= {"action": "inconclusive", "exploratory": "swap"}
    first = " ".join(Document(render(data)).all("article")[0][2].split())
    assert words in first and first.count("eclared") == 1


def test_sentences_of_the_verdict_count_in_points_and_percent_as_the_page_does() -> None:
    said = "f1: the LLM leads by 0.0333, more than 0.02 (LLM 0.5333, SLM 0.5000); lower bound -0.4667, upper +0.0410"
    assert in_points(said) == (
        "f1: the LLM leads by 3.33 points, more than 2 points (LLM 53.3 %, SLM 50.0 %); lower bound −46.7 points,"
        " upper +4.1 points"
    )
    assert (
        in_points("by 12 rows, more than 2 % failed, gpt-4.1-0001") == "by 12 rows, more than 2 % failed, gpt-4.1-0001"
    )


def test_every_number_is_there() -> None:
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
            for value in decision["comparison"]["interval"].values():
                assert f"{100 * value:+.1f}".replace("-", "−") in BODY
    for text in ("+11.0", "−34.0", "42 ms", "97 ms", "62.1", "41.3", "10,340", "2 truncated", "2 min 12 s", "2.60.0"):
        assert text in BODY
    for text in ("60 rows in, 60 scored", "100 rows in, 100 scored", "5d1f" * 8, "make setup", "base_url"):
        assert text in BODY


def test_undefined_is_a_dash_and_never_zero_or_nan() -> None:
    cells = [text.split() for _, _, text in DOCUMENT.all("tr", "extra")]
    assert ["args_keys_match", *["–"] * 5] in cells, "three arms and two gaps on test rows"
    assert ["args_keys_match", *["–"] * 3] in cells, "two arms and one gap on validation rows"
    assert ["args_partial_match", "71.0", "%", "–", "80.3", "%", "–", "+9.3"] in cells
    data = sample()
    data["tracks"][1]["reports"]["test"]["models"][BASE]["metrics"]["args_f1"] = float("nan")
    for html in (HTML, render(data)):
        text = Document(html).all("body")[0][2]
        assert not re.search(r"\b(nan|None|inf|undefined %)\b", text)


def test_a_stand_in_is_named_in_every_strip_table_chart_and_row() -> None:
    for tag, css_class in (("article", None), ("table", None), ("div", "chart"), ("div", "decision")):
        found = DOCUMENT.all(tag, css_class)
        assert found
        for _, _, text in found:
            assert "stand-in" in text
    assert [arm["standIn"] for arm in ROWS["arms"]] == [True, False, False]


def test_a_real_llm_is_not_called_a_stand_in() -> None:
    data = sample() | {"stand_in_note": None}
    for track in data["tracks"]:
        for decision in track["decisions"]:
            decision["comparison"]["llm"] = "azure:large"
            decision["decision"]["because"] = ["because."]
        for report in track["reports"].values():
            report["models"] = {"azure:large": report["models"].pop(LLM), **report["models"]}
            report["models"]["azure:large"] |= {"facts": plain(facts("azure:large")), "served_by": ["large-2024"]}
        for row in track["rows"]:
            row["models"]["azure:large"] = row["models"].pop(LLM)
    assert "stand-in" not in Document(render(data)).all("body")[0][2]
    assert "stand-in" in Document(render(data | {"stand_in_note": "It was."})).all("article")[0][2]


def test_filters_count_and_rows_know_theirs() -> None:
    labels = [" ".join(t.split()) for _, a, t in DOCUMENT.all("label") if "structured" in a.get("for", "")]
    assert labels == [
        "All 6", "LLM and SLM disagree 2", "SLM lost 1", "SLM won 1", "Invalid or failed 2", "Refused 0", "Both right 4",
        "Both wrong 0",
    ]  # fmt: skip
    assert [row["k"] for row in ROWS["rows"]] == [
        ["both"], ["different", "won"], ["different", "lost"], ["both", "invalid"], ["both", "invalid"], ["both"],
    ]  # fmt: skip
    assert ROWS["open"] == 2, "the first lost row is open"
    data = sample()
    track = data["tracks"][0]
    track["rows"] = [{**track["rows"][0], "id": f"{n}"} for n in range(100)] + [track["rows"][2]]
    (found,) = blocks(Document(render(data)))
    assert found["open"] == 0, "not one that is drawn only when the list is scrolled"


def test_a_refusal_is_its_own_outcome() -> None:
    data = sample()
    refused = {"kind": "refused", "reason": "content filter", "status": None}
    data["tracks"][0]["rows"][0]["models"][LLM] |= {"text": None, "failure": refused}
    (found,) = blocks(Document(render(data)))
    row = found["rows"][0]
    assert row["k"] == ["different", "won", "invalid", "refused"]
    assert (row["a"][0]["o"], row["a"][0]["f"]) == ("refused", "refused: content filter")


def test_failures_say_why() -> None:
    assert "truncated: stopped at 256 tokens" in [answer.get("f") for row in ROWS["rows"] for answer in row["a"]]


def outcomes(scores: Any, *, issues: Any = (), primary: str = "exact_match") -> list[list[str]]:
    """What the arms' answers to the first row are called, and the row's filters."""
    data = sample()
    row = data["tracks"][0]["rows"][0]
    for answer, score, issue in zip(row["models"].values(), scores, [*issues, (), (), ()], strict=False):
        answer |= {"scores": {primary: score}, "issues": list(issue)}
    data["tracks"][0]["rows"] = [row]
    (found,) = blocks(Document(render(data)))
    (drawn,) = found["rows"]
    return [[answer["o"] for answer in drawn["a"]], drawn["k"]]


def test_only_an_answer_that_could_not_be_read_is_invalid() -> None:
    assert outcomes([1, 0, 0], issues=[(), ("wrong_number",), ("no_number",)]) == [
        ["right", "wrong", "invalid"], ["different", "lost", "invalid"],
    ]  # fmt: skip
    assert outcomes([0, 0, 0], issues=[("wrong_label",)] * 3) == [["wrong"] * 3, ["neither"]]


def test_a_graded_answer_is_told_by_its_score_and_never_called_right_or_wrong() -> None:
    assert outcomes([0.86, 1.0, 0.31]) == [["graded"] * 3, ["different", "lost"]]
    assert outcomes([0.5, None, 0.5]) == [["graded", "unscored", "graded"], ["both"]]
    data = sample()
    for row in data["tracks"][0]["rows"]:
        row["models"][LLM]["scores"]["exact_match"] = 0.86
    document = Document(render(data))
    labels = " ".join(text for _, _, text in document.all("label"))
    assert "SLM scored lower" in labels and "wrong" not in labels and "SLM lost" not in labels
    assert "Wilson" not in document.all("body")[0][2], "a mean of grades is no share of rows"


def test_a_demonstration_is_never_green() -> None:
    def tones(data: Any) -> set[str]:
        document = Document(render(data))
        marked = [*document.all("article"), *document.all("div", "decision"), *document.all("li")]
        return {name for _, attributes, _ in marked for name in attributes.get("class", "").split()}

    assert "demonstration" in tones(sample()) and not {"swap", "fine_tune"} & tones(sample())
    assert "A demonstration: a stand-in answered as the LLM" in DOCUMENT.all("article")[0][2]


def test_characters_that_do_not_show_are_spelled_out_wherever_a_text_stands() -> None:
    data = sample()
    unseen = [
        "\u202e",
        "\u2028",
        "\u3164",
        "\U000e0041",
        "\u200b",
        "\u00a0",
        "\ufe0f",
        "\u2800",
        "\u180e",
        "\x07",
        "\ue000",
    ]
    text = "|".join(unseen)
    data["tracks"][0]["decisions"][0]["decision"]["because"] = [text]
    data["tracks"][0]["reports"]["test"]["models"][ADAPTER]["issues"] = {text: 1}
    html = render(data)
    shown = "|".join(f"⟨U+{ord(sign):04X}⟩" for sign in unseen)
    assert html.count(shown) >= 2
    assert not [sign for sign in unseen if sign in html]
    assert visible("é ß 漢字 \tline\n 😀") == "é ß 漢字 \tline\n 😀"


def test_a_page_of_many_long_rows_keeps_to_its_limit_and_says_what_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    assert page_module.LIMIT_BYTES == 20_000_000
    monkeypatch.setattr(page_module, "LIMIT_BYTES", 2_000_000)
    chance = random.Random(42)
    data = sample()
    track = data["tracks"][0]
    same, _, differs, invalid, *_ = track["rows"]
    track["rows"] = []
    for number in range(200):
        row = copy.deepcopy(differs if number % 20 == 7 else invalid if number % 20 == 13 else same)
        row["models"][LLM]["text"] = chance.randbytes(10_000).hex()  # 4 MB of it in all
        track["rows"].append({**row, "id": f"row-{number:05d}"})
    html = render(data)
    assert 500_000 < len(html.encode()) < 2_000_000
    document = Document(html)
    (found,) = blocks(document)
    kept = [row["i"] for row in found["rows"]]
    assert kept == sorted(kept), "in the order of the file"
    for number in range(200):
        assert number % 20 not in (7, 13) or f"row-{number:05d}" in kept, "what is worth reading most is there"
    (said,) = (text for _, _, text in document.all("p", "left-out"))
    assert f"{200 - len(kept):,} rows are not on this page" in said
    assert " 2 MB" in said and "runs/demo/structured/test/scores.jsonl" in said
    assert not DOCUMENT.all("p", "left-out")


def test_rows_carry_what_an_export_needs_byte_for_byte() -> None:
    for row, source in zip(ROWS["rows"], sample()["tracks"][0]["rows"], strict=True):
        assert row.get("xr", row["x"]) == source["target"]
        turns = [*ROWS["earlier"][row["e"]], ["user", row["q"]]]
        assert turns == [[turn["role"], turn["content"]] for turn in source["prompt"]]
        for answer in row["a"]:
            spec = ROWS["arms"][answer["m"]]["spec"]
            assert answer.get("tr", answer.get("t")) == source["models"][spec]["text"]


def test_cost_and_the_share_it_may_take_are_shown_with_their_reasons() -> None:
    for text in (
        "a stand-in has no price",
        "127.0.0.1 (your own machine or network)",
        "0.00125",
        "0.00198",
        "RTX 3090",
        "SLM can take 25 % at delta 2 points",
    ):
        assert text in BODY
    without = sample()
    without["tracks"][0] |= {"cost": None, "partial_replacement": None}
    plain = Document(render(without)).all("body")[0][2]
    assert "If not all, how much?" not in plain and "rows go to" not in plain and "no price" in plain


def test_a_thousand_rows_stay_below_five_megabytes() -> None:
    data = sample()
    track = data["tracks"][0]
    track["rows"] = [{**row, "id": f"{row['id']}-{turn}"} for turn in range(170) for row in track["rows"]]
    assert len(track["rows"]) > 1000
    html = render(data)
    assert len(html.encode()) < 1_000_000, "much data is packed"
    assert render(data) == html
    (found,) = blocks(Document(html))
    assert [row["i"] for row in found["rows"]] == [row["id"] for row in track["rows"]]
    assert [row.get("xr", row["x"]) for row in found["rows"]] == [row["target"] for row in track["rows"]]


def test_a_thousand_rows_of_words_that_hardly_repeat_stay_below_five_megabytes() -> None:
    chance = random.Random(42)
    words = ["".join(chance.choices("abcdefghijklmnopqrstuvwxyz", k=chance.randint(2, 9))) for _ in range(5000)]

    def text(tokens: Any) -> Any:
        return " ".join(chance.choices(words, k=tokens))

    data = sample()
    track = data["tracks"][0]
    (row, *_) = track["rows"]
    track["rows"] = []
    for number in range(1000):
        models = {spec: {**answer, "text": text(150)} for spec, answer in row["models"].items()}
        prompt = [*row["prompt"][:-1], {"role": "user", "content": text(500)}]
        track["rows"].append({**row, "id": f"{number}", "prompt": prompt, "target": text(150), "models": models})
    assert len(render(data).encode()) < 5_000_000


def test_what_a_page_is_made_of_is_installed_with_the_package() -> None:
    root = Path(__file__).parents[2]
    patterns = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["slm_ray"]
    files = [path.relative_to(root / "slm_ray") for path in (root / "slm_ray" / "page").iterdir() if path.is_file()]
    left = [
        str(path) for path in files if path.suffix != ".py" and not any(fnmatch.fnmatch(path, one) for one in patterns)
    ]
    assert left == []


def test_guardrails_and_slices_stand_with_their_bounds_and_how_they_are_read() -> None:
    data = sample()
    final = data["tracks"][0]["decisions"][-1]
    final["comparison"]["guardrails"] = {
        "json_valid": {"estimate": 0.01, "lower": -0.004, "upper": 0.031},
        "field_f1": {"estimate": 0.0, "lower": -0.021, "upper": 0.021},
    }
    final["comparison"]["slices"] = [
        part("fine", 30, -0.01, 0.06),
        part("bad", 24, -0.41, -0.11),
        part("so", 21, -0.2, 0.1),
    ]
    text = " ".join(Document(render(data)).all("body")[0][2].split())
    for words in (
        "json_valid guardrail, not worse",
        "domain: bad 24 rows, worse",
        "domain: so 21 rows, not shown worse",
        "field_f1 guardrail, not shown to hold",
    ):
        assert words in text
    assert text.index("domain: bad") < text.index("domain: fine"), "the worst slice comes first"
    (cell,) = (
        " ".join(t.split()) for _, _, t in Document(render(data)).all("tr", "core") if "json_valid" in t and "−0.4" in t
    )
    assert "−0.4 to +3.1" in cell, "the bounds of a guardrail stand below its difference"
    final["decision"]["rule"] = "point"
    assert "What else has to hold" not in Document(render(data)).all("body")[0][2], "the point rule has no guards"


def test_the_break_even_is_drawn_where_both_lines_cross() -> None:
    chart = daily(priced(break_even=2640.0))
    assert chart is not None
    assert chart["even"]["requests"] == 2640.0
    assert abs(chart["even"]["y"] - float(chart["slm"].split()[1].split("H")[0])) < 0.2, "on the first machine's line"
    assert chart["machines"] == 2 and chart["slm"].count("V") == 1, "one machine is full before twice that volume"
    never = daily(priced(break_even=None))
    assert never is not None
    assert never["even"] is None and never["machines"] == 4 and never["slm"].count("V") == 3
    assert daily(record(CostReport, sample()["tracks"][0]["cost"])) is None, "a stand-in has no price"
    data = sample()
    data["tracks"][0]["cost"] = plain(priced(break_even=2640.0))
    assert "break-even: 2,640 a day" in Document(render(data)).all("body")[0][2]


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-0.06, 0.11), (0, 12345), (0, 0.0037), (-1, -0.9), (0, 7e-9)])
def test_ticks_are_few_round_and_inside(low: Any, high: Any) -> None:
    found = ticks(low, high)
    assert 2 <= len(found) <= 8 and found == sorted(set(found))
    assert all(low <= tick <= high + 1e-12 for tick in found)
    assert ticks(1, 1) == []


def test_the_provenance_box_shows_calls_noise_digests_versions_and_commands() -> None:
    data = sample()
    report = data["tracks"][0]["reports"]["test"]
    report["provenance"] = provenance(rows_scored=99)
    report["models"][LLM]["noise"] = {
        "repeats": 3, "agreement": 0.98, "same_text": 0.97, "primary": [0.52, 0.51, 0.53],
    }  # fmt: skip
    report["models"][LLM]["attempts"] = {"calls": 104, "retried": 4, "possibly_billed": 1}
    document = Document(render(data))
    text = " ".join(document.all("section")[-2][2].split())
    for words in (
        "104 calls, 4 of them retries, 1 never answered (maybe billed)", "against itself, 3 times: the same score on 98.0 %",
        "4 retries, 1 calls in doubt (maybe billed), 2 refused", "openai 3.52.0", "digest of answers abab",
        "slm-ray evaluate runs/demo/test/config.yaml",
    ):  # fmt: skip
        assert words in text, words
    doubts = [found for _, _, found in document.all("li", "no")]
    assert any("100 rows in = 99 scored" in one for one in doubts), "rows that are missing are not ticked"


def test_a_path_of_a_sessions_copy_is_shortened_to_what_outlives_it() -> None:
    data = sample()
    copy_of = (
        "/tmp/ray/session_2026-11-27_17-33-26_035022_23940/runtime_resources/working_dir_files/_ray_pkg_19e814822069/"
    )
    data["tracks"][0]["adapter"]["base"] = f"{copy_of}data/tiny_base"
    html = render(data)
    assert "base data/tiny_base" in Document(html).all("body")[0][2] and "_ray_pkg" not in html


def test_the_head_has_the_money_the_reason_where_it_fails_and_what_to_do() -> None:
    data = sample() | {"stand_in_note": None}
    for track in data["tracks"]:
        for report in track["reports"].values():
            report["models"][LLM] |= {"facts": plain(facts(LLM)), "served_by": ["large"]}
    track = data["tracks"][0]
    final = track["decisions"][-1]
    final["comparison"] |= {"slm_only_right": 17, "llm_only_right": 6, "slices": [part("bad", 24, -0.41, -0.11)]}
    track["cost"] = plain(priced(break_even=2640.0))

    def head() -> str:
        return " ".join(Document(render(data)).all("article")[0][2].split())

    for words in (
        "From 2,640 requests/day a machine costs less",
        "USD per 1,000 requests: 4.55 for the LLM, 0.00125 for the SLM.",
        "SLM − LLM is +11.0 points ±8.0: even its lower bound, +3.0, is above −2.0.",
        "Of 100 rows only the LLM is right on 6, only the SLM on 17. Shown worse: domain bad (−26.0).",
        "Most often: value mismatch (24).",
        "On Monday Serve the adapter to 5 % of the users",
    ):
        assert words in head(), words
    final["decision"] |= {"action": "inconclusive", "because": ["first.", "noise."], "advice": "9 fresh rows would do."}
    assert "first. 9 fresh rows would do." in head() and "Get fresh test rows" in head() and "Serve" not in head()
    final["decision"]["rule"] = "sequential"
    assert "Ask further rows and go on where this ended" in head() and "fresh test rows" not in head()


def test_who_was_right_is_counted_over_all_rows_and_not_where_answers_are_graded() -> None:
    (table,) = (" ".join(text.split()) for _, _, text in DOCUMENT.all("table", "two-by-two"))
    assert "tuned SLM right 4 1 tuned SLM wrong 1 0" in table and "stand-in" in table
    data = sample()
    data["tracks"][0]["rows"][0]["models"][LLM]["scores"]["exact_match"] = 0.5
    assert not Document(render(data)).all("table", "two-by-two")


def test_every_place_of_the_contents_is_there() -> None:
    identifiers = [attributes["id"] for _, attributes, _ in DOCUMENT.elements if "id" in attributes]
    assert len(identifiers) == len(set(identifiers))
    links = [attributes["href"] for tag, attributes, _ in DOCUMENT.elements if tag == "a"]
    assert len(links) > 8 and {link.removeprefix("#") for link in links} <= set(identifiers)


def test_the_confidence_sequence_is_a_picture_over_rows_with_the_row_that_decided() -> None:
    data = sample()
    final = data["tracks"][0]["decisions"][-1]
    final["comparison"]["sequential"] = sequential(decided_at=37)
    final["decision"]["rule"] = "sequential"
    text = " ".join(Document(render(data)).all("body")[0][2].split())
    assert "Decided at row 37 of 100. The 63 rows after it were not needed" in text and "decided at row 37" in text
    assert "rule sequential, delta 2 points on exact_match" in text and "exact_match decides" in text
    assert "+10.0 ±18.0" in text and "−8.0 to +28.0 points" in text, "the bounds that may be looked at at any time"
    final["comparison"]["sequential"] = sequential(decided_at=None)
    text = " ".join(Document(render(data)).all("body")[0][2].split())
    assert "Not decided after 100 rows" in text and "decided at row" not in text
    assert "As the rows came in" not in BODY


def test_what_the_rest_of_the_rows_took_stands_beside_the_row_that_decided() -> None:
    data = sample()
    final = data["tracks"][0]["decisions"][-1]
    final["comparison"]["sequential"] = sequential(decided_at=37)
    data["tracks"][0]["reports"]["test"]["sequential"] = {
        "delta": 0.02, "stop": "never", "rows": 100, "largest_group": 1, "candidates": {},
        "rest": {LLM: {"calls": 63, "tokens": 12_345, "usd": 0.1234}, ADAPTER: {"calls": 63, "tokens": 9000, "usd": None}},
    }  # fmt: skip
    text = " ".join(Document(render(data)).all("body")[0][2].split())
    assert (
        "they took 63 calls of LLM stand-in (12,345 tokens, 0.123 USD), 63 calls of tuned SLM (9,000 tokens, no price)"
        in text
    )


def test_a_further_candidate_is_named_with_the_level_that_is_left_for_it() -> None:
    data = sample()
    final = data["tracks"][0]["decisions"][-1]
    assert (
        "Candidate" not in DOCUMENT.all("article")[0][2]
        and "two one-sided bounds at the level of its comparison" in BODY
    )
    final["decision"]["candidate"], final["comparison"]["level"] = 3, 0.00338
    document = Document(render(data))
    assert "Candidate 3 on these rows: tested at 0.34 %" in document.all("article")[0][2]
    assert "two one-sided 99.66 % bounds" in document.all("body")[0][2]
    assert "Before it on these rows" not in document.all("article")[0][2]
    final["decision"]["earlier"] = [
        {"slm": f"served:tiny:{name}", "number": number, "rule": "paired", "level": level, "action": action, "date": "2026-11-20"}
        for number, (name, level, action) in enumerate([("<b>", 0.0304, "fine_tune"), ("b", 0.0076, "inconclusive")], start=1)
    ]  # fmt: skip
    said = Document(render(data)).all("article")[0][2]
    assert "served:tiny:<b> fine-tune (paired at 3 %, 2026-11-20)" in " ".join(said.split())


def test_the_run_before_is_shown_with_its_figures_and_the_rows_that_changed() -> None:
    assert "Compared with the run before" not in BODY
    document = Document(render(tried_before({}, {"figures": FIGURES, "changes": CHANGES})))
    body = " ".join(document.all("body")[0][2].split())
    lines = [" ".join(text.split()) for _, _, text in document.all("tr") if "candidate" in text]
    assert (
        lines[0].endswith("2026-11-20 – – – – fine-tune")
        and "A candidate without figures was noted when it was asked" in body
    )
    assert "−17.8 ±8.7−25.1 to −9.1 33.3 % 51.1 % 90 fine-tune" in lines[1]
    assert "candidate 3, this one" in lines[2] and "+11.0 ±8.0+3.0 to +19.0 63.0 % 52.0 % 100 swap" in lines[2]
    assert "on the 88 rows that both were scored on; 64 are as they were" in body
    assert "Right before, wrong now: 3: row-0002 a:b/ü&< and 1 more" in body
    assert "Wrong before, right now: 21." in body
    links = [attributes["href"] for _, attributes, text in document.all("a") if text in CHANGES["lower_ids"]]
    assert [unquote(link) for link in links] == ["#row=structured:row-0002", "#row=structured:a:b/ü&<"]
    assert all(re.fullmatch(r"#row=[^:]+:[^:<>&]+", link) for link in links), "as the script takes it apart"
    assert {"#structured-before"} <= {attributes.get("href") for _, attributes, _ in document.all("a")}


def test_where_nothing_is_kept_of_the_run_before_nothing_is_made_up() -> None:
    document = Document(render(tried_before({})))
    body = " ".join(document.all("body")[0][2].split())
    assert "Which rows changed cannot be told" in body and "Right before" not in body
    other = {"figures": {**FIGURES, "llm": "azure:old", "primary": "field_f1", "slm_metric": None}}
    (line,) = (text for _, _, text in Document(render(tried_before(other))).all("tr") if "v1" in text)
    assert "azure:old" in line and "field_f1" in line and "–" in line, "of another LLM, by another metric"


def test_who_was_tried_before_takes_a_bounded_place_however_many_and_however_long() -> None:
    ids = ["\u202e" * 40] * 50
    changes = {"rows": 90_000, "lower": 40_000, "higher": 50_000, "lower_ids": ids, "higher_ids": ids}
    html = render(tried_before(*({"figures": FIGURES, "changes": changes} for _ in range(500))))
    assert len(html.encode()) - len(HTML.encode()) < 100_000
    assert "The last 12 of 500 earlier candidates" in html and "\u202e" not in html


def test_rows_groups_and_what_they_are_worth_stand_where_the_decision_does() -> None:
    data = sample()
    comparison = data["tracks"][0]["decisions"][-1]["comparison"]
    assert "100 paired rows)" in DOCUMENT.all("article")[0][2] and "groups" not in DOCUMENT.all("article")[0][2]
    comparison |= {"groups": 100, "largest_group": 1, "effective_n": 100.0}  # each row on its own: nothing to say
    assert "100 paired rows)" in Document(render(data)).all("article")[0][2]
    comparison |= {"groups": 25, "largest_group": 4, "effective_n": 61.4, "undefined": 3}
    said = "100 paired rows in 25 groups of 4 at most, worth 61 independent ones; on 3 more exact_match is not defined"
    document = Document(render(data))
    assert said in document.all("article")[0][2]
    assert any(said in text for _, _, text in document.all("div", "decision"))


def test_recorded_answers_are_said_to_be_older_than_any_declaration() -> None:
    data = sample()
    data["tracks"][0]["reports"]["test"]["models"][LLM]["facts"]["kind"] = "recorded"
    assert (
        "Recorded answers were there before any rule could be declared" in Document(render(data)).all("article")[0][2]
    )


def test_the_sequence_is_drawn_where_its_figures_are() -> None:
    chart = sequence(record(SequentialResult, sequential(decided_at=50)), 0.02)
    assert chart is not None and chart["decided"] == {"x": 50.0, "at": 50} and chart["rest"] == 50
    assert chart["zero"] < chart["margin"] < 100, "minus delta is drawn below zero"
    last = [float(number) for number in chart["line"].split("L")[-1].split()]
    assert last[0] == 100 and last[1] < chart["zero"], "the last row stands at the right, a gain above zero"
    assert chart["band"].endswith("Z") and chart["band"].count("L") == 2 * 100 - 1
    assert sequence(record(SequentialResult, sequential(decided_at=None) | {"path": []}), 0.02) is None


def test_the_cost_by_volume_marks_the_readers_own_and_heads_the_page() -> None:
    data = sample()
    price = {"month_usd": 1234.5, "per_thousand_usd": 0.411}
    line = {"machines": 1, "llm": price, "slm": price | {"month_usd": 99.0}, "cascade": None, "cheapest": "slm"}
    data["tracks"][0]["cost"] |= {
        "requests_per_day": 100_000.0, "at_my_volume": "at your 100,000 requests/day the SLM is cheapest.",
        "by_volume": [
            line | {"requests_per_day": 1000.0, "is_mine": False, "machines": None, "slm": None, "cheapest": None},
            line | {"requests_per_day": 100_000.0, "is_mine": True, "payback_days": 12.25},
        ],
        "training": {"words": "training: 3 GPU hours"},
    }  # fmt: skip
    document = Document(render(data))
    mine = [" ".join(text.split()) for _, _, text in document.all("tr", "primary")]
    assert "100,000 yours 1 1,234.50 99.00 0.411 0.411 SLM 12.2" in mine
    (others,) = (" ".join(text.split()) for _, _, text in document.all("tr") if text.strip().startswith("1,000 "))
    assert others == "1,000 – 1,234.50 – 0.411 – – –", "what has no price is a dash"
    assert "Money At your 100,000 requests/day the SLM is cheapest." in " ".join(document.all("article")[0][2].split())
    assert "cascade" not in " ".join(mine)


def test_the_cost_at_any_volume_is_that_of_the_table_at_its_own() -> None:
    """What the page's script is given, worked out as the script does it, beside the table that the costs made."""
    llm = record(CostReport, plain(priced(1000.0))).arms[LLM]
    slm = replace(llm, kind="machine", per_request_usd=0.0001, capacity_requests_per_day=3000.0)
    report = replace(priced(1000.0), arms={LLM: llm, ADAPTER: slm}, slm=ADAPTER, requests_per_day=7000.0)
    report = priced_by_volume(report, TrainingCost(words="none"))
    report = with_cascade(report, (), share=0.75, taken={})
    found = volumes(report, stand_in=True)
    assert found is not None
    formula = json.loads(found["formula"])
    assert [name for name, _ in formula["ways"]] == ["LLM (stand-in)", "SLM", "cascade (stand-in)"]
    assert formula["requests"] == 7000.0 and len(report.by_volume) == 6
    for line in report.by_volume:
        for (_, parts), way in zip(formula["ways"], (line.llm, line.slm, line.cascade), strict=True):
            usd = sum(
                one["usd"] * one["share"] * line.requests_per_day
                if one["capacity"] is None
                else formula["machine_day_usd"]
                * max(1, math.ceil(one["share"] * line.requests_per_day / one["capacity"] - 1e-9))
                for one in parts
            )
            assert way is not None and usd * 365 / 12 == pytest.approx(way.month_usd)
    page = render(sample())
    assert 'class="at-volume"' not in page, "no table, no choice"


def test_what_to_do_next_is_what_the_verdict_says() -> None:
    data = sample() | {"serve_command": "slm-ray serve", "canary": "def takes_slm", "stand_in_note": None}
    for track in data["tracks"]:
        for report in track["reports"].values():
            report["models"][LLM] |= {"facts": plain(facts(LLM)), "served_by": ["large"]}
    final = data["tracks"][0]["decisions"][-1]["decision"]

    def next_step() -> str:
        return " ".join(Document(render(data)).all("section")[-1][2].split())

    assert "slm-ray serve" in next_step() and "takes_slm" in next_step()
    for action in ("fine_tune", "inconclusive"):
        final["action"] = action
        assert not [words for words in ("slm-ray serve", "takes_slm", "base_url") if words in next_step()], action
        assert "Get the same result" in next_step()


def test_missing_rows_and_leaks_are_not_ticked() -> None:
    data = sample()
    data["tracks"][0]["reports"]["test"]["models"][ADAPTER] |= {"n": 98, "trained_on": 3}
    doubts = [text for _, _, text in Document(render(data)).all("li", "no")]
    assert doubts == [
        "tuned SLM: 100 rows in, 98 scored, no call failed",
        "tuned SLM: 3 of these rows known to be in its training",
    ]


def test_a_loop_that_only_validated_and_one_that_decided_nothing_still_have_a_page() -> None:
    data = sample()
    only = data["tracks"][0]
    only |= {
        "decisions": only["decisions"][:1],
        "reports": {"validation": only["reports"]["validation"]},
        "rows": [],
        "adapter": None,
    }
    data["tracks"][1] = {"track": "toolcall", "decisions": [], "reports": {}}
    first, second = (text for _, _, text in Document(render(data)).all("article"))
    assert "Fine-tune" in first and "No decision" in second
    minimal = {"title": "t", "generated": "g", "run_dir": "r", "tracks": []}
    assert Document(render(minimal)).all("article") == []


def test_a_hypothetical_cost_of_a_mixture_is_said_to_be() -> None:
    data = sample()
    track = data["tracks"][0]
    track["reports"]["test"]["provenance"] = provenance(100)
    part = track["partial_replacement"]
    part["curve"] = [{**point, "per_request_usd": 0.002} for point in part["curve"]]
    text = Document(render(data)).all("body")[0][2]
    assert "100 rows in = 100 scored" in text and "resume it" in text
    assert "USD per 1,000 requests, hypothetical" not in text
    part["cost_hypothetical"] = True
    assert "USD per 1,000 requests, hypothetical" in Document(render(data)).all("body")[0][2]


def test_half_a_surrogate_pair_is_kept_and_does_not_break_the_file() -> None:
    data = sample()
    data["tracks"][0]["rows"][0]["models"][BASE]["text"] = "a\ud83d\x00\r\u2028 z"
    data["tracks"][0]["decisions"][0]["decision"]["because"] = ["\ud83d"]
    html = render(data)
    html.encode("utf-8")
    (found,) = blocks(Document(html))
    answer = next(answer for answer in found["rows"][0]["a"] if answer["m"] == 1)
    assert answer.get("tr", answer["t"]) == "a\ud83d\x00\r\u2028 z"


def test_a_line_ends_where_a_line_feed_stands_and_nowhere_else() -> None:
    data = sample()
    texts = ["a\u2028b\r\nc\x0bd\n", '{"city": "Os\u2028lo"}']
    for row, text in zip(data["tracks"][0]["rows"], texts, strict=False):
        row["models"][ADAPTER] |= {"text": text, "failure": None}
    (found,) = blocks(Document(render(data)))
    shown = [row["a"][2]["t"] for row in found["rows"]]
    assert shown[0] == texts[0] and "Os\u2028lo" in shown[1]


def test_a_time_is_shown_as_people_write_it() -> None:
    base = {"title": "t", "run_dir": "r", "tracks": []}
    assert "2026-11-21 13:59 UTC ·" in render({**base, "generated": "2026-11-21T13:59:15+00:00"})
    assert "yesterday ·" in render({**base, "generated": "yesterday"})
