"""What an engine takes of a GPU: the published sizes, the serve files at 24 GB, and what does not fit."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slm_ray import adapters
from slm_ray.errors import ConfigError, ResourceError
from slm_ray.serving.memory import CARD_24_GB, estimate, parameters, require_room
from slm_ray.serving.settings import read_serve_file

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "serve_configs").glob("rtx3090_*.yaml"))
# config.json of the published models, as far as it states their size; how many numbers each has by its model card.
LLAMA = {
    "hidden_size": 4096, "num_hidden_layers": 32, "intermediate_size": 14336, "num_attention_heads": 32,
    "num_key_value_heads": 8, "vocab_size": 128256, "max_position_embeddings": 131072,
}  # fmt: skip
BASES: dict[str, tuple[dict[str, Any], int]] = {
    "rtx3090_llama31_8b": (LLAMA, 8_030_261_248),
    "rtx3090_mistral_7b": (LLAMA | {"vocab_size": 32768, "max_position_embeddings": 32768}, 7_248_023_552),
    "rtx3090_llama32_3b": (
        LLAMA | {"hidden_size": 3072, "num_hidden_layers": 28, "intermediate_size": 8192, "num_attention_heads": 24,
                 "head_dim": 128, "tie_word_embeddings": True},
        3_212_749_824,
    ),
    "rtx3090_phi4_mini": (
        LLAMA | {"hidden_size": 3072, "intermediate_size": 8192, "num_attention_heads": 24, "vocab_size": 200064,
                 "tie_word_embeddings": True},
        3_836_021_760,
    ),
}  # fmt: skip


def engine(path: Path) -> dict[str, Any]:
    return dict(read_serve_file(path)["llm_configs"][0]["engine_kwargs"])


@pytest.mark.parametrize("name", BASES)
def test_a_published_base_has_the_size_that_its_card_says(name: str) -> None:
    config, size = BASES[name]
    assert parameters(config) == size


def test_the_tiny_base_has_the_size_of_its_files() -> None:
    base = ROOT / "data/tiny_base"
    sizes = 0
    for name, shape in adapters.base_shapes(base).items():
        product = 1
        for side in shape:
            product *= side
        sizes += product if name != "lm_head.weight" else 0
    assert parameters(json.loads((base / "config.json").read_text())) == sizes


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_serve_file_states_its_memory_as_it_is_computed_and_fits_its_card(path: Path) -> None:
    found = require_room(BASES[path.stem][0], engine(path), card=CARD_24_GB)
    assert f"# Memory: {found}\n" in path.read_text(encoding="utf-8"), f"write there: # Memory: {found}"
    assert found.tokens > 2 * found.longest, "two long requests at once are the least that is worth a card"


def test_the_page_states_the_same_memory_as_the_files() -> None:
    page = (ROOT / "docs/how-to/serving.md").read_text(encoding="utf-8")
    for path in FILES:
        found = require_room(BASES[path.stem][0], engine(path), card=CARD_24_GB)
        figures = [part / 1e9 for part in (found.weights, found.adapters, found.work, found.cache)]
        (row,) = [line for line in page.splitlines() if line.startswith(f"| `{path.name}`")]
        stated = [float(figure) for figure in re.findall(r"\d+\.\d(?= |,)", row.rpartition("|")[0].rpartition("| ")[2])]
        assert stated == [round(figure, 1) for figure in figures] and f"({found.tokens:,} tokens)" in row, row


def test_there_is_a_file_for_each_base_and_none_without() -> None:
    assert {path.stem for path in FILES} == set(BASES)


def test_what_does_not_fit_is_refused_with_what_would(tmp_path: Path) -> None:
    config, settings = LLAMA, engine(ROOT / "serve_configs/rtx3090_llama31_8b.yaml")
    with pytest.raises(ResourceError, match=r"at most 2\d,\d{3}, fewer max_loras") as caught:
        require_room(config, settings | {"max_model_len": 65536}, card=CARD_24_GB)
    advised = int(str(caught.value).split("at most ")[1].split(", ")[0].replace(",", ""))
    assert require_room(config, settings | {"max_model_len": advised}, card=CARD_24_GB).fits
    with pytest.raises(ResourceError, match="tensor_parallel_size") as caught:
        require_room(config, settings, card=16e9)
    assert "max_model_len of at most" not in str(caught.value), "no length helps where the weights do not fit"
    assert require_room(config, settings | {"tensor_parallel_size": 2}, card=16e9).fits


@given(slots=st.integers(1, 16), rank=st.sampled_from([8, 16, 32, 64, 128]), length=st.integers(256, 131072))
def test_more_slots_and_ranks_leave_less_for_the_cache(slots: int, rank: int, length: int) -> None:
    fewer = estimate(LLAMA, {"enable_lora": True, "max_loras": slots, "max_lora_rank": rank}, card=80e9)
    more = estimate(LLAMA, {"enable_lora": True, "max_loras": slots + 1, "max_lora_rank": rank}, card=80e9)
    assert more.adapters > fewer.adapters and more.tokens < fewer.tokens
    limited = estimate(LLAMA, {"max_model_len": length, "kv_cache_memory_bytes": 1 << 30}, card=80e9)
    assert limited.fits == (limited.tokens >= length) and limited.tokens == (1 << 30) // 131072


@pytest.mark.parametrize(
    ("config", "settings"), [({}, {}), (LLAMA, {"dtype": "int3"}), ({**LLAMA, "hidden_size": "x"}, {})]
)
def test_what_states_no_size_is_an_error_in_words(config: dict[str, Any], settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        estimate(config, settings, card=CARD_24_GB)
