"""The page in a real browser: it opens fast and offline, runs nothing of the data's, filters, searches, exports, prints."""

from __future__ import annotations

import itertools
import json
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from slm_ray.corpus.read import examples
from slm_ray.corpus.tracks import track
from slm_ray.cost_records import TrainingCost
from slm_ray.costs.volume import priced_by_volume
from slm_ray.storage import read_lines

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))
from page_sample import ADAPTER, BASE, CHANGES, FIGURES, HOSTILE, LLM, priced, render, sample, sequential, tried_before
from plain_records import plain

CHROMIUM = os.environ.get("CHROMIUM", "/usr/bin/chromium")
pytestmark = [
    pytest.mark.heavy,
    pytest.mark.skipif(not Path(CHROMIUM).is_file(), reason=f"no browser at {CHROMIUM} (set CHROMIUM)"),
]
FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip


@pytest.fixture(scope="session", autouse=True)
def ray_cluster() -> None:
    """A page needs no Ray."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        yield found
        found.close()


class Opened:
    """A page, what it asked the network for and what it complained of."""

    def __init__(self, browser: Any, path: Path, **context: Any) -> None:
        self.tab = browser.new_context(**context).new_page()
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self.tab.on("request", lambda request: self.requests.append(request.url))
        self.tab.on("console", lambda message: self.complaints.append(message.text))
        self.tab.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.tab.on("dialog", lambda dialog: self.complaints.append(f"dialog {dialog.message}"))
        started = time.perf_counter()
        self.tab.goto(path.as_uri(), wait_until="load")
        self.tab.wait_for_selector(".row")
        self.seconds = time.perf_counter() - started

    def titles(self) -> list[str]:
        return [str(title) for title in self.tab.locator(".row .title").all_text_contents()]


def written(folder: Path, data: dict[str, Any]) -> Path:
    path = folder / "report.html"
    path.write_text(render(data), encoding="utf-8")
    return path


def many(rows: int) -> dict[str, Any]:
    data = sample()
    track = data["tracks"][0]
    track["rows"] = [{**track["rows"][n % 6], "id": f"row-{n:05d}"} for n in range(rows)]
    return data


@pytest.fixture
def opened(browser: Any, tmp_path: Path) -> Iterator[Opened]:
    found = Opened(browser, written(tmp_path, sample()), accept_downloads=True)
    yield found
    found.tab.context.close()


@pytest.mark.parametrize(
    ("rows", "limit_s"), [(1_000, 5.0), (10_000, 15.0)]
)  # README has what it takes; this catches hangs
def test_it_opens_with_many_rows_and_draws_few(browser: Any, tmp_path: Path, rows: int, limit_s: float) -> None:
    path = written(tmp_path, many(rows))
    found = Opened(browser, path, offline=True)
    print(f"{rows} rows, {path.stat().st_size:,} bytes, open in {found.seconds:.2f} s")
    assert found.tab.locator("script[data-packed]").count() == 1, "so many rows are packed"
    assert found.seconds < limit_s
    assert found.tab.locator(".shown").inner_text() == f"{rows} of {rows} rows"
    assert len(found.titles()) < 500
    found.tab.evaluate("() => { const list = document.querySelector('.list'); list.scrollTop = list.scrollHeight; }")
    found.tab.wait_for_function("() => document.querySelectorAll('.row').length > 100")
    found.tab.keyboard.press("/")
    started = time.perf_counter()
    found.tab.keyboard.type(f"row-{rows - 1:05d}")
    found.tab.wait_for_function("() => document.querySelector('.shown').textContent.startsWith('1 of')")
    print(f"one of {rows} rows found in {time.perf_counter() - started:.2f} s, typing included")
    assert found.complaints == []
    found.tab.context.close()


def test_it_asks_for_nothing_and_complains_of_nothing(opened: Opened) -> None:
    for row in opened.tab.locator(".row > summary").all():
        row.click()
    assert opened.requests == [opened.tab.url]
    assert opened.complaints == []


def test_hostile_data_is_text(browser: Any, tmp_path: Path) -> None:
    data = sample()
    attack = HOSTILE + '<svg onload=alert(3)><a href="javascript:alert(4)">x</a>\u202e <!-- <script>'
    for row in data["tracks"][0]["rows"]:
        row["tags"] = {attack: attack + "\u2028"}
        row["target"] = attack
        row["prompt"][-1]["content"] = attack
        for answer in row["models"].values():
            answer |= {"text": attack, "failure": None}
    data["tracks"][0]["rows"][0]["models"][BASE]["text"] = "x" * 1_000_000
    found = Opened(browser, written(tmp_path, data))
    for row in found.tab.locator(".row > summary").all():
        row.click()
    found.tab.wait_for_timeout(200)
    assert found.complaints == []
    assert found.tab.locator("img, svg[onload], a[href^='javascript']").count() == 0
    assert attack in found.tab.locator(".row[open] .column pre").all_text_contents()
    found.tab.context.close()


def test_filters_search_and_keys(opened: Opened) -> None:
    tab = opened.tab
    tab.get_by_text("SLM lost").click()
    assert len(opened.titles()) == 1 and "Kyoto" in opened.titles()[0]
    tab.keyboard.press("3")
    tab.keyboard.press("1")
    tab.wait_for_function("() => document.querySelectorAll('.row').length === 6")
    tab.keyboard.press("/")
    tab.keyboard.type("TURIN")
    tab.wait_for_function("() => document.querySelectorAll('.row').length === 1")
    assert "Turin" in opened.titles()[0]
    tab.keyboard.press("Escape")
    tab.wait_for_function("() => document.querySelectorAll('.row').length === 6")
    tab.locator("input[type=search]").blur()
    tab.keyboard.press("j")
    tab.keyboard.press("j")
    assert tab.evaluate("() => document.activeElement.textContent.includes('Lima')")
    tab.keyboard.press("o")
    tab.wait_for_function("() => document.activeElement.parentElement.open")
    tab.keyboard.press("?")
    assert tab.locator("#keys").is_visible()
    tab.keyboard.press("Escape")
    assert opened.complaints == []


def test_rows_are_filtered_by_slice_by_issue_and_by_who_was_right(opened: Opened) -> None:
    tab = opened.tab
    assert tab.locator(".slice option").all_text_contents()[:2] == ["any", "domain: weather (6)"]
    tab.locator(".issue").select_option("value mismatch")
    assert len(opened.titles()) == 1 and "Kyoto" in opened.titles()[0]
    tab.locator(".issue").select_option("")
    tab.locator("[data-show=won]").click()
    assert len(opened.titles()) == 1 and "Lima" in opened.titles()[0]
    assert tab.locator("input[value=won]").is_checked()
    assert opened.complaints == []


def test_a_link_opens_its_row_and_what_is_copied_is_the_row(browser: Any, tmp_path: Path) -> None:
    path = written(tmp_path, many(300))
    found = Opened(browser, path, permissions=["clipboard-read", "clipboard-write"])
    found.tab.locator(".issue").select_option("value mismatch")
    found.tab.goto(f"{path.as_uri()}#row=structured:row-00218")
    found.tab.wait_for_function("() => document.activeElement.matches('.row[open] > summary')")
    row = found.tab.locator(".row[open]", has_text="row-00218")
    assert row.is_visible()
    row.get_by_role("button", name="Copy link").click()
    row.get_by_role("button", name="Copied").wait_for()
    assert found.tab.evaluate("() => navigator.clipboard.readText()") == f"{path.as_uri()}#row=structured:row-00218"
    row.get_by_role("button", name="Copy row").click()
    found.tab.wait_for_function("async () => (await navigator.clipboard.readText()).startsWith('{')")
    copied = json.loads(found.tab.evaluate("() => navigator.clipboard.readText()"))
    source = sample()["tracks"][0]["rows"][2]
    assert copied["expected"] == source["target"]
    assert copied["answers"] == {spec: answer["text"] for spec, answer in source["models"].items()}
    found.tab.goto(f"{path.as_uri()}#row=structured:gone")
    found.tab.wait_for_function(
        "() => document.querySelector('.shown').textContent.includes('gone is not on this page')"
    )
    assert found.complaints == []
    found.tab.context.close()


def test_columns_are_sorted_by_a_press_and_what_is_undefined_stays_last(opened: Opened) -> None:
    table = opened.tab.locator("table", has_text="exact_match").first
    head = table.get_by_role("button", name="tuned SLM served")
    column = table.locator("thead th").all_text_contents().index(head.text_content())

    def shown() -> list[str]:
        return [cells[column] for cells in table.locator("tbody tr").evaluate_all(CELLS)]

    before = shown()
    head.click()
    values = [float(text.split()[0]) for text in shown() if "–" not in text]
    assert values == sorted(values, reverse=True) and sorted(shown()) == sorted(before)
    assert table.locator("th[aria-sort=descending]").count() == 1
    head.press("Enter")
    values = [float(text.split()[0]) for text in shown() if "–" not in text]
    assert values == sorted(values) and "–" in shown()[-1]


def test_the_contents_stay_in_sight_and_say_where_the_reader_is(browser: Any, tmp_path: Path) -> None:
    path = written(tmp_path, sample())
    for width in (390, 1400):
        found = Opened(browser, path, viewport={"width": width, "height": 800}, reduced_motion="reduce")
        found.tab.locator("nav a[href='#provenance']").click()
        found.tab.wait_for_function(
            "() => document.querySelector(\"nav a[href='#provenance']\").hasAttribute('aria-current')"
        )
        box = found.tab.locator("nav").bounding_box()
        assert box is not None and 0 <= box["y"] < 60, "it is still there"
        title = found.tab.locator("#provenance h2").bounding_box()
        assert title is not None and title["y"] >= (box["y"] + box["height"] if width == 390 else 0), (
            "and hides nothing"
        )
        found.tab.context.close()


def test_without_its_script_the_page_still_reads(browser: Any, tmp_path: Path) -> None:
    data = sample()
    data["tracks"][0]["rows"][2]["models"][ADAPTER]["text"] = HOSTILE
    tab = browser.new_context(java_script_enabled=False).new_page()
    tab.goto(written(tmp_path, data).as_uri())
    shown = tab.locator("body").inner_text()
    assert "Swap" in shown and "+11.0" in shown and "of them without it" in shown
    assert HOSTILE in shown, "and a hostile answer is text there too"
    assert tab.locator("img").count() == 0
    assert not tab.locator(".controls").is_visible(), "nothing is offered that would not work"
    tab.context.close()


def test_a_reader_chooses_a_volume_by_number_and_by_keys_and_sees_what_each_way_costs(
    browser: Any, tmp_path: Path
) -> None:
    data = sample()
    cost = priced_by_volume(replace(priced(1000.0), requests_per_day=4000.0), TrainingCost(words="none"))
    data["tracks"][0]["cost"] = plain(cost)
    path = written(tmp_path, data)
    found = Opened(browser, path, offline=True)
    box = found.tab.locator(".at-volume")
    number, slider, said = (box.locator(part) for part in ("input[type=number]", "input[type=range]", "output"))
    # 12 USD per 1,000 by the token; a machine at 12 USD a day answers 5,000.
    assert said.inner_text().endswith("SLM 365.00 USD a month (3.00 per 1,000). Cheapest: SLM.")
    assert number.input_value() == "4000"
    number.fill("500")
    assert "182.50 USD a month (12.00 per 1,000)" in said.inner_text() and "Cheapest: LLM" in said.inner_text()
    slider.press("End")
    assert number.input_value() == "10000000" and "SLM 730,000.00 USD a month" in said.inner_text()
    number.fill("")
    assert "SLM 730,000.00 USD a month" in said.inner_text(), "no number is no volume"
    assert found.complaints == []
    found.tab.context.close()
    tab = browser.new_context(java_script_enabled=False).new_page()
    tab.goto(path.as_uri())
    assert not tab.locator(".at-volume").is_visible()
    tab.context.close()


CELLS = "(rows) => rows.map((row) => [...row.cells].map((cell) => cell.textContent.trim()))"


def test_ratings_are_exported_as_training_rows(opened: Opened, tmp_path: Path) -> None:
    tab = opened.tab
    for _ in range(2):
        tab.keyboard.press("j")
    tab.keyboard.press("g")  # Lima: the SLM was right
    tab.keyboard.press("j")
    tab.keyboard.press("b")  # Kyoto: it was not
    row = tab.locator(".row").nth(2)
    row.locator("textarea.comment").fill('wrong "city" – Ω')
    row.locator("textarea.corrected").fill('{"corrected": true}')
    with tab.expect_download() as event:
        tab.get_by_text("Export 2 rated rows").click()
    path = tmp_path / "ratings.jsonl"
    event.value.save_as(path)
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    source = {row["id"]: row for row in sample()["tracks"][0]["rows"]}
    assert [line["id"] for line in lines] == ["row-0001", "row-0002"]
    assert lines[0]["completion"] == source["row-0001"]["models"][ADAPTER]["text"]
    assert lines[1]["completion"] == '{"corrected": true}'
    assert lines[1]["tags"] | {"rating": "bad", "comment": 'wrong "city" – Ω'} == lines[1]["tags"]
    read = examples(read_lines(path), name=str(path), track=track("structured"))
    assert [row.prompt.as_dicts() for row in read] == [source[line["id"]]["prompt"] for line in lines]


def test_what_was_rated_survives_a_reload(opened: Opened) -> None:
    tab = opened.tab
    export = tab.locator(".export")
    assert export.is_disabled()
    tab.keyboard.press("j")
    tab.keyboard.press("b")
    tab.locator(".row").first.locator("textarea.comment").fill("kept")
    tab.reload()
    tab.wait_for_selector(".row")
    assert export.inner_text() == "Export 1 rated rows (JSONL)" and export.is_enabled()
    tab.keyboard.press("j")
    tab.keyboard.press("o")
    row = tab.locator(".row").first
    assert row.locator("textarea.comment").input_value() == "kept"
    assert row.get_by_role("button", name="bad").get_attribute("aria-pressed") == "true"
    tab.keyboard.press("b")
    row.locator("textarea.comment").fill("")
    tab.reload()
    tab.wait_for_selector(".row")
    assert export.is_disabled(), "what was taken back is gone"
    assert opened.complaints == []


def test_ratings_that_the_browser_will_not_keep_are_not_left_silently(browser: Any, tmp_path: Path) -> None:
    tab = browser.new_context(accept_downloads=True).new_page()
    tab.add_init_script("Storage.prototype.setItem = () => { throw new DOMException('full', 'QuotaExceededError'); }")
    tab.goto(written(tmp_path, sample()).as_uri())
    tab.wait_for_selector(".row")
    asked: list[str] = []

    def dismiss(dialog: Any) -> None:
        asked.append(dialog.type)
        dialog.dismiss()

    tab.on("dialog", dismiss)
    tab.keyboard.press("j")
    tab.keyboard.press("g")
    tab.close(run_before_unload=True)
    tab.wait_for_timeout(300)
    assert asked == ["beforeunload"] and not tab.is_closed()
    with tab.expect_download():
        tab.locator(".export").click()
    tab.close(run_before_unload=True)
    assert asked == ["beforeunload"], "what was exported may be left"
    tab.context.close()


def test_what_cannot_be_seen_is_shown_and_leaves_the_browser_as_it_came(browser: Any, tmp_path: Path) -> None:
    data = sample()
    odd = 'right\u202eto\u200bleft \ud83d\x00\ufeff \u2028\u3164\U000e0041\u2800 "q" 👩\u200d🚀 \r\n end\n'
    row = data["tracks"][0]["rows"][0]
    row["models"][ADAPTER] |= {"text": odd, "failure": None}
    row["prompt"][-1]["content"] = odd
    found = Opened(browser, written(tmp_path, data), accept_downloads=True)
    found.tab.keyboard.press("j")
    found.tab.keyboard.press("g")
    codes = found.tab.locator(".row[open] .column .unseen").evaluate_all("(all) => all.map((one) => one.dataset.code)")
    seen = ["U+202E", "U+200B", "U+D83D", "U+0000", "U+FEFF", "U+2028", "U+3164", "U+E0041", "U+2800", "U+000D"]
    assert codes == seen, "each, but not the joiner within a picture"
    with found.tab.expect_download() as event:
        found.tab.locator(".export").first.click()
    event.value.save_as(tmp_path / "ratings.jsonl")
    line = json.loads((tmp_path / "ratings.jsonl").read_text(encoding="utf-8"))
    assert line["completion"] == odd and line["prompt"][-1]["content"] == odd
    assert found.complaints == []
    found.tab.context.close()


def test_two_tracks_have_a_list_each_and_keys_go_to_the_one_in_use(browser: Any, tmp_path: Path) -> None:
    data = sample()
    data["tracks"][1]["rows"] = [
        {**row, "id": f"call-{n}", "prompt": [{"role": "user", "content": f"Call {n}"}]}
        for n, row in enumerate(data["tracks"][0]["rows"])
    ]
    found = Opened(browser, written(tmp_path, data))
    first, second = found.tab.locator(".sides").nth(0), found.tab.locator(".sides").nth(1)
    second.locator(".row > summary").nth(1).focus()
    found.tab.keyboard.press("b")
    assert second.locator(".export").inner_text() == "Export 1 rated rows (JSONL)"
    assert first.locator(".export").is_disabled()
    found.tab.keyboard.press("j")
    assert found.tab.evaluate("() => document.activeElement.textContent.includes('Call 2')")
    assert found.complaints == []
    found.tab.context.close()


def test_a_row_that_changed_since_the_run_before_is_a_press_away(browser: Any, tmp_path: Path) -> None:
    data = tried_before({"figures": FIGURES, "changes": CHANGES})
    data["tracks"][0]["rows"][4]["id"] = CHANGES["lower_ids"][1]  # with a colon, an umlaut and signs of HTML
    found = Opened(browser, written(tmp_path, data))
    for name in CHANGES["lower_ids"]:
        found.tab.locator("#structured-before ~ .card").first.get_by_role("link", name=name, exact=True).click()
        found.tab.wait_for_function("() => document.activeElement.matches('.row[open] > summary')")
        assert found.tab.locator(".row[open]", has_text=name).count() == 1
    assert found.complaints == []
    found.tab.context.close()


def test_it_prints_and_works_without_colour_and_on_a_narrow_screen(browser: Any, tmp_path: Path) -> None:
    path = written(tmp_path, tried_before({"figures": FIGURES, "changes": CHANGES}))
    found = Opened(browser, path, forced_colors="active", viewport={"width": 400, "height": 800})
    assert found.tab.evaluate("() => document.documentElement.scrollWidth") <= 400
    marks = found.tab.locator(".mark").first
    words = marks.evaluate("(mark) => getComputedStyle(mark, '::before').content + mark.textContent")
    assert any(sign in words for sign in "✓✗!"), "an outcome is a sign and a word, not a colour"
    found.tab.emulate_media(media="print", forced_colors="none")
    found.tab.set_viewport_size({"width": 720, "height": 1000})
    shown = found.tab.locator(".row").evaluate_all("(rows) => rows.map((row) => [row.open, row.checkVisibility()])")
    assert shown and all(is_open == visible for is_open, visible in shown), "open rows are printed, others are not"
    wide = found.tab.evaluate(
        "() => [...document.querySelectorAll('.scroll')].filter((one) => one.scrollWidth > one.clientWidth + 1).length"
    )
    assert wide == 0, "nothing is cut off on paper"
    assert found.tab.pdf(path=str(tmp_path / "page.pdf"))[:5] == b"%PDF-"
    found.tab.context.close()


def test_on_a_phone_no_shape_and_no_letter_is_cut_off_and_lengths_tell(browser: Any, tmp_path: Path) -> None:
    data = sample()
    shares = {LLM: 0.827, BASE: 0.589, ADAPTER: 0.857}
    for spec, share in shares.items():
        data["tracks"][0]["reports"]["test"]["models"][spec]["metrics"]["exact_match"] = share
    data["tracks"][0]["cost"] = plain(priced(break_even=2640.0))
    data["tracks"][0]["decisions"][-1]["comparison"]["sequential"] = sequential(decided_at=37)
    found = Opened(browser, written(tmp_path, data), viewport={"width": 390, "height": 800})
    outside = found.tab.evaluate(
        """() => [...document.querySelectorAll("svg rect, svg circle, svg line, svg text")].filter((one) => {
            const box = one.getBoundingClientRect(); return one.checkVisibility() && (box.left < 0 || box.right > 390.5); })
            .map((one) => one.outerHTML)"""
    )
    assert outside == []
    drawn = found.tab.locator(".bar").evaluate_all("(all) => all.map((one) => one.getBoundingClientRect().width)")[:3]
    assert [round(width / drawn[0], 2) for width in drawn] == [round(share / 0.827, 2) for share in shares.values()]
    small = found.tab.evaluate(
        """() => [...document.querySelectorAll("svg text")].filter((one) => one.checkVisibility())
            .map((one) => one.getBoundingClientRect().height)"""
    )
    assert small and min(small) >= 11, "no letter shrinks with the width"
    found.tab.context.close()


def test_an_answer_shows_the_words_that_differ_and_is_copied_as_it_was(opened: Opened) -> None:
    row = opened.tab.locator(".row", has_text="Kyoto").first
    if row.get_attribute("open") is None:
        row.locator("summary").click()
    wrong = row.locator(".column.wrong pre").last
    assert wrong.locator("mark").all_text_contents() == ["Tokyo"]
    assert wrong.locator("del").evaluate_all("(all) => all.map((one) => one.dataset.text)") == ["Kyoto"]
    source = sample()["tracks"][0]["rows"][2]["models"][ADAPTER]["text"]
    assert json.loads(wrong.text_content() or "") == json.loads(source), "what is struck out is no part of the answer"


CONTRAST = """() => {
  const pen = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const read = (colour) => {
    pen.clearRect(0, 0, 1, 1); pen.fillStyle = colour; pen.fillRect(0, 0, 1, 1);
    return pen.getImageData(0, 0, 1, 1).data;
  };
  const light = (colour) => [...colour].slice(0, 3).map((v) => v / 255)
    .map((v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
    .reduce((sum, v, place) => sum + v * [0.2126, 0.7152, 0.0722][place], 0);
  const behind = (one) => {
    for (; one; one = one.parentElement) { const found = read(getComputedStyle(one).backgroundColor); if (found[3] > 250) return found; }
    return [255, 255, 255];
  };
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT), poor = [];
  while (texts.nextNode()) {
    const one = texts.currentNode.parentElement;
    if (!texts.currentNode.textContent.trim() || one.matches("script, style, noscript, :disabled") || !one.checkVisibility()) continue;
    const style = getComputedStyle(one), colour = read(one.ownerSVGElement ? style.fill : style.color);
    const [more, less] = [light(colour), light(behind(one))].sort((a, b) => b - a);
    if ((more + 0.05) / (less + 0.05) < 4.5) poor.push(`${one.tagName}.${one.getAttribute("class")}`);
  }
  return [...new Set(poor)];
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_stands_out_from_its_ground(browser: Any, tmp_path: Path, scheme: str) -> None:
    found = Opened(
        browser, written(tmp_path, tried_before({"figures": FIGURES, "changes": CHANGES})), color_scheme=scheme
    )
    assert found.tab.evaluate(CONTRAST) == []
    found.tab.evaluate("() => { document.documentElement.style.setProperty('--soft', '#777'); }")
    assert "P.meta" in found.tab.evaluate(CONTRAST), "the measure finds what is too faint"
    found.tab.context.close()


def test_every_control_has_a_name_and_headings_go_down_by_one(opened: Opened) -> None:
    opened.tab.locator(".row > summary").first.click()
    nameless = opened.tab.evaluate(
        """() => [...document.querySelectorAll("input, textarea, select, button, svg:not([aria-hidden] *, [aria-hidden])")].filter((one) =>
            !(one.labels && one.labels.length) && !one.textContent.trim() && !one.getAttribute("aria-label")).length"""
    )
    assert nameless == 0
    levels = opened.tab.evaluate(
        "() => [...document.querySelectorAll('main h1, main h2, main h3, main h4, h1')].map((one) => +one.tagName[1])"
    )
    assert levels[0] == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels)), levels
    assert LLM.startswith("served:")
