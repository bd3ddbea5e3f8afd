"""What a long run tells: one line per step where people look, and everything in a file.

While a `StepLog` is open, all that this process prints goes to its file. The latest lines of it are shown as progress:
beneath the steps, rewritten in place, on a terminal; elsewhere as one line every 30 s at most. Warnings are shown too.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.spinner import Spinner
from rich.text import Text

from slm_ray.command import PROGRESS_EVERY, PROGRESS_MARK
from slm_ray.errors import ResourceError

_REFRESHES_PER_S = 4.0
_LINE_EVERY_S = 30.0
_TOGETHER_S = 0.5  # lines that come within this time say one thing
_SHOWN_LINES, _SHOWN_CHARACTERS = 6, 300


class StepLog:
    """A context manager: opens the file, says where it is, and gives the terminal back however the run ends."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.timings_s: dict[str, float] = {}
        self._console = Console(file=sys.stdout)  # what it is now: what is printed is redirected later
        every_s = os.environ.get(PROGRESS_EVERY, "")
        self._every_s = float(every_s) if every_s.replace(".", "", 1).isdigit() else _LINE_EVERY_S
        self._ended = threading.Event()
        self._closing = contextlib.ExitStack()
        self._step, self._started_s, self._outcome = "", 0.0, ""

    def __enter__(self) -> StepLog:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            file = self._closing.enter_context(self.path.open("a", encoding="utf-8", errors="replace"))
        except OSError as error:
            raise ResourceError(f"cannot write {self.path}: {error.strerror}; pick a folder you may write to") from None
        self._sink = _Sink(file, warn=self._show)
        self._sink.write(f"--- {datetime.now().astimezone().isoformat(timespec='seconds')}\n")
        self.note(f"the whole log: {self.path}")
        if self._console.is_terminal:
            live = Live(
                get_renderable=self._table, console=self._console, refresh_per_second=_REFRESHES_PER_S, transient=True,
                redirect_stdout=False, redirect_stderr=False,
            )  # fmt: skip
            self._closing.enter_context(live)
        else:
            ticker = threading.Thread(target=self._print_progress, name="progress", daemon=True)
            ticker.start()
            self._closing.callback(ticker.join)
            self._closing.callback(self._ended.set)
        self._closing.enter_context(contextlib.redirect_stdout(self._sink))
        self._closing.enter_context(contextlib.redirect_stderr(self._sink))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self._sink.write("".join(traceback.format_exception(error)))
        self._closing.close()

    @contextlib.contextmanager
    def step(self, name: str) -> Iterator[None]:
        """One step: a line when it is over, with its seconds in this run and its outcome."""
        self._step, self._started_s, self._outcome = name, time.monotonic(), ""
        self._sink.write(f"=== {name}\n")
        self._sink.forget()
        try:
            yield
        except BaseException:
            self._outcome = "stopped"
            raise
        finally:
            took_s = time.monotonic() - self._started_s
            self.timings_s[name] = round(took_s, 1)
            self._step = ""
            self.note(f"{name} ({took_s:.1f} s)" + (f": {self._outcome}" if self._outcome else ""))

    def outcome(self, text: str) -> None:
        """What the step's line says at its end, a few words each time."""
        self._outcome += f"; {text}" if self._outcome else text

    def say(self, text: str) -> None:
        """Text for the file alone."""
        self._sink.keep(f"{text}\n")

    def note(self, text: str) -> None:
        """One line for both: `[stand-in]` is no markup, and nothing is cut."""
        self._show(text)
        self._sink.keep(f"{text}\n")

    def _show(self, text: str) -> None:
        self._console.print(Text(text), soft_wrap=True)
        self._console.file.flush()

    def _table(self) -> Group:
        if not self._step:
            return Group()
        running = Text(f"{self._step} ({time.monotonic() - self._started_s:.0f} s)")
        lines = (Text(f"  {line}", style="dim", no_wrap=True, overflow="ellipsis") for line in self._sink.latest())
        return Group(Spinner("dots", text=running), *lines)

    def _print_progress(self) -> None:
        while not self._ended.wait(self._every_s):
            step, latest = self._step, "; ".join(self._sink.latest())[:_SHOWN_CHARACTERS]
            if not step:
                continue
            self._show(f"{PROGRESS_MARK}{step} ({time.monotonic() - self._started_s:.0f} s): {latest or 'working'}")


class _Sink(io.TextIOBase):
    """The log file, and the latest lines that were printed to it. Written from several threads."""

    def __init__(self, file: TextIO, *, warn: Callable[[str], None]) -> None:
        self._file = file
        self._warn = warn
        self._writing = threading.RLock()
        self._open_line = ""
        self._latest: list[str] = []
        self._at_s = 0.0

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        with self._writing:
            self.keep(text)
            *lines, self._open_line = f"{self._open_line}{text}".split("\n")
            now_s = time.monotonic()
            for line in filter(str.strip, lines):
                if line.startswith("warning: "):
                    self._warn(line)
                    continue
                fresh = now_s - self._at_s > _TOGETHER_S
                self._latest = [*([] if fresh else self._latest), line.strip()][-_SHOWN_LINES:]
                self._at_s = now_s
        return len(text)

    def keep(self, text: str) -> None:
        """Write what is no progress."""
        with self._writing:
            self._file.write(text)
            self._file.flush()

    def latest(self) -> list[str]:
        """The lines that were printed together last."""
        with self._writing:
            return list(self._latest)

    def forget(self) -> None:
        """The latest lines are of a step that is over."""
        with self._writing:
            self._latest = []
