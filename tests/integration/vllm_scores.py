"""Run as a program: vLLM's log-probabilities of the first answered token, of base and adapter rows in one batch.

A process of its own, since vLLM binds the threads of the process that it lives in. Arguments: base, adapter, rank. Reads
prompts as token ids from standard input; the last line it writes is JSON: for each prompt {token: log-probability} of the
adapter, then the same of the base.
"""

from __future__ import annotations

import json
import os
import sys


def main(base: str, adapter: str, rank: int) -> None:
    os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
    from vllm import LLM, SamplingParams
    from vllm.lora.request import LoRARequest

    engine = LLM(
        model=base, enable_lora=True, max_loras=2, max_lora_rank=rank, dtype="bfloat16", enforce_eager=True,
        max_model_len=128, disable_log_stats=True,
    )  # fmt: skip
    prompts = json.loads(sys.stdin.read())
    answers = engine.generate(
        [{"prompt_token_ids": ids} for ids in prompts for _ in range(2)],
        SamplingParams(temperature=0, max_tokens=1, logprobs=20),
        lora_request=[LoRARequest("a", 1, adapter), None] * len(prompts), use_tqdm=False,
    )  # fmt: skip
    scores = [{token: one.logprob for token, one in answer.outputs[0].logprobs[0].items()} for answer in answers]
    print(json.dumps(scores[0::2] + scores[1::2]))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
