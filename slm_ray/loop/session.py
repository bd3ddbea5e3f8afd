"""What every run of many steps is made of: its log, who answers as the LLM, its rows, the endpoint, a place for training.

Each step keeps its own result in the run directory and returns at once when it is there, so that the same command goes on
where an interrupted run stopped. The endpoint is taken down at the end, however that comes, unless `serving.keep_alive` is
set. Nothing here knows which steps there are.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

from slm_ray import cluster, storage
from slm_ray.api_key import api_key
from slm_ray.config import PrepareConfig, RunConfig, Source, dump
from slm_ray.errors import ModelError
from slm_ray.executor import RayExecutor
from slm_ray.loop.page import STAND_IN_FEW_SHOT
from slm_ray.loop.steps import StepLog
from slm_ray.loop.track import TrackRun
from slm_ray.loop.train import bundles, check_template, placement
from slm_ray.prepare import Prepared, TokenCounter, prepare
from slm_ray.providers import parse
from slm_ray.remote import address, addressed, send_folder
from slm_ray.serving import Endpoint, deploy, shutdown
from slm_ray.serving.endpoint import app_name
from slm_ray.serving.lifetime import ends_with_driver, stays
from slm_ray.serving.served_answers import check_deployed
from slm_ray.tracing import offer_all

LOG = "log.txt"
STAND_IN = "stand-in"
AZURE_NAMES = ("AZURE_ENDPOINT", "AZURE_DEPLOYMENT", "AZURE_API_KEY")

Settings = TypeVar("Settings", bound=RunConfig)
Result = TypeVar("Result")


class Session(Generic[Settings]):
    """One run: its settings, its environment and where the answers come from."""

    def __init__(self, config: Settings, environment: Mapping[str, str]) -> None:
        self.config = config
        self.folder = Path(config.run_dir)
        self.log = StepLog(self.folder / LOG)
        self._sent_to = environment
        self.lacks_keys = parse(config.llm).provider.kind == "azure" and not any(map(environment.get, AZURE_NAMES))
        self.uses_stand_in = config.stand_in and self.lacks_keys
        # The steps only write their traces: the run sends them all when it is done, in the time that befits it.
        self.environment = {**environment, "LANGFUSE_DISABLED": "1"}
        if self.uses_stand_in:
            self.environment |= _stand_in_environment(config, environment)
        self.llm = config.llm
        if self.llm == "azure:":
            self.llm += self.environment.get("AZURE_DEPLOYMENT", "")
        self.base = f"served:{config.serving.name}"
        self.endpoint: Endpoint
        self.prove_on: str
        self._pools: dict[str, str] = {}
        self._pulse: Any = None

    def execute(self, steps: Callable[[], Result]) -> Result:
        """All steps, as the owner of the run directory; then the traces are sent."""
        with storage.lock(self.folder), self.log:
            storage.write_text(self.folder / "config.yaml", dump(addressed(self.config)))
            cluster.connect()
            cluster.require(bundles(self.config, 1), setting="training.workers")
            self._require_seen()
            began_s = time.monotonic()
            try:
                result = steps()
            finally:
                if not self.config.serving.keep_alive:
                    shutdown()
                    stays(app_name(self.config.serving))
            offer_all(self.config.run_dir, self._sent_to, took_s=time.monotonic() - began_s)
            return result

    def _require_seen(self) -> None:
        """The nodes that may train or serve see what they read and write; told before the first call is paid."""
        serving = self.config.serving
        cluster.require_seen(
            self.config.training.workers.per_worker,
            shared={"run_dir": address(self.folder), "serving.adapters_dir": address(serving.adapters_dir)},
            copies={"serving.base": serving.base} if Path(serving.base).is_dir() else {},
        )

    def prepared(self, track: Source, folder: Path, **changes: Any) -> Prepared:
        """A track's rows, split, in `folder`; the splits share no prompt."""
        settings = {**track.model_dump(), **changes, "out_dir": str(folder), "seed": self.config.seed}
        done = prepare(
            PrepareConfig(**settings), token_counter=self.token_counter(track), log=self.log.say,
            executor=RayExecutor(),
        )  # fmt: skip
        self.log.outcome(f"{done.track}: " + ", ".join(f"{rows} {split}" for split, rows in done.rows.items()))
        return done

    def token_counter(self, track: Source) -> TokenCounter | None:
        """Counts an example's tokens as the base does, where the track limits them."""
        if track.curation.max_tokens is None:
            return None
        from slm_ray.training.base_model import token_counter  # transformers takes seconds to import

        return token_counter(self.config.serving.base)

    def deploy(self, pools: Mapping[str, str]) -> None:
        """Serve the base; with no Azure keys also the labelled stand-in, which is shown rows of `pools`, files by track."""
        self._pools, stand_in = dict(pools), None
        if self.uses_stand_in:
            for path in pools.values():
                send_folder(Path(path).parent, last=Path(path).name)  # whichever node answers reads them in the store
            stand_in = {"deployment": STAND_IN, "demonstrations": STAND_IN_FEW_SHOT, "pools": self._pools}
            self.log.note("no AZURE_* keys: a local stand-in answers as the LLM, and is labelled as one")
        app = app_name(self.config.serving)
        if self.config.serving.keep_alive:
            stays(app)
        else:
            self._pulse = ends_with_driver(app)
        self.endpoint = deploy(self.config.serving, stand_in=stand_in)
        if self.uses_stand_in:  # whichever node asks it: of 0.0.0.0 each has its own
            self.environment["AZURE_ENDPOINT"] = self.endpoint.url
        self.log.outcome(f"{self.config.serving.name} answers at {self.endpoint.url}/v1")

    def train(self, runs: Sequence[TrackRun], job: Callable[[Callable[[], None]], None]) -> None:
        """`job` trains an adapter on the rows of each run.

        The endpoint stays up unless training cannot fit beside it, and then too where every adapter is finished: `job`
        calls what it is given before it asks the cluster for anything.
        """
        taken_down = False
        with self.log.step("train"):
            check_template(self.config, runs, self.endpoint)
            self.log.say("parity check: trainer and server see the same tokens for the same prompt")
            place = placement(self.config, len(runs))
            if place.note and place.beside_endpoint:
                self.log.note(place.note)

            def make_room() -> None:
                nonlocal taken_down
                if not place.beside_endpoint and not taken_down:
                    self.log.note(place.note)
                    shutdown()
                    taken_down = True

            # An endpoint that stays up answers for an adapter before it is listed; else an engine like it is started.
            self.prove_on = self.endpoint.url if place.beside_endpoint else self.config.serving.config
            job(make_room)
        if taken_down:
            with self.log.step("deploy again"):
                self.deploy(self._pools)
                self._check_deployed([run.adapter.id for run in runs if run.adapter is not None])

    def _check_deployed(self, ids: Sequence[str]) -> None:
        """ModelError when an adapter answers otherwise than when it was proved."""
        for adapter, problem in check_deployed(self.endpoint.url, self.config.serving.adapters_dir, ids).items():
            if problem:
                raise ModelError(f"{adapter}: {problem}")


def _stand_in_environment(config: RunConfig, environment: Mapping[str, str]) -> dict[str, str]:
    return {
        "AZURE_ENDPOINT": f"http://{config.serving.host}:{config.serving.port}",
        "AZURE_DEPLOYMENT": STAND_IN,
        "AZURE_API_KEY": api_key(environment) or "local",
    }
