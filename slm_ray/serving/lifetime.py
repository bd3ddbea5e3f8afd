"""An endpoint that ends with the driver that brought it up, even where that is killed.

Ray Serve's applications outlive their driver by design, and with them the GPUs that they hold: a loop that is killed on a
cluster would keep them from everybody. `ends_with_driver` has an actor of its own, which outlives the driver too, wait for
the driver's end and then delete the application, unless another driver has asked the same meanwhile. It takes two idle
processes: one on the head, whose end is the cluster's, and one beside the driver, which ends with nothing but the driver. An
endpoint that is to stay (`keep_alive`, `slm-ray serve`) is not given to it.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import ray
from ray.exceptions import ActorUnavailableError, RayActorError, RayError

from slm_ray.cluster import ON_THE_HEAD, beside_driver

_NAMESPACE = "slm_ray"
_ASKS_AGAIN_S = 1.0


class _Pulse:
    """Lives as long as its driver."""

    async def ends(self) -> None:
        """Never returns: the call fails when the driver is gone."""
        await asyncio.Event().wait()


class _Guard:
    """Waits for the driver that asked last."""

    def __init__(self, app: str) -> None:
        self._app, self._asked, self._deleting = app, 0, asyncio.Lock()

    async def wait_for(self, pulse: Any) -> None:
        """Delete the application once `pulse` is no more, if nobody has asked since. Waits for a deletion under way."""
        self._asked += 1
        async with self._deleting:
            self._waiting = asyncio.ensure_future(self._delete_after(pulse, self._asked))

    async def _delete_after(self, pulse: Any, asked: int) -> None:
        with contextlib.suppress(RayError):
            await _ended(pulse)
        async with self._deleting:
            if asked == self._asked:
                from ray import serve  # takes a second, which nobody needs before
                from ray.serve.exceptions import RayServeException

                with contextlib.suppress(RayServeException):  # Serve is gone already, or was never started
                    await asyncio.to_thread(serve.delete, self._app)
        if asked == self._asked:
            ray.kill(ray.get_runtime_context().current_actor)


async def _ended(pulse: Any) -> None:
    """Wait until a pulse is no more, and not until the network to it is cut for a while."""
    while True:
        try:
            await pulse.ends.remote()
        except ActorUnavailableError:
            await asyncio.sleep(_ASKS_AGAIN_S)


def ends_with_driver(app: str) -> Any:
    """Have the application `app` deleted when this driver is gone; keep what this returns. `stays` takes it back."""
    pulse = beside_driver(_Pulse).remote()
    guard_class = ray.remote(
        num_cpus=0, resources=ON_THE_HEAD, name=_name(app), namespace=_NAMESPACE, lifetime="detached", get_if_exists=True
    )(_Guard)  # fmt: skip
    try:
        ray.get(guard_class.remote(app).wait_for.remote(pulse))
    except RayActorError:  # an earlier one, whose work was just done
        ray.get(guard_class.remote(app).wait_for.remote(pulse))
    return pulse


def stays(app: str) -> None:
    """The application is nobody's to delete any more: it is gone, or is to stay."""
    try:
        ray.kill(ray.get_actor(_name(app), namespace=_NAMESPACE))
    except ValueError:
        return


def _name(app: str) -> str:
    return f"{app}-guard"
