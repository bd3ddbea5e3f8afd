"""One request to one model, shown as the model sees it: prompt, answer, and the score against a reference."""

import asyncio
import os

from slm_ray.command import run
from slm_ray.config import InferConfig
from slm_ray.corpus import render
from slm_ray.models import check_spec, open_model
from slm_ray.scoring import score
from slm_ray.trackfile import open_track
from slm_ray.types import Completion


async def ask(config: InferConfig) -> Completion:
    model = open_model(config.model, endpoint=config.endpoint, generation=config.generation, environment=os.environ)
    try:
        return await model.complete("infer", render.prompt_of(open_track(config.track), config.text))
    finally:
        await model.close()


def main(config: InferConfig) -> int:
    check_spec(config.model, os.environ)
    track = open_track(config.track)
    for message in render.prompt_of(track, config.text).messages:
        print(f"[{message.role}] {message.content}")
    answer = asyncio.run(ask(config))
    print(f"[{answer.served_by or config.model}] {answer.text if answer.text is not None else answer.failure}")
    if config.reference is not None:
        scored = score(track, "infer", answer.text, config.reference)
        print("score   " + ", ".join(f"{score.name} {score.value}" for score in scored.scores))
        print("issues  " + (", ".join(scored.issues) or "none"))
    return 1 if answer.failure else 0


if __name__ == "__main__":
    run(main, InferConfig, __doc__)
