"""A base that refuses system turns and writes today's date, behind the real endpoint: served tokens are trained tokens."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import httpx
import pytest
from serving_fixtures import ROOT, free_port

from slm_ray.config import Serving
from slm_ray.corpus.render import prompt_of
from slm_ray.corpus.tracks import track
from slm_ray.serving import deploy, shutdown, token_ids
from slm_ray.training import rows
from slm_ray.training.base_model import open_tokenizer
from slm_ray.training.parity import prompt_and_answer
from slm_ray.types import Example
from tests.bases import make_base

pytestmark = pytest.mark.heavy


def test_a_base_without_system_turns_answers_one_with_the_tokens_that_training_saw(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", family="mistral")
    template = base / "chat_template.jinja"
    template.write_text("{{ strftime_now('%d %b %Y') }} " + template.read_text(encoding="utf-8"), encoding="utf-8")
    # Mistral's own files beside Hugging Face's: vLLM would read those, and know no template, if it were let.
    for name in ("tokenizer.model.v3", "params.json"):
        (base / name).write_text("{}", encoding="utf-8")
    shutil.copy(base / "model.safetensors", base / "consolidated.safetensors")
    endpoint = deploy(
        Serving(
            config=str(ROOT / "serve_configs/cpu_tiny.yaml"), base=str(base), name="folds",
            adapters_dir=str(tmp_path / "adapters"), port=free_port(),
        ),
        environment={},
    )  # fmt: skip
    try:
        example = Example(id="1", prompt=prompt_of(track("structured"), "call Rome please"), target="{}")
        tokenizer = open_tokenizer(base)
        trained, _ = prompt_and_answer(rows.tokenised(tokenizer, rows.conversation(example)))
        assert token_ids(endpoint.url, "folds", example.prompt) == list(trained)
        text = tokenizer.decode(trained)
        assert text.startswith("26 Jul 2024")
        assert f"[INST] {track('structured').system}\n\ncall Rome please [/INST]" in text

        twice = [{"role": "user", "content": "one"}, {"role": "user", "content": "two"}]
        body = {"model": "folds", "messages": twice, "max_tokens": 1}
        reply = httpx.post(f"{endpoint.url}/v1/chat/completions", json=body, timeout=60, trust_env=False)
        assert reply.status_code == 400, reply.text
        assert "turns have to alternate" in json.dumps(reply.json())
    finally:
        shutdown()
