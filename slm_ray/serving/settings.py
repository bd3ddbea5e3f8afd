"""From a `Serving` to everything the endpoint is built from, checked before anything starts.

The YAML file is an ordinary Ray Serve one (`ServeDeploySchema`) with one application, whose `args` are a Ray Serve LLM
configuration (`LLMServingArgs`) with one model. Which base, under which name and with which adapters comes from the
`Serving`; plain `serve run` takes it from `args`. Reads files, starts nothing, imports no Ray.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from slm_ray import __version__
from slm_ray.adapters import base_fingerprint, check_base
from slm_ray.api_key import KEY_NAME, api_key
from slm_ray.config import Serving
from slm_ray.costs.data_residency import is_loopback
from slm_ray.errors import AdapterError, ConfigError, ModelError
from slm_ray.ray_environment import HAPROXY
from slm_ray.remote import address
from slm_ray.serving import object_storage
from slm_ray.serving.admission import Room
from slm_ray.serving.keys import key_digest, read_keys
from slm_ray.serving.limits import schema_problem
from slm_ray.storage import read_json
from slm_ray.tasks import open_track
from slm_ray.yaml_file import read_yaml_mapping

DIRECT = "RAY_SERVE_LLM_ENABLE_DIRECT_STREAMING"  # "1": Ray's own word for engines that answer clients themselves
_TOKENS_OF_AN_ANSWER = 2048
_WAITING = 0.05  # of what the engines batch
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_./-]*")
# Beside Mistral's own files (consolidated.safetensors, params.json, tokenizer.model.v3) vLLM would take those, with a tokenizer
# that knows no chat template; training reads Hugging Face's.
AS_TRAINED = {"tokenizer_mode": "hf", "config_format": "hf", "load_format": "safetensors"}
FRONT_ONLY = (
    "enable_auto_tool_choice",
    "tool_call_parser",
)  # engine_kwargs that an engine without its HTTP front knows not
_STAND_IN_KEYS = {"deployment", "demonstrations", "pools"}


@dataclass(frozen=True, slots=True, kw_only=True)
class AppSettings:
    """What `app.build` takes. `serving` is the filled-in YAML file; the API key is here as a digest only."""

    name: str
    base: str
    fingerprint: str
    adapters_dir: str
    serving: dict[str, Any]
    stand_in: dict[str, Any] | None
    schemas: dict[str, Any]
    api_key_digest: str | None
    keys_file: str | None
    is_direct: bool = False  # engines answer clients themselves
    package: str = __version__  # what was deployed by an earlier one is another endpoint
    attempt: int = 0  # one more after a change that failed: Serve does not start the same version again

    @property
    def digest(self) -> str:
        """8 hex digits; two endpoints with the same digest are the same endpoint."""
        return _digest({**asdict(self), "attempt": 0})

    @property
    def engine_version(self) -> str:
        """8 hex digits of what an engine has to be started anew for: where it answers clients itself, of the front too."""
        of_front = [self.front_version] if self.is_direct else []
        return _digest(
            [self.serving["llm_configs"], self.base, self.fingerprint, self.package, self.attempt, *of_front]
        )

    @property
    def front_version(self) -> str:
        """8 hex digits of what the front has to be started anew for; stand-in and schemas are changed while it runs."""
        return _digest(
            [
                self.serving, self.fingerprint, self.name, self.adapters_dir, self.api_key_digest, self.keys_file, self.package,
                self.attempt,
            ]
        )  # fmt: skip


def read_serve_file(path: str | Path) -> dict[str, Any]:
    """The `args` of the one application of a Ray Serve file; ConfigError when that is no Ray Serve LLM configuration."""
    applications = read_yaml_mapping(path, what="Ray Serve file").get("applications")
    if isinstance(applications, list) and len(applications) == 1 and isinstance(applications[0], dict):
        arguments = applications[0].get("args")
        models = arguments.get("llm_configs") if isinstance(arguments, dict) else None
        if arguments and isinstance(models, list) and len(models) == 1 and isinstance(models[0], dict):
            return dict(arguments)
    raise ConfigError(
        f"{path} is no Ray Serve file with one application whose args hold one entry under llm_configs; give one of"
        " serve_configs/"
    )


def app_settings(config: Serving, *, stand_in: Mapping[str, Any] | None, environment: Mapping[str, str]) -> AppSettings:
    """Everything resolved: absolute paths, names checked. ModelError when the base is no model, ConfigError otherwise."""
    return settings_of(read_serve_file(config.config), config, stand_in=stand_in, environment=environment)


def settings_of(
    arguments: Mapping[str, Any],
    config: Serving,
    *,
    stand_in: Mapping[str, Any] | None = None,
    environment: Mapping[str, str],
) -> AppSettings:
    """`app_settings` with the serve file's `args` at hand."""
    if not _NAME.fullmatch(config.name):
        raise ConfigError(f"serving.name {config.name!r}: use letters, digits, '.', '_', '-' and '/'")
    _check_replicas(arguments)
    base = check_base(config.base, setting="serving.base")
    adapters_dir = object_storage.root(config.adapters_dir)
    digest, keys_file = access(config, environment)
    return AppSettings(
        name=config.name,
        base=base,
        fingerprint=_fingerprint(base),
        adapters_dir=adapters_dir,
        serving=_filled(arguments, config, base, adapters_dir),
        stand_in=_stand_in(config.name, stand_in) if stand_in else None,
        schemas=_schemas(config.tracks),
        api_key_digest=digest,
        keys_file=keys_file,
        is_direct=is_direct(environment),
    )


