"""How far a training run is: one small JSON file that rank 0 replaces, a live line for the person who waits, and the loss curve.

The file is a copy for people; checkpoints are what a run continues from.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.text import Text

from slm_ray.storage import write_text

_CURVE = ("step", "loss", "learning_rate", "grad_norm")
_POLL_S = 0.5
_PLAIN_EVERY = 10  # polls between lines where there is no terminal
_AGAIN = "its group starts again from the last checkpoint, and waits where no node has room for it (see: ray status)"
_WAITS = (
    "no node has room for its group now: it waits for one (30 minutes at most where the cluster has become too small), and"
    " goes on there from the last checkpoint (see: ray status)"
)
_LONG_START_S, _SAID_EVERY_S = 60, 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One rank's card: how busy it is and how full, whoever uses it."""

    rank: int
    load_percent: int
    used_bytes: int
    total_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Where one run is. `eta_s` is seconds left at the present speed, `gpus` has one entry per rank that has a card."""

    step: int
    steps: int
    loss: float
    tokens_per_s: float
    eta_s: float
    gpus: tuple[Gpu, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Starting:
    """A run that has its turn and has not taken a step yet. `lost` is what became of its workers, where it had some.

    `waits` says that the cluster, idle, has no room for others.
    """

    lost: str = ""
    waits: bool = False


def start(path: Path, *, lost: str = "", waits: bool = False, keeper: Any = None) -> None:
    """Say that the run has its turn: its workers are asked for, once more where others were `lost`."""
    keep(path, json.dumps({"lost": lost, "waits": waits} if lost else {}), keeper)


def write(path: Path, progress: Progress, keeper: Any = None) -> None:
    """Replace the progress file."""
    keep(path, json.dumps(dataclasses.asdict(progress)), keeper)


def keep(path: Path, text: str, keeper: Any = None) -> Any:
    """Replace a file of a run's folder, by way of a `Keeper` where this node does not see it: then what Ray answers to that."""
    if keeper is not None:
        return keeper.write.remote(f"{path.parent.name}/{path.name}", text)
    write_text(path, text)
    return None


class Keeper:
    """Writes beside the driver what workers on other nodes tell of its runs; an actor on the driver's node.

    `folder` is the one that the runs' folders lie in.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def write(self, name: str, text: str) -> None:
        """Replace the file `RUN/NAME`."""
        write_text(self._folder / name, text)


def read(path: Path) -> Progress | Starting | None:
    """The latest progress; None when the run waits for its turn."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if "step" not in found:
            return Starting(**found)
        return Progress(**{**found, "gpus": tuple(Gpu(**gpu) for gpu in found["gpus"])})
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def curve(log_history: Sequence[Mapping[str, Any]]) -> list[dict[str, float]]:
    """The loss by step as logged, from the first step on in a resumed run too; what is not finite is left out."""
    return [
        {name: entry[name] for name in _CURVE if math.isfinite(entry.get(name, math.nan))}
        for entry in log_history
        if "loss" in entry
    ]


@contextlib.contextmanager
def shown(paths: Sequence[Path] | Callable[[], Sequence[Path]]) -> Iterator[None]:
    """Show the runs behind `paths` on stderr while the block runs: live on a terminal, else a line every 5 s.

    A function is asked for them again and again, where runs are still to be thought of.
    """
    done = threading.Event()
    watcher = threading.Thread(target=_watch, args=(paths if callable(paths) else lambda: paths, done), daemon=True)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()


def line(name: str, progress: Progress | Starting | None, waited_s: float = 0.0) -> str:
    """One run in one line; `waited_s` is how long it has been in this state."""
    if progress is None:
        return f"{name}: waiting for a slot (who holds them: ray status)"
    if isinstance(progress, Starting) and progress.lost:
        return f"{name}: a worker was lost ({progress.lost}); {_WAITS if progress.waits else _AGAIN}"
    if isinstance(progress, Starting):
        if waited_s <= _LONG_START_S:
            return f"{name}: starting workers"
        said_s = waited_s // _SAID_EVERY_S * _SAID_EVERY_S  # not another line for each second
        return f"{name}: starting workers for {said_s:.0f} s; if others hold the resources it waits for them (see: ray status)"
    cards = [f"{gpu.load_percent} % {gpu.used_bytes / 1e9:.1f}/{gpu.total_bytes / 1e9:.0f} GB" for gpu in progress.gpus]
    gpu = f", GPU {' | '.join(cards)}" if cards else ""
    return (
        f"{name}: step {progress.step}/{progress.steps}, loss {progress.loss:.3f}, "
        f"{progress.tokens_per_s:,.0f} tokens/s, {progress.eta_s:.0f} s left{gpu}"
    )


def news(lines: Sequence[str], said: set[str]) -> list[str]:
    """Those of the `lines` that were not in the last call's, and `said` brought up to date: a log repeats nothing."""
    fresh = [text for text in lines if text not in said]
    said.clear()
    said.update(lines)
    return fresh


def _watch(paths: Callable[[], Sequence[Path]], done: threading.Event) -> None:
    console = Console(stderr=True)
    started_s: dict[Path, float] = {}

    def lines() -> list[str]:
        now_s = time.monotonic()
        states = [(path, read(path)) for path in paths()]
        for path, state in states:
            if state is not None:
                started_s.setdefault(path, now_s)
        return [line(path.stem, state, now_s - started_s.get(path, now_s)) for path, state in states]

    if not console.is_terminal:
        polls, said = 0, set[str]()
        while not done.wait(_POLL_S):
            polls += 1
            if polls % _PLAIN_EVERY == 0:
                for text in news(lines(), said):
                    print(text, file=sys.stderr, flush=True)
        return
    with Live(console=console, transient=True, auto_refresh=False) as live:
        while not done.wait(_POLL_S):
            live.update(Text("\n".join(lines())), refresh=True)
