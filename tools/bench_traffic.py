"""What the traffic log costs: seconds of CPU per row for redaction and journal, for rolling to Parquet, and rows read per second.

Rows of about 4,300 characters (a question of 550 words, two answers of 60), random words, a fiftieth of them numbers. Writes to
a temporary folder. Example: python -m tools.bench_traffic
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from pathlib import Path

from slm_ray.traffic import ArmAnswer, TrafficLog, TrafficRow, read_traffic


def rows(count: int) -> list[TrafficRow]:
    """The same rows every time."""
    draw = random.Random(1)
    words = ["".join(draw.choices("abcdefghijklmnop", k=draw.randint(2, 9))) for _ in range(3000)]

    def text(length: int) -> str:
        return " ".join(
            draw.choice(words) if draw.random() > 0.02 else str(draw.randint(0, 99_999)) for _ in range(length)
        )

    return [
        TrafficRow(
            id=str(number), at=time.time(), route="bench", serial=1, state="shadow", arm="llm", served="llm",
            user=f"user-{number % 50}",
            request={"messages": [{"role": "system", "content": text(100)}, {"role": "user", "content": text(450)}]},
            answers=(
                ArmAnswer(arm="llm", model="m", text=text(60), status=200, latency_s=0.4),
                ArmAnswer(arm="slm", model="s", text=text(60), status=200, latency_s=0.1),
            ),
        )
        for number in range(count)
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=3000)
    made = rows(parser.parse_args().rows)
    with tempfile.TemporaryDirectory() as folder:
        log = TrafficLog(folder)
        waits, cpu_s = [], time.process_time()
        for row in made:
            began_s = time.perf_counter()
            log.append(row)
            waits.append(time.perf_counter() - began_s)
        log.flush(timeout_s=120)
        written_s = time.process_time() - cpu_s
        cpu_s = time.process_time()
        log.close()
        rolled_s = time.process_time() - cpu_s
        began_s = time.perf_counter()
        read = sum(1 for _ in read_traffic(folder))
        read_s = time.perf_counter() - began_s
        size = sum(path.stat().st_size for path in Path(folder).rglob("*.parquet"))
    waits.sort()
    print(
        f"append: median {waits[len(waits) // 2] * 1e6:.0f} us, 99th percentile {waits[len(waits) * 99 // 100] * 1e6:.0f} us"
    )
    print(
        f"CPU per row: {written_s / len(made) * 1e3:.2f} ms redacted and journalled, {rolled_s / len(made) * 1e3:.2f} ms rolled"
    )
    print(f"read: {read / read_s:,.0f} rows/s of {size / len(made):,.0f} bytes; {log.counts}")


if __name__ == "__main__":
    main()