def is_direct(environment: Mapping[str, str]) -> bool:
    """Whether engines answer clients themselves; ConfigError where HAProxy, which asks them, is not chosen."""
    if environment.get(DIRECT) != "1":
        return False
    if environment.get(HAPROXY) != "1":
        raise ConfigError(
            f"{DIRECT}=1 has engines answer clients themselves, which only HAProxy asks: set {HAPROXY}=1 too, here and where Ray"
            f" is started, or leave {DIRECT} out"
        )
    return True


def _check_replicas(arguments: Mapping[str, Any]) -> None:
    """ConfigError for an engine that Ray may scale to none: requests are refused then, so that none would bring it back.

    And for a number that is left to Ray: room and resources are counted before anything runs.
    """
    deployments = (arguments["llm_configs"][0].get("deployment_config"), arguments.get("ingress_deployment_config"))
    for deployment in deployments:
        count = (deployment or {}).get("num_replicas") or 1
        if not isinstance(count, int):
            raise ConfigError(f"num_replicas is {count!r}: give a number, or autoscaling_config with its bounds")
    if ((deployments[0] or {}).get("autoscaling_config") or {}).get("min_replicas", 1) == 0:
        raise ConfigError(
            "llm_configs: autoscaling_config.min_replicas is 0: without an engine requests are refused, and none would start"
            " one; set it to 1 or more"
        )


def access(config: Serving, environment: Mapping[str, str]) -> tuple[str | None, str | None]:
    """The digest of the deployer's key and the file of further ones; ConfigError for a host open to others without a key."""
    key = api_key(environment)
    if not key and not is_loopback(config.host):
        raise ConfigError(
            f"serving.host {config.host!r} can be reached from other machines, and without a key whoever reaches it may use it:"
            f" set {KEY_NAME} in the environment, or serving.host to 127.0.0.1"
        )
    return (key_digest(key) if key else None), _keys_file(config, key)


def _keys_file(config: Serving, key: str) -> str | None:
    """The file of further keys, read once so that what is wrong with it shows before anything starts."""
    if not config.keys_file:
        return None
    if not key:
        raise ConfigError(
            f"serving.keys_file {config.keys_file}: set {KEY_NAME} too, the deployer's own key, by which the endpoint is asked "
            "whether it is up"
        )
    path = Path(config.keys_file).expanduser().absolute()
    read_keys(path)
    return str(path)


def _fingerprint(base: str) -> str:
    try:
        return base_fingerprint(base) if Path(base).is_dir() else ""
    except AdapterError as error:
        raise ModelError(f"{base} is no base model: {error}") from None


def bundles(serving: Mapping[str, Any], *, is_direct: bool = False) -> list[dict[str, float]]:
    """What the app holds of the cluster: one bundle per engine worker, engine and front."""
    model, front = serving["llm_configs"][0], serving.get("ingress_deployment_config") or {}
    engines = _least_replicas(model.get("deployment_config") or {})
    fronts = 0 if is_direct else _least_replicas(front)
    return engine_bundles(model) * engines + [{"CPU": _cpus(front)}] * fronts


def engine_bundles(model: Mapping[str, Any]) -> list[dict[str, float]]:
    """What one engine of an `llm_configs` entry holds: a bundle for each of its workers, the replica's own in the first."""
    deployment, engine = model.get("deployment_config") or {}, model.get("engine_kwargs") or {}
    workers = engine.get("tensor_parallel_size", 1) * engine.get("pipeline_parallel_size", 1)
    cpu = (model.get("accelerator_config") or {}).get("kind") == "cpu"
    placement = model.get("placement_group_config") or {"bundle_per_worker": {"CPU": 1} if cpu else {"GPU": 1}}
    each = placement.get("bundle_per_worker")
    found = [dict(bundle) for bundle in ([each] * workers if each else placement.get("bundles") or [])]
    if kind := model.get("accelerator_type"):
        for bundle in found:
            bundle.setdefault(f"accelerator_type:{kind}", 0.001)
    actor = deployment.get("ray_actor_options") or {}
    own = {"CPU": _cpus(deployment), "GPU": actor.get("num_gpus", 0), **(actor.get("resources") or {})}
    own |= {"memory": actor["memory"]} if "memory" in actor else {}
    first, *others = found or [{}]
    summed = {name: first.get(name, 0) + own.get(name, 0) for name in {**first, **own}}
    return [{name: amount for name, amount in summed.items() if amount}, *others]


