"""Training rows: measured whole, refused by file and line, never cut; and the order in which they are seen."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from slm_ray.config import TrainConfig
from slm_ray.errors import ConfigError, DataError, ModelError
from slm_ray.training import rows
from slm_ray.training.base_model import base_folder, open_tokenizer
from slm_ray.training.plan import check_report_to, plan

BASE = Path(__file__).parents[2] / "data" / "tiny_base"


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return open_tokenizer(BASE)


def write(path: Path, answers: list[str]) -> str:
    lines = [json.dumps({"prompt": f"Say {number}.", "completion": answer}) for number, answer in enumerate(answers)]
    path.write_text("\n\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


def test_lengths_are_of_the_whole_row_in_the_base_s_template(tmp_path: Path, tokenizer: Any) -> None:
    read = rows.read(write(tmp_path / "train.jsonl", ["one", "two words"]), "structured")
    found = rows.tokens(read, tokenizer, max_length=512)
    row = rows.conversation(read.examples[1])
    text = tokenizer.apply_chat_template(row["prompt"] + row["completion"], tokenize=False)
    tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert found.lengths[1] == len(tokens)
    assert found.columns["input_ids"][1].tolist() == tokens
    assert [[*column[1]] for column in found.columns.values()] == [*rows.tokenised(tokenizer, row).values()]
    assert text.endswith("two words<|eot_id|>")


def test_a_long_row_is_refused_by_line_with_the_length_that_would_do(tmp_path: Path, tokenizer: Any) -> None:
    path = write(tmp_path / "train.jsonl", ["short", "word " * 200, "short"])
    with pytest.raises(DataError, match=rf"{path}:3: \d+ tokens, more than max_length 128; raise max_length to \d+"):
        rows.tokens(rows.read(path, "structured"), tokenizer, max_length=128)


def test_a_template_that_changes_the_prompt_once_an_answer_follows_is_refused(tmp_path: Path) -> None:
    odd = open_tokenizer(BASE)
    odd.chat_template = (
        "{% for m in messages %}{{ m.content }}|{% endfor %}{% if add_generation_prompt %}think:{% endif %}"
    )
    with pytest.raises(ConfigError, match="chat template"):
        rows.tokens(rows.read(write(tmp_path / "train.jsonl", ["x"]), "structured"), odd, max_length=512)


def test_the_first_rows_keep_their_lines(tmp_path: Path) -> None:
    read = rows.read(write(tmp_path / "train.jsonl", ["a", "b", "c"]), "structured")
    path = tmp_path / "train.jsonl"
    assert read.places == (f"{path}:1", f"{path}:3", f"{path}:5")
    assert read.first(2).places == (f"{path}:1", f"{path}:3")
    assert read.first(None) == read


def test_a_base_that_is_nowhere_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match="no base model 'nobody/nothing'"):
        base_folder("nobody/nothing")


def test_a_base_without_chat_template_is_refused(tmp_path: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json", "config.json"):
        (tmp_path / name).write_bytes((BASE / name).read_bytes())
    with pytest.raises(ModelError, match="no chat template"):
        open_tokenizer(tmp_path)


def test_a_held_out_file_beside_the_training_file_that_asks_the_same_is_refused(tmp_path: Path) -> None:
    def write(name: Any, *prompts: Any) -> Any:
        rows = [{"prompt": prompt, "completion": "c"} for prompt in prompts]
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return str(tmp_path / name)

    train = rows.read(write("train.jsonl", "one", "two"), "chat")
    write("test.jsonl", "three")
    rows.refuse_leaks(train, "chat")
    write("validation.jsonl", "four", " TWO ")
    with pytest.raises(
        DataError, match=r"1 of 2 rows of .*validation\.jsonl are training rows of .*train\.jsonl .*split"
    ):
        rows.refuse_leaks(train, "chat")
    (tmp_path / "validation.jsonl").write_text("something else\n", encoding="utf-8")
    rows.refuse_leaks(train, "chat")


def test_rows_that_choose_the_checkpoint_are_part_of_the_run_and_share_no_question_with_the_training_rows(
    tmp_path: Path,
) -> None:
    asked = TrainConfig(
        track="structured", train=write(tmp_path / "train.jsonl", ["a", "b"]), base=str(BASE), run_dir=str(tmp_path),
        adapters_dir=str(tmp_path),
    )  # fmt: skip
    other = tmp_path / "chosen_by.jsonl"
    other.write_text(json.dumps({"prompt": "Say nothing.", "completion": "c"}) + "\n")
    chosen = asked.model_copy(update={"validation": str(other)})
    names = {
        plan(config).folder.name
        for config in (
            asked,
            chosen,
            chosen.model_copy(update={"checkpoint_steps": 9}),
            chosen.model_copy(update={"report_to": "tensorboard"}),
        )
    }
    assert len(names) == 3, "another schedule of evaluations is another run, another tracker is none"
    assert plan(asked.model_copy(update={"checkpoint_steps": 9})).folder == plan(asked).folder
    assert [example.target for example in plan(chosen).validation] == ["c"]
    with pytest.raises(DataError, match="split the rows again"):
        plan(asked.model_copy(update={"validation": asked.train}))
    with pytest.raises(ValueError, match=r"early_stopping needs rows to judge by: set validation"):
        TrainConfig(**{**asked.model_dump(), "early_stopping": 2})


def test_a_tracker_that_is_unknown_or_not_installed_is_refused() -> None:
    check_report_to("none")
    with pytest.raises(ConfigError, match="report_to 'tensorbord': did you mean 'tensorboard'"):
        check_report_to("tensorbord")
    with pytest.raises(ConfigError, match="report_to neptune: its package is not installed; pip install neptune"):
        check_report_to("neptune")


def test_the_quick_way_to_a_tokenizer_gives_the_same_ids_as_the_one_that_looks_for_its_class(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    quick, found = open_tokenizer(BASE), AutoTokenizer.from_pretrained(BASE, local_files_only=True)
    assert type(quick) is type(found)
    assert quick.init_kwargs.keys() == found.init_kwargs.keys()
    chat = [{"role": "user", "content": "Ünï 12 {json}\n\n"}]
    assert quick.apply_chat_template(chat) == found.apply_chat_template(chat)
