"""One request to one model, shown as the model sees it: prompt, tokens if asked, answer, and the score against a target."""

import os
from pathlib import Path

from slm_ray.command import run
from slm_ray.config import InferConfig
from slm_ray.evaluation.infer import prepare
from slm_ray.scoring.parsed import parsed
from slm_ray.types import Prompt

TOKENIZER = "data/tiny_base"


def token_ids(folder: str, prompt: Prompt) -> list[int]:
    from slm_ray.training.base_model import (
        base_folder,
        open_tokenizer,
    )  # transformers takes seconds to import

    tokenizer = open_tokenizer(base_folder(folder))
    text = tokenizer.apply_chat_template(prompt.as_dicts(), add_generation_prompt=True, tokenize=False)
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def main(config: InferConfig) -> int:
    inference = prepare(config, os.environ)
    for message in inference.prompt.messages:
        print(f"[{message.role}] {message.content}")
    if config.show_tokens:
        ids = token_ids(TOKENIZER, inference.prompt)
        print(f"tokens  {len(ids)} by {Path(TOKENIZER).name}: {' '.join(map(str, ids))}")
    answer = inference.ask(config, os.environ)
    print(f"[{answer.served_by or config.model}] {answer.text if answer.text is not None else answer.failure}")
    print(f"parsed  {parsed(inference.track, answer.text)}")
    if (scored := inference.score(answer)) is not None:
        print("score   " + ", ".join(f"{score.name} {score.value}" for score in scored.scores))
        print("issues  " + (", ".join(scored.issues) or "none"))
    return 1 if answer.failure else 0


if __name__ == "__main__":
    run(main, InferConfig, __doc__)
