"""The page of file formats says what is so: its track prepares rows, its table of bad rows is the printed one, no name is missing."""

import re
from pathlib import Path

import pytest

from slm_ray.config import Curation, PrepareConfig
from slm_ray.corpus.formats import FORMATS
from slm_ray.corpus.tracks import TRACKS
from slm_ray.errors import DataError
from slm_ray.prepare import prepare
from slm_ray.tasks.track_file import TrackFile

PAGE = (Path(__file__).parents[2] / "docs/reference/formats.md").read_text(encoding="utf-8")


def block(start: str) -> str:
    """The fenced block of the page that begins with `start`."""
    (found,) = re.findall(rf"```\w*\n({re.escape(start)}.*?)```", PAGE, re.DOTALL)
    return str(found)


def test_the_track_of_the_readme_prepares_a_table_of_its_columns(tmp_path: Path) -> None:
    (tmp_path / "tickets.yaml").write_text(block("# tickets.yaml"), encoding="utf-8")
    lines = [f"bill {number} is wrong,phone,{('billing', 'network', 'other')[number % 3]}" for number in range(9)]
    (tmp_path / "tickets.csv").write_text("\n".join(["ticket,product,team", *lines]), encoding="utf-8")
    config = PrepareConfig(
        track=str(tmp_path / "tickets.yaml"), source=str(tmp_path / "tickets.csv"), out_dir=str(tmp_path / "out"),
        validation_rows=2, test_rows=2,
    )  # fmt: skip
    prepared = prepare(config)
    (tmp_path / "tickets.yaml").unlink()
    example = prepared.dataset("train").examples[0]
    system, user = example.prompt.messages
    assert system.content.endswith("\nLabels: billing, network, other")
    assert re.fullmatch(
        r"Write the team in lower case, without a full stop\.\n\nProduct: phone\nTicket: bill \d is wrong", user.content
    )
    assert example.target in ("billing", "network", "other")


def test_the_table_of_bad_rows_is_the_one_that_is_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    lines = ['{"prompt": "a", "completion": "b"}', "nope", '{"prompt": null, "completion": "c"}', '{"prompt": "d"}']
    Path("my.jsonl").write_text("\n".join(lines), encoding="utf-8")
    said: list[str] = []
    with pytest.raises(DataError):
        prepare(PrepareConfig(track="chat", source="my.jsonl", out_dir="runs/prepared/mine"), log=said.append)
    assert "\n".join(said) + "\n" == block("3 of 4 rows are bad")
    assert len(Path("runs/prepared/mine/bad_rows.jsonl").read_text(encoding="utf-8").splitlines()) == 3


def test_every_format_track_and_key_of_a_track_is_named() -> None:
    assert set(section("## Rows")) == FORMATS.keys()
    assert set(re.findall(r"`(\w+)`", PAGE.split("## Tracks")[1].split("```")[0])) >= TRACKS.keys()
    assert set(section("## Tracks")) == TrackFile.model_fields.keys()


def section(title: str) -> list[str]:
    """The first cells of the table under a heading, without their outer marks."""
    text = PAGE.partition(f"\n{title}\n")[2].partition("\n## ")[0]
    return [cell.strip().strip("`") for cell in re.findall(r"^\| (`[^|]*) \|", text, re.MULTILINE)]


def test_every_kind_of_curation_is_named() -> None:
    assert set(re.findall(r"`(\w+)`", PAGE.split("## Curation")[1].split("\n## ")[0])) >= set(Curation.model_fields)
