"""Tracks of the house, tracks from a file, the one that lies beside the examples, and data sets that they read."""

import json
import re
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from slm_ray.corpus.leakage import question_hashes
from slm_ray.corpus.render import prompt_of
from slm_ray.corpus.tracks import TRACKS, Track, defined, definition
from slm_ray.errors import ConfigError, DataError
from slm_ray.scoring import metrics, score
from slm_ray.tasks import open_dataset, open_track, write_track

OWN = """\
name: beer
system: You name the style of a beer.
scorers: [classify]
primary: accuracy
core: [accuracy, macro_f1]
template: "Review {review} on {\\"a\\": 1}"
target: "{style}"
labels: [ale, stout]
prefix: Answer with the style only.
"""


def file(folder: Path, text: str, name: str = "beer.yaml") -> str:
    (folder / name).write_text(text, encoding="utf-8")
    return str(folder / name)


@pytest.mark.parametrize("name", TRACKS)
def test_every_track_of_the_house_has_scorers_that_know_its_metrics(name: str) -> None:
    found = open_track(name)
    assert {found.primary, *found.core} <= set(metrics(found))
    assert defined(definition(found)) == found


def test_a_track_of_ones_own_is_read_and_comes_back_from_beside_the_examples(tmp_path: Path) -> None:
    own = open_track(file(tmp_path, OWN))
    assert (own.name, own.labels, own.target) == ("beer", ("ale", "stout"), "{style}")
    write_track(tmp_path / "out", own)
    assert open_track("beer", beside=tmp_path / "out" / "train.jsonl") == own
    assert open_track(str(tmp_path / "out" / "track.yaml")) == own
    assert open_track("chat", beside=tmp_path / "out" / "train.jsonl") == TRACKS["chat"]


def test_extending_a_track_keeps_what_is_not_said(tmp_path: Path) -> None:
    found = open_track(file(tmp_path, "name: strict\nextends: structured\nprefix: Raw JSON only.\nstrip: [fences]\n"))
    assert (found.core, found.system) == (TRACKS["structured"].core, TRACKS["structured"].system)
    assert prompt_of(found, "Ask").messages[-1].content == "Raw JSON only.\n\nAsk"
    assert score(found, "1", '```json\n{"a": 1}\n```', '{"a": 1}').value("exact_match") == 1.0


