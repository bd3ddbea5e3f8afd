"""One offline HTML page on which a person says which of two answers is better, without being told whose they are.

`label_page` is a pure function: same pairs, same bytes. The page loads nothing, runs one script, its own (a content
security policy forbids others), puts texts in as text only, keeps what was said in the browser and gives it back as
JSON Lines. It holds no model's name and no judgement.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from slm_ray.page import formatting
from slm_ray.page.template import encodable, environment


@dataclass(frozen=True, slots=True, kw_only=True)
class PairToLabel:
    """One row: what was asked, perhaps what was expected, and both answers in their drawn order."""

    id: str
    prompt: str
    target: str | None
    first: str
    second: str


def label_page(pairs: Sequence[PairToLabel], *, queue: str, rubric: str, looks: Sequence[int], note: str = "") -> str:
    """The page; `queue` is what every label names, `rubric` what the person is asked to look at.

    `looks` are the numbers of pairs after which a verdict is made, `note` says how far it is.
    """
    templates = environment(csp_hash=formatting.csp_hash, finalize=None)
    rows = [
        {"id": one.id, "prompt": one.prompt, "target": one.target, "A": one.first, "B": one.second} for one in pairs
    ]
    data = formatting.data_block({"queue": queue, "looks": looks, "rows": rows})
    html = templates.get_template("labelling.html.j2").render(data=data, rubric=rubric, count=len(pairs), note=note)
    return encodable(html)
