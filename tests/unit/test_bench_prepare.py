"""The benchmark of reading runs, counts every row that it made, and says so in one line."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("hold", ["true", "false"])
def test_it_measures_the_rows_that_it_made(hold: str, tmp_path: Path) -> None:
    settings = ("--set", "megabytes=1", "--set", f"hold={hold}")
    found = subprocess.run(
        [sys.executable, "-m", "tools.bench_prepare", *settings],
        capture_output=True, text=True, cwd=ROOT, env=os.environ | {"TMPDIR": str(tmp_path)}, timeout=120, check=False,
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    line = re.fullmatch(r"1 MB, ([\d,]+) rows: ([\d,]+) rows/s, peak ([\d,]+) MiB\n", found.stdout)
    assert line, found.stdout
    rows, rate, peak = (int(part.replace(",", "")) for part in line.groups())
    # A row has 40 to 120 words of about seven letters.
    assert 800 < rows < 2000
    assert rate > 100
    assert 10 < peak < 2000
    assert list(tmp_path.iterdir()) == []
