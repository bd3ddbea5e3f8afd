"""How many answers a second each scorer judges on one core: medians of interleaved rounds over generated rows."""

import random
import statistics
import time

from slm_ray.command import run
from slm_ray.corpus.tracks import Track
from slm_ray.scoring import SCORERS, score, summarise
from tools.config import ScoringBenchConfig

_LABELS = tuple(f"intent_{number}" for number in range(77))
_SCHEMA = {"type": "object", "required": ["query"], "properties": {"arguments": {"type": "object"}}}


def answer(name: str, chance: random.Random, words: int) -> str:
    """An answer such as the scorer meets; two of them differ, and agree in part."""
    value = chance.randrange(4)
    arguments = f'{{"city": "Oslo", "days": {value}, "units": ["metric", "wind"]}}'
    forms = {
        "structured": f'{{"arguments": {arguments}, "query": "weather in Oslo", "tool_name": "forecast"}}',
        "toolcall": f'<tool_call name="forecast">{arguments}</tool_call>',
        "hermes": f'<tool_call>{{"name": "forecast", "arguments": {arguments}}}</tool_call>',
        "gsm8k": "She has 16 - 3 - 4 = 9 eggs left. " * 3 + f"#### {value + 1200}",
        "classify": _LABELS[value],
        "grade": f"It holds.\nScore: {value + 1}",
        "preference": f"It is shorter.\nVerdict: {'AB'[value % 2]}",
    }
    text = " ".join(f"word{chance.randrange(500)}" for _ in range(chance.randint(words // 2, words * 3 // 2)))
    return forms.get(name, forms["structured"] if name == "schema" else text)


def main(config: ScoringBenchConfig) -> None:
    rates: dict[str, list[float]] = {name: [] for name in config.scorers or SCORERS}
    for turn in range(config.rounds + 1):
        for name in rates:
            track = Track(
                name=name, system="", scorers=(name,), primary="", core=(), labels=_LABELS, answer_schema=_SCHEMA
            )
            chance = random.Random(config.seed + turn)
            pairs = [[answer(name, chance, config.words) for _ in range(2)] for _ in range(config.rows)]
            started = time.process_time()
            summarise(track, [score(track, str(place), *pair) for place, pair in enumerate(pairs)])
            if turn:  # the first round only warms up
                rates[name].append(config.rows / (time.process_time() - started))
    print(f"{'scorer':12}{'rows/s':>10}{'slowest':>10}{'fastest':>10}   {config.rounds} rounds of {config.rows} rows")
    for name, found in rates.items():
        print(f"{name:12}{statistics.median(found):>10,.0f}{min(found):>10,.0f}{max(found):>10,.0f}")


if __name__ == "__main__":
    run(main, ScoringBenchConfig, __doc__)
