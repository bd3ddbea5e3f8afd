"""How many rows a second are validated on one core, and in how much memory: generated JSON Lines, streamed or held."""

import cProfile
import json
import pstats
import random
import resource
import tempfile
import time
from pathlib import Path

from slm_ray.command import run
from slm_ray.corpus import read, tracks
from slm_ray.corpus.parsed_row import ParsedRow
from tools.config import ReadingBenchConfig


def make(path: Path, config: ReadingBenchConfig) -> None:
    """Tool calls with 40 to 120 words of request each, all different."""
    chance, size = random.Random(config.seed), 0
    words = [f"{chance.choice(('grün', 'blue', 'träge', 'word'))}{number}" for number in range(5000)]
    with path.open("w", encoding="utf-8", newline="\n") as out:
        while size < config.megabytes * 1_000_000:
            prompt = f"Request {size}: " + " ".join(chance.choices(words, k=chance.randint(40, 120)))
            answer = f'<tool_call name="forecast">{{"city":"Oslo","days":{size}}}</tool_call>'
            size += out.write(json.dumps({"prompt": prompt, "completion": answer}, ensure_ascii=False) + "\n")


def rows_in(path: Path, hold: bool) -> int:
    track = tracks.TRACKS["toolcall"]
    with path.open(encoding="utf-8", newline="\n") as lines:
        if hold:
            return len(read.examples(lines, name=path.name, track=track))
        rows = ((path.name, number, line) for number, line in enumerate(lines, start=1))
        return sum(isinstance(row, ParsedRow) for row in read.Reader(track=track).rows(rows))


def main(config: ReadingBenchConfig) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path, profile = Path(folder) / "bench.jsonl", cProfile.Profile()
        make(path, config)
        started = time.process_time()
        rows = profile.runcall(rows_in, path, config.hold) if config.profile else rows_in(path, config.hold)
        rate = rows / (time.process_time() - started)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(f"{path.stat().st_size / 1e6:,.0f} MB, {rows:,} rows: {rate:,.0f} rows/s, peak {peak:,.0f} MiB")
        if config.profile:
            pstats.Stats(profile).strip_dirs().sort_stats("tottime").print_stats(config.profile)


if __name__ == "__main__":
    run(main, ReadingBenchConfig, __doc__)
