"""The labelling page in a real browser: by keys, offline, blind, kept over a reload, and read back as labels."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from judged_pairs import config, row

from slm_ray.judging.labels import read_labels
from slm_ray.judging.queue import kept_queue, write_page

CHROMIUM = os.environ.get("CHROMIUM", "/usr/bin/chromium")
pytestmark = [
    pytest.mark.heavy,
    pytest.mark.skipif(not Path(CHROMIUM).is_file(), reason=f"no browser at {CHROMIUM} (set CHROMIUM)"),
]
HOSTILE = "<img src=x onerror=alert(1)>\u202eevil</script><script>alert(2)</script>"


@pytest.fixture(scope="session", autouse=True)
def ray_cluster() -> None:
    """A page needs no Ray."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield found
        found.close()


@pytest.mark.parametrize("long", [1, 30_000], ids=["plain", "packed"])
def test_pairs_are_labelled_by_keys_and_come_back_as_labels(browser: Any, tmp_path: Path, long: int) -> None:
    rows = [row(number, slm=HOSTILE + "small " * long) for number in range(40)]
    settings = config(tmp_path, looks=(30,), rubric="Is it right?")
    queue = kept_queue(settings, rows)
    tab = browser.new_context(accept_downloads=True).new_page()
    asked: list[str] = []
    complaints: list[str] = []
    tab.on("request", lambda request: asked.append(request.url))
    tab.on("console", lambda message: complaints.append(message.text))
    tab.on("pageerror", lambda error: complaints.append(str(error)))
    tab.on("dialog", lambda dialog: complaints.append(f"dialog {dialog.message}"))
    url = write_page(settings, queue, rows).as_uri()
    tab.goto(url)
    tab.get_by_text("pair 1 of 30, 0 labelled, 30 more to the next verdict").wait_for()
    order = [key for (key,) in queue.units]
    slm_side = "A" if queue.slm_first(order[0]) else "B"
    assert tab.locator(f"#{slm_side}").text_content().startswith(HOSTILE)
    assert tab.locator(f"#{slm_side} .unseen").get_attribute("data-code") == "U+202E"
    tab.keyboard.press("s")
    assert tab.locator("#kept").text_content() == "Write your initials first."
    tab.locator("#labeller").fill("s1")
    tab.locator("#progress").click()
    tab.locator("#labeller").blur()
    for key in ("1", "2", "3", "3", "ArrowLeft", "1"):
        tab.keyboard.press(key)
    tab.get_by_text("pair 5 of 30, 4 labelled, 26 more to the next verdict").wait_for()
    tab.reload()
    tab.get_by_text("pair 5 of 30, 4 labelled, 26 more to the next verdict").wait_for()
    with tab.expect_download() as event:
        tab.get_by_text("Download labels").click()
    path = tmp_path / "labels.jsonl"
    event.value.save_as(path)
    found = read_labels([str(path)], queue, rows)
    said = {key: value if queue.slm_first(key) else -value for key, value in zip(order, (1, 0, -1, 1), strict=False)}
    assert found.labellers == ("s1",) and found.differences == said
    assert set(asked) == {url} and complaints == []
    tab.context.close()
