"""The executor whose processes are Ray's: long work as tasks, with a progress bar.

Results come in the order of the work whatever ends first. At most one task per CPU runs, and each waits when nobody has
taken its last results. Small work does not pay: starting Ray takes seconds.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from slm_ray.errors import ResourceError, SlmRayError
from slm_ray.parallel import Item, Result

THRESHOLD_BYTES = 64 * 2**20  # files of so many bytes together are read as tasks
_UNTAKEN = 2
_CPUS = 0.1  # how many run is counted here; an endpoint that holds the CPUs must not stop them


class RayExecutor:
    """Works in Ray tasks, one per item."""

    def __init__(self, threshold_bytes: int = THRESHOLD_BYTES) -> None:
        """Work pays off from what takes as long as reading `threshold_bytes` of rows."""
        self._threshold_bytes = threshold_bytes

    def pays_off(self, like_bytes: int) -> bool:
        """Whether the work is long enough for tasks."""
        return like_bytes >= self._threshold_bytes

    def map(
        self, function: Callable[[Item], Iterable[Result]], items: Sequence[Item], *, title: str
    ) -> Iterator[Result]:
        """Everything that `function` yields for each item, item after item, each item a Ray task.

        An error of ours that a task raises is raised here when its turn comes; ResourceError when Ray loses a task for
        good.
        """
        import ray

        from slm_ray import cluster  # Ray takes seconds to import

        cluster.connect()
        most = max(1, int(ray.cluster_resources().get("CPU", 1)))
        task = ray.remote(_run).options(
            num_returns="streaming", _generator_backpressure_num_objects=_UNTAKEN, num_cpus=_CPUS,
            scheduling_strategy="SPREAD",
        )  # fmt: skip
        shared = ray.put(function)  # it may hold a large table, and there is one task per item
        waiting = iter(items)
        running = deque(task.remote(shared, item) for _, item in zip(range(most), waiting, strict=False))
        try:
            for _ in _shown(items, title):
                for reference in running[0]:
                    yield _taken(reference)
                running.popleft()
                running.extend(task.remote(shared, item) for _, item in zip(range(1), waiting, strict=False))
        finally:
            for stream in running:
                ray.cancel(stream)


def _run(function: Callable[[Item], Iterable[Result]], item: Item) -> Iterator[Result]:
    yield from function(item)


def _taken(reference: Any) -> Any:
    import ray
    from ray.exceptions import RayError, RayTaskError

    try:
        return ray.get(reference)
    except RayTaskError as error:
        if isinstance(error.cause, SlmRayError):
            raise error.cause from None
        raise
    except RayError as error:
        raise ResourceError(
            f"Ray lost a part of the work ({str(error).splitlines()[0]}); look for memory limits or failing nodes, then "
            "run the same command again"
        ) from None


def _shown(items: Sequence[Item], title: str) -> Iterator[Item]:
    from rich.console import Console
    from rich.progress import track

    yield from track(items, title, console=Console(stderr=True), transient=True)
