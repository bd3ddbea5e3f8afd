"""Files of every kind of line ending go in as they are."""

import json
from pathlib import Path

import pytest

from slm_ray.config import PrepareConfig
from slm_ray.prepare import examples_in, prepare


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_unicode_line_separators_inside_a_row_do_not_end_it(tmp_path: Path, end: str, mark: str) -> None:
    odd = "one\u2028two\u0085three\x0cfour"
    rows = [{"prompt": f"{odd} {number}", "completion": f'{{"query": "{number}"}}'} for number in range(6)]
    source = tmp_path / "rows.jsonl"
    source.write_bytes((mark + "".join(json.dumps(row, ensure_ascii=False) + end for row in rows)).encode())
    prepared = prepare(
        PrepareConfig(source=str(source), track="structured", out_dir=str(tmp_path / "out"), validation=1, test=1)
    )
    assert dict(prepared.rows) == {"train": 4, "validation": 1, "test": 1}
    found = [
        example.prompt.messages[-1].content
        for split in prepared.rows
        for example in examples_in(prepared.path(split), "structured")
    ]
    assert sorted(found) == sorted(row["prompt"] for row in rows)
