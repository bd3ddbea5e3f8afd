"""One owner at a time of a place in object storage, which has no locks: each asks by an object of its own, then looks.

A *claim* is an object `.owner/ID.json` that its owner writes again every `RENEWED_EVERY_S`. Who wants the place writes a
claim and then lists all: where another one is alive, it takes its own back and is refused. Two that ask at the same moment
may both be refused; never do both get it, as long as a listing shows what was written before it (Amazon S3, Google Cloud
Storage, MinIO and Azure promise that; a store without is not fit for two runs). A claim that was not renewed for
`DEAD_AFTER_S`, by the store's clock and as watched from here, is a dead owner's and is replaced by name. No clock of a host counts.

Not promised: an owner that hangs (a paused machine) for longer than that and wakes up may finish the one object that it was
writing. It sees at its next renewal that it was replaced, and writes nothing more.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from slm_ray.errors import ResourceError
from slm_ray.remote.store import NotThere, ObjectStore

FOLDER = ".owner"
RENEWED_EVERY_S = 10.0
DEAD_AFTER_S = 60.0
_LOOKS_EVERY_S = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """Who asks for the place, from which working copy; `replaces` are the claims of dead owners."""

    host: str
    pid: int
    copy: str
    renewed: int = 0
    replaces: tuple[str, ...] = ()

    @property
    def who(self) -> str:
        """In words."""
        return f"process {self.pid} on {self.host}"


class Lost(ResourceError):
    """The place belongs to another owner by now."""


class Lease:
    """This process's claim on a place. `copy` names the working copy, which only one living process has: a claim of the
    same copy is that of a dead process, and is replaced without waiting."""

    def __init__(self, store: ObjectStore, *, copy: str, folder: str = FOLDER) -> None:
        self._store, self._folder = store, folder
        self._name = f"{folder}/{uuid.uuid4().hex}.json"
        self._claim = Claim(host=socket.gethostname(), pid=os.getpid(), copy=copy)
        self._written_s = 0.0
        self._renewing = threading.Lock()

    def acquire(self, say: Callable[[str], None]) -> None:
        """Own the place, or ResourceError that names who does. Waits for at most `DEAD_AFTER_S` to see whether that one lives."""
        self._write()
        try:
            others = self._others()
            dead = [name for name, claim in others.items() if claim.copy == self._claim.copy]
            for name in others.keys() - set(dead):
                self._await_death(name, others[name], say)
                dead.append(name)
            self._claim = dataclasses.replace(self._claim, replaces=tuple(dead))
            if dead:
                self._write()
                for name in dead:
                    self._store.delete(name)
        except BaseException:
            with contextlib.suppress(ResourceError):
                self._store.delete(self._name)
            raise

    def renew(self) -> None:
        """Say that this owner lives. Lost where another has replaced it, StoreAway."""
        with self._renewing:
            for claim in self._others().values():
                if self._name in claim.replaces:
                    raise Lost(f"{self._store} was taken over by {claim.who}, which took this run for dead")
            if self._store.about(self._name) is None:
                raise Lost(f"{self._store} was taken over: the claim of this run is gone")
            self._write()

    def assure(self) -> None:
        """To be called before a write: nobody can have replaced this owner yet, or it is asked. Raises as `renew`."""
        if time.monotonic() - self._written_s > DEAD_AFTER_S / 2:
            self.renew()

    def release(self) -> None:
        """Give the place up. StoreAway; the claim is then dead after `DEAD_AFTER_S`."""
        self._store.delete(self._name)

    @contextlib.contextmanager
    def held(self, lost: Callable[[Lost], None]) -> Iterator[None]:
        """Renew the acquired claim while the block runs, then give it up; `lost` is called, once, where another has it.

        A store that does not answer is asked again: the claim dies of it only where others can reach the store.
        """
        ended = threading.Event()

        def renewing() -> None:
            while not ended.wait(RENEWED_EVERY_S):
                try:
                    self.renew()
                except Lost as error:
                    lost(error)
                    return
                except ResourceError:
                    continue

        thread = threading.Thread(target=renewing, name="lease", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
            with contextlib.suppress(ResourceError):
                self.release()

    def _await_death(self, name: str, claim: Claim, say: Callable[[str], None]) -> None:
        """Return when this claim was not renewed for long enough; ResourceError as soon as it is."""
        age_s = self._age_s(name)
        if age_s is None or age_s > DEAD_AFTER_S:
            return
        say(f"{self._store} was last written {age_s:.0f} s ago by {claim.who}: looking whether that run lives")
        until_s = time.monotonic() + DEAD_AFTER_S - max(age_s, 0.0)
        while time.monotonic() < until_s:
            time.sleep(_LOOKS_EVERY_S)
            self._write()  # whoever asks meanwhile sees that this one lives
            now = self._read(name)
            if now is None:
                return
            if now.renewed != claim.renewed:
                raise ResourceError(
                    f"{self._store} is in use by {claim.who}; wait for it, stop it, or choose another place"
                )

    def _age_s(self, name: str) -> float | None:
        """How long ago a claim was written, by the clock of the store: ours was written just now. None where it is gone."""
        theirs, ours = self._store.about(name), self._store.about(self._name)
        if theirs is None:
            return None
        return 0.0 if ours is None else max(0.0, (ours.written_ns - theirs.written_ns) / 1e9)

    def _others(self) -> Mapping[str, Claim]:
        names = [name for name in self._store.listing(self._folder, recursive=False) if name != self._name]
        return {name: claim for name in names if (claim := self._read(name)) is not None}

    def _read(self, name: str) -> Claim | None:
        try:
            plain = json.loads(self._store.read(name))
            return Claim(**{**plain, "replaces": tuple(plain["replaces"])})
        except NotThere:
            return None
        except (ValueError, TypeError, KeyError):
            raise ResourceError(
                f"{self._store}/{name} says no owner; remove that object if no run is at work there"
            ) from None

    def _write(self) -> None:
        self._claim = dataclasses.replace(self._claim, renewed=self._claim.renewed + 1)
        began_s = time.monotonic()
        self._store.write(self._name, json.dumps(dataclasses.asdict(self._claim)).encode())
        self._written_s = began_s