def test_without_core_the_primary_metric_is_the_core(tmp_path: Path) -> None:
    text = "name: x\nsystem: s\nscorers: [text]\nprimary: rouge_1\n"
    assert open_track(file(tmp_path, text)).core == ("rouge_1",)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (OWN + "sytem: x\n", "unknown key 'sytem': did you mean 'system'"),
        (OWN.replace("system: ", "extends: chta # "), "'extends' = 'chta': did you mean 'chat'"),
        (
            OWN.replace("primary: accuracy", "primary: acuracy"),
            "'primary' = 'acuracy' is no row metric of classify: did you",
        ),
        (OWN.replace("macro_f1", "rouge_l"), "'core' = 'rouge_l' is no metric"),
        (OWN.replace("[classify]", "[clasify]"), "track beer: unknown scorer 'clasify': did you mean"),
        (OWN.replace("system: ", "prompt: "), "'system' is not set; add it, or say which track it 'extends'"),
        (OWN.replace("name: beer", "name: ../beer"), "'name' = '../beer'"),
        (OWN.replace("[ale, stout]", "[ale, 3]"), "'labels.1' = 3"),
        (OWN.replace("[ale, stout]", "[ale, ale]"), "labels 'ale' and 'ale' are the same"),
        (OWN.replace("target: ", "# "), "'target' is not set; a template needs both"),
        (OWN + "strip: [markdown]\n", "'strip.0' = 'markdown'"),
        (OWN + "answer_schema: {type: object}\n", "'answer_schema' is set, but no scorer reads it; add 'schema'"),
        (OWN.replace("[classify]", "[classify, schema]") + "answer_schema: {type: 3}\n", "answer_schema"),
        ("- a\n", "a track is a mapping of keys to values, not list"),
        ("name: [\n", ":2: not YAML"),
        ("", "is empty"),
    ],
)
def test_a_bad_track_file_is_one_line_with_file_key_and_fix(tmp_path: Path, text: str, says: str) -> None:
    path = file(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        open_track(path)
    assert path in str(caught.value) and says in str(caught.value) and "\n" not in str(caught.value)


def test_unknown_names_and_absent_files_say_what_there_is(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"unknown track 'structred': did you mean 'structured'.* or the path of a track"
    ):
        open_track("structred")
    with pytest.raises(ConfigError, match=re.escape(f"cannot read the track {tmp_path / 'no.yaml'}")):
        open_track(str(tmp_path / "no.yaml"))


TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x7f\x85\ufeff"), min_size=1, max_size=40)


@given(system=TEXTS, prefix=TEXTS, labels=st.lists(st.sampled_from(["no", "süß", "a: b", "3", "~"]), unique=True))
def test_any_wording_survives_the_file(
    tmp_path_factory: pytest.TempPathFactory, system: str, prefix: str, labels: list[str]
) -> None:
    own = Track(
        name="own", system=system, scorers=("classify",), primary="accuracy", core=("accuracy",), prefix=prefix,
        labels=tuple(labels),
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("own")
    write_track(folder, own)
    assert open_track("own", beside=folder / "x.jsonl") == own
    assert yaml.safe_load((folder / "track.yaml").read_text("utf-8"))["system"] == system


def test_what_decides_is_a_metric_of_rows(tmp_path: Path) -> None:
    for key, text in (
        ("primary", OWN.replace("primary: accuracy", "primary: macro_f1")),
        ("guardrails", OWN + "guardrails: [macro_f1]\n"),
    ):
        with pytest.raises(ConfigError, match=f"{key!r} = 'macro_f1' is no row metric of classify: .*accuracy"):
            open_track(file(tmp_path, text))
    assert open_track(file(tmp_path, OWN + "guardrails: [in_labels]\nrubric: Is it a beer?\n")).guardrails == (
        "in_labels",
    )


@pytest.mark.parametrize("name", ["toolcall", "hermes"])
def test_a_call_of_the_wrong_tool_does_not_pass_by_its_arguments(name: str) -> None:
    assert open_track(name).guardrails == ("name_match",)


def test_a_dataset_is_examples_with_their_track_and_what_they_ask(tmp_path: Path) -> None:
    rows = [{"id": f"r{n}", "prompt": f"How {n}?", "completion": "x"} for n in range(3)]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    dataset = open_dataset(path, "chat")
    assert (dataset.path, dataset.track, [row.id for row in dataset.examples]) == (
        str(path),
        TRACKS["chat"],
        ["r0", "r1", "r2"],
    )
    assert dataset.question_hashes == question_hashes(dataset.examples) and len(dataset.question_hashes) == 3
    path.write_text("".join(json.dumps(row) + "\n" for row in rows[::-1]), encoding="utf-8")
    assert open_dataset(path, "chat").digest == dataset.digest
    assert dataset.example("r1") == dataset.examples[1]
    with pytest.raises(DataError, match=r"rows\.jsonl: no row has the id 'r_1'; did you mean 'r1'"):
        dataset.example("r_1")


def test_the_track_beside_the_examples_says_what_they_mean(tmp_path: Path) -> None:
    own = open_track(file(tmp_path, OWN))
    write_track(tmp_path / "out", own)
    path = tmp_path / "out" / "rows.jsonl"
    path.write_text(json.dumps({"prompt": "dark", "completion": "stout"}) + "\n", encoding="utf-8")
    dataset = open_dataset(path, "beer")
    assert (dataset.track, dataset.examples[0].tags["label"]) == (own, "stout")
    path.write_text(json.dumps({"prompt": "dark", "completion": "wine"}) + "\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"rows\.jsonl:1: 'wine' is no label of track beer"):
        open_dataset(path, "beer")
