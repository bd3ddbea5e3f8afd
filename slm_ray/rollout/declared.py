"""Routes as the settings declare them, brought into the store: made where they are new, appointed where they have changed.

What a file says is applied once. Later changes, by a person or by the watch, stand: a restart with the same file neither
brings an adapter back that was taken back nor undoes another setting.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from slm_ray.adapters.history import resolve
from slm_ray.config import RolloutConfig, RolloutRoute
from slm_ray.errors import ConfigError
from slm_ray.providers import parse
from slm_ray.rollout.grants import read_grant
from slm_ray.rollout.states import NO_VERDICT, Route, RouteState
from slm_ray.rollout.store import RouteStore
from slm_ray.tasks import open_track

_REASON = "the settings of slm-ray rollout"


def declare(store: RouteStore, config: RolloutConfig) -> list[RouteState]:
    """Every declared route as it is now. Errors name what is missing: an adapter, a verdict, a grant."""
    return [_declared(store, name, wanted, config) for name, wanted in config.routes.items()]


def asks_endpoint(store: RouteStore) -> bool:
    """Whether any route has a served model behind it."""
    routes = [state.route for state in store.routes().values()]
    return any(spec.startswith("served:") for route in routes for spec in (route.llm, route.slm))


def _declared(store: RouteStore, name: str, wanted: RolloutRoute, config: RolloutConfig) -> RouteState:
    route, adapter = route_of(
        name, llm=wanted.llm, slm=wanted.slm, track=wanted.track, base=config.serving.name,
        resolved=partial(resolve, config.serving.adapters_dir),
    )  # fmt: skip
    grant = read_grant(wanted.verdict) if wanted.verdict else NO_VERDICT
    settings = {key: value for key in ("audit_share", "timeout_s") if (value := getattr(wanted, key)) is not None}
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


def route_of(
    name: str, *, llm: str, slm: str, track: str, base: str | None, resolved: Callable[[str], str]
) -> tuple[Route, str | None]:
    """The route with its files by absolute path and its adapter by id, and that id (None: no adapter of ours).

    An alias would stand for another adapter tomorrow, which no verdict is about: `resolved` says which one it is now. `base`
    is the endpoint's, whose adapters `served:ADAPTER` names too; None where only `slm` says it. ConfigError for a spec or a
    track that is none, and for demonstrations, which a route does not put in front.
    """
    open_track(track)
    parse(llm)
    spec = parse(slm)
    if spec.demonstrations:
        raise ConfigError(f"{slm}: a route passes on what the client sent, without demonstrations; leave +Kshot away")
    track = str(Path(track).absolute()) if track.endswith((".yaml", ".yml")) else track
    named, _, adapter = slm.removeprefix("served:").partition(":")
    of = base or named
    if named != of and not adapter:
        adapter = named
    if spec.provider.kind != "served" or not adapter:
        return Route(name=name, llm=llm, slm=slm, track=track, base=of), None
    adapter = resolved(adapter)
    return Route(name=name, llm=llm, slm=f"served:{of}:{adapter}", track=track, base=of), adapter
