"""An actor's journal: what is written is there whoever dies, comes into the ledger once, and a damaged one is told."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from slm_ray.errors import DataError, ResourceError
from slm_ray.ledger import Answer, Entry, Journal, Ledger, Planned, bring_in, given_up, parts
from slm_ray.types import Completion, Failure, Usage


def answer(number: int, text: str | None = "ja\u2028wohl") -> Answer:
    failure = None if text is not None else Failure(kind="error", reason="HTTP 500", status=500)
    usage = Usage(prompt_tokens=3, completion_tokens=1, cached_tokens=2)
    completion = Completion(text=text, failure=failure, usage=usage, latency_s=0.25, attempts=2, possibly_billed=1)
    return Answer(key=f"k{number}", example_id=f"r{number}", completion=completion, answered_ns=1000 + number)


def planned(ledger: Ledger, rows: int = 2000) -> None:
    ledger.plan("p", (Planned(key=f"k{n}", spec="served:m", example_id=f"r{n}", repeat=n % 2) for n in range(rows)))
    ledger.begin("p", {})


def test_what_is_written_is_read_in_its_order_and_from_any_part_on(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    journal = Journal(path)
    first = journal.write(["k0", "k1"], [])
    second = journal.write(["k2"], [answer(0), answer(1, None)])
    [whole] = parts(path, 0)
    assert (whole.begun, whole.answers, whole.upto) == (["k0", "k1", "k2"], [answer(0), answer(1, None)], second)
    [rest] = parts(path, first)
    assert (rest.begun, rest.answers) == (["k2"], [answer(0), answer(1, None)])
    assert not list(parts(path, second))
    journal.write([f"k{n}" for n in range(1200)], [])
    assert [len(part.begun) for part in parts(path, second)] == [500, 500, 200]


def test_a_line_cut_short_was_never_there_and_a_damaged_one_is_told(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    journal = Journal(path)
    upto = journal.write(["k0"], [answer(0)])
    journal.close()
    with path.open("ab") as file:
        file.write(b'{"key": "k1", "exam')
    [part] = parts(path, 0)
    assert (part.begun, part.upto) == (["k0"], upto)
    with path.open("ab") as file:
        file.write(b'\n"k2"\n')
    with pytest.raises(DataError, match=rf"a\.jsonl \(byte {upto}\): damaged .* move the file away"):
        list(parts(path, 0))


def test_a_journal_comes_into_the_ledger_once(tmp_path: Path) -> None:
    folder = tmp_path / "journals"
    folder.mkdir()
    journal = Journal(folder / "a.jsonl")
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        planned(ledger)
        heard = journal.write(["k0", "k1"], [answer(0)])
        entry = Entry(
            key="k0", spec="served:m", example_id="r0", completion=answer(0).completion, answered_ns=1000, repeat=0
        )
        ledger.put_all([entry], starts=["k0", "k1"], journals={"a.jsonl": heard})
        journal.write([f"k{n}" for n in range(2, 700)], [answer(1, None), *map(answer, range(2, 640))])
        journal.close()
        ledger.take_in(folder / "a.jsonl")  # killed between the ledger and the removal of the file
        bring_in(folder, ledger)
        assert not folder.exists()
        _, entries = ledger.since(0)
        assert [(one.key, one.answered_ns) for one in entries] == [(f"k{n}", 1000 + n) for n in range(640)]
        assert entries[639] == Entry(
            key="k639",
            spec="served:m",
            example_id="r639",
            completion=answer(639).completion,
            answered_ns=1639,
            repeat=1,
        )
        assert ledger.unanswered("p") == {f"k{n}": 1 for n in range(640, 700)}
        assert ledger.starts("k0") == 1
        run = ledger.last_run()
        assert run is not None
        assert run.plan == "p"
        bring_in(folder, ledger)


def test_an_answer_of_no_plan_is_told(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "a.jsonl")
    journal.write([], [answer(7)])
    with (
        Ledger(tmp_path / "ledger.sqlite") as ledger,
        pytest.raises(DataError, match=r"a\.jsonl holds an answer .*k7\) that no run .* remove both to begin anew"),
    ):
        ledger.take_in(tmp_path / "a.jsonl")


WRITER = """
import sys, time
from slm_ray.ledger import Journal
journal = Journal(sys.argv[1])
journal.write(["k0"], [])
print("written", flush=True)
time.sleep(60)
"""


def test_a_journal_is_its_actors_until_that_is_gone(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    with subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "written\n"
        with (
            pytest.raises(ResourceError, match=r"still being written .* run the same command again"),
            given_up(path, wait_s=0.1),
        ):
            pass
        with pytest.raises(ResourceError, match="File exists"):
            Journal(path)
        writer.send_signal(signal.SIGKILL)
        with given_up(path, wait_s=10):
            assert [part.begun for part in parts(path, 0)] == [["k0"]]


FULL = """
import json, resource, signal, sys
from slm_ray.errors import ResourceError
from slm_ray.ledger import Journal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
journal = Journal(sys.argv[1])
upto = journal.write(["k" * 50], [])
try:
    journal.write(["k" * 30, "x" * 30], [])
except ResourceError as error:
    print(error)
print(upto, journal.write(["end"], []))
"""


def test_a_full_disk_leaves_no_half_a_line(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    done = subprocess.run([sys.executable, "-c", FULL, str(path)], capture_output=True, text=True, check=True)
    said, places = done.stdout.strip().splitlines()
    assert said == f"{path}: cannot be written (File too large); nothing more is asked; free the disk or make the folder writable, then the same command continues"  # fmt: skip
    assert places == "53 59"
    assert [json.loads(line) for line in path.read_text().splitlines()] == ["k" * 50, "end"]
