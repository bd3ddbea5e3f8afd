"""How far a load measurement is: a bar per rate on a terminal, a line per finished rate elsewhere; all on stderr."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from slm_ray.load_records import LoadRate
from slm_ray.types import Completion


class LoadProgress:
    """A context manager: the terminal is given back however the measurement ends."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
                   TextColumn("{task.fields[failed]} without an answer"))  # fmt: skip
        self._bar = Progress(*columns, console=self._console) if self._console.is_interactive else None
        self._name = ""
        self._total = self._failed = 0

    def __enter__(self) -> LoadProgress:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()

    def begin(self, spec: str, rate: float, total: int) -> None:
        """A rate of `total` requests begins."""
        self._name, self._total, self._failed = f"{spec} {rate:g}/s", total, 0
        if self._bar:
            self._task = self._bar.add_task(self._name, total=total + 1, failed=0)

    def advance(self, completion: Completion) -> None:
        """One request more is over."""
        self._failed += completion.failure is not None and completion.failure.in_transport
        if self._bar:
            self._bar.update(self._task, advance=1, failed=self._failed)

    def end(self, rate: LoadRate) -> None:
        """The rate is measured."""
        if self._bar is None:
            p95 = rate.latency_s.p95
            said = "none" if p95 is None or p95.value is None else f"{p95.value:.3f} s"
            print(
                f"{self._name}: {rate.answered} of {rate.sent} answered, p95 {said}",
                file=self._console.file,
                flush=True,
            )
