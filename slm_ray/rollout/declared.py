"""Routes as the settings declare them, brought into the store: made where they are new, appointed where they have changed.

What a file says is applied once. Later changes, by a person or by the watch, stand: a restart with the same file neither
brings an adapter back that was taken back nor undoes another setting.
"""

from __future__ import annotations

from pathlib import Path

from slm_ray.adapters.history import resolve
from slm_ray.config import RolloutConfig, RolloutRoute
from slm_ray.providers import parse
from slm_ray.rollout.grants import read_grant
from slm_ray.rollout.states import NO_VERDICT, Route, RouteState
from slm_ray.rollout.store import RouteStore

_REASON = "the settings of slm-ray rollout"


def declare(store: RouteStore, config: RolloutConfig) -> list[RouteState]:
    """Every declared route as it is now. Errors name what is missing: an adapter, a verdict, a grant."""
    return [_declared(store, name, wanted, config) for name, wanted in config.routes.items()]


def asks_endpoint(store: RouteStore) -> bool:
    """Whether any route has a served model behind it."""
    routes = [state.route for state in store.routes().values()]
    return any(spec.startswith("served:") for route in routes for spec in (route.llm, route.slm))


def _declared(store: RouteStore, name: str, wanted: RolloutRoute, config: RolloutConfig) -> RouteState:
    route, adapter = _route(name, wanted, config)
    grant = read_grant(wanted.verdict) if wanted.verdict else NO_VERDICT
    settings = {
        key: value for key in ("delta", "audit_share", "timeout_s") if (value := getattr(wanted, key)) is not None
    }
    if name not in store.routes():
        return store.create(route, adapter=adapter, grant=grant, reason=_REASON, **settings)
    history = store.history(name)
    applied = any(
        (then.route, then.adapter) == (route, adapter) and (not wanted.verdict or then.granted.digest == grant.digest)
        for then in history
    )
    if not applied:
        store.appoint(route, adapter=adapter, grant=grant, reason=_REASON)
    history = store.history(name)
    said = next((then for then in reversed(history) if then.reason == _REASON), None)  # what a file last said
    if said is not None and all(getattr(said, key) == value for key, value in settings.items()):
        return history[-1]
    return store.adjust(name, reason=_REASON, **settings)


def _route(name: str, wanted: RolloutRoute, config: RolloutConfig) -> tuple[Route, str | None]:
    """The route with its files by absolute path, and the id of its adapter."""
    base, spec = config.serving.name, wanted.slm
    provider = parse(spec).provider
    adapter = provider.adapter
    if provider.kind == "served" and adapter is None and spec.removeprefix("served:") != base:
        adapter = spec.removeprefix("served:")  # an adapter of the endpoint's base, without the base's name
    if adapter is not None:
        adapter = resolve(config.serving.adapters_dir, adapter)
        spec = f"served:{base}:{adapter}"
    track = str(Path(wanted.track).absolute()) if wanted.track.endswith((".yaml", ".yml")) else wanted.track
    return Route(name=name, llm=wanted.llm, slm=spec, track=track, base=base), adapter