def room(serving: Mapping[str, Any], *, is_direct: bool = False) -> Room:
    """What one ingress replica lets be in flight: the answers that the engines batch and `_WAITING` more, shared among the ingresses.

    Who waits fills the place of one who ends, and takes twice as long where all began together. With fewer than one in twenty
    waiting the 95th percentile of a crowded endpoint is that of a full batch. All ingresses that may ever be up are counted,
    so that no number of them lets in more, nor gives a key more tokens than it has.
    """
    model = serving["llm_configs"][0]
    batched = (model.get("engine_kwargs") or {}).get("max_num_seqs", 256)
    fronts = serving.get("ingress_deployment_config") or {}
    ingresses = most_engines(serving) if is_direct else _most_replicas(fronts)
    answers = max(1, int((1 + _WAITING) * batched * most_engines(serving) // ingresses))
    return Room(answers=answers, tokens=answers * _TOKENS_OF_AN_ANSWER, ingresses=ingresses, context=context(model))


def context(model: Mapping[str, Any]) -> int | None:
    """Tokens of the engine's context: what the file says, else what the base was made for; None where neither can be read."""
    named = (model.get("engine_kwargs") or {}).get("max_model_len")
    base = (model.get("model_loading_config") or {}).get("model_source")
    if named is None and base and Path(base).is_dir():
        named = read_json(Path(base) / "config.json").get("max_position_embeddings")
    return named if isinstance(named, int) and named > 0 else None


def most_engines(serving: Mapping[str, Any]) -> int:
    """Replicas of the model when all of them are up."""
    return _most_replicas(serving["llm_configs"][0].get("deployment_config") or {})


def _most_replicas(deployment: Mapping[str, Any]) -> int:
    scaling = deployment.get("autoscaling_config") or {}
    return int(deployment.get("num_replicas") or scaling.get("max_replicas", 1))


def _least_replicas(deployment: Mapping[str, Any]) -> int:
    scaling = deployment.get("autoscaling_config") or {}
    return int(deployment.get("num_replicas") or scaling.get("min_replicas", 1))


def _cpus(deployment: Mapping[str, Any]) -> float:
    return float((deployment.get("ray_actor_options") or {}).get("num_cpus", 1))


def takes_tools(serving: Mapping[str, Any]) -> bool:
    """Whether the engine finds tool calls in answers."""
    return bool((serving["llm_configs"][0].get("engine_kwargs") or {}).get("enable_auto_tool_choice"))


def _filled(arguments: Mapping[str, Any], config: Serving, base: str, adapters_dir: str) -> dict[str, Any]:
    model = arguments["llm_configs"][0]
    loading = {**(model.get("model_loading_config") or {}), "model_id": config.name, "model_source": base}
    extras = {**(model.get("experimental_configs") or {}), "adapters_dir": adapters_dir}
    engine = {**AS_TRAINED, **(model.get("engine_kwargs") or {})}
    filled = {**model, "model_loading_config": loading, "experimental_configs": extras, "engine_kwargs": engine}
    others = {name: value for name, value in arguments.items() if name not in Serving.model_fields}
    return {**others, "llm_configs": [filled]}


def _schemas(tracks: Sequence[str]) -> dict[str, Any]:
    """The answer schema of each track, by the track's name."""
    found: dict[str, Any] = {}
    for given in tracks:
        track = open_track(given)
        if track.answer_schema is None:
            raise ConfigError(f"serving.tracks: {given} has no answer_schema for requests to name; leave it out")
        if problem := schema_problem(dict(track.answer_schema)):
            raise ConfigError(f"serving.tracks: the answer_schema of {given} would stall the engine: {problem}")
        if track.name in found:
            raise ConfigError(f"serving.tracks: two tracks are called {track.name}; requests could not tell them apart")
        found[track.name] = dict(track.answer_schema)
    return found


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:8]


def _stand_in(base: str, stand_in: Mapping[str, Any]) -> dict[str, Any]:
    if set(stand_in) != _STAND_IN_KEYS:
        raise ConfigError(
            f"a stand-in has {', '.join(sorted(_STAND_IN_KEYS))}, not {', '.join(sorted(stand_in)) or 'nothing'}"
        )
    pools = {name: address(Path(path).absolute()) for name, path in stand_in["pools"].items()}
    return {
        "base": base,
        "deployment": stand_in["deployment"],
        "demonstrations": stand_in["demonstrations"],
        "pools": pools,
    }
