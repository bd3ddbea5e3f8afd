"""What may answer a route, and how one state leads to another: pure records and transitions, no file and no clock.

    record    the LLM answers, and what it answered is logged
    shadow    the LLM answers; the SLM is asked beside it, and nobody waits for it
    canary    a share of the users gets the SLM
    cascade   the SLM first; the LLM where the SLM is less sure than the verdict's threshold
    live      the SLM answers; the LLM where the SLM fails

What a verdict showed is the most that a route is granted (`Grant`, read from the verdict's files in
`slm_ray.rollout.grants`). A state that is not granted cannot be constructed: ConfigError says what to do instead. Another
adapter starts at shadow. An adapter that was taken back is never what a further roll-back leads to. An alarm of the watch overturns
the verdict: from then on it grants shadow, here and wherever it is given again, and rows of its own have to show otherwise.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal, TypeGuard, get_args

from slm_ray.errors import ConfigError, choices
from slm_ray.types import State

Action = Literal["create", "move", "appoint", "set", "back", "alarm"]
STATES: tuple[State, ...] = get_args(State)
SERVING: tuple[State, ...] = ("canary", "cascade", "live")  # in which users get answers of the SLM

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}")
_NAME_RULE = "use letters, digits, '.', '_' and '-', at most 80 of them, the first a letter or a digit"


def is_name(name: str) -> bool:
    """Whether a client can ask for a route of that name."""
    return _NAME.fullmatch(name) is not None


def is_state(text: str) -> TypeGuard[State]:
    """Whether there is such a state."""
    return text in STATES


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """A name that clients send as `model`: which LLM and which SLM (specs) stand behind it, for which track.

    `base` is the base model that the SLM's adapter belongs to, as the endpoint calls it.
    """

    name: str
    llm: str
    slm: str
    track: str
    base: str

    def __post_init__(self) -> None:
        if not is_name(self.name):
            raise ConfigError(f"the route {self.name!r} is no name that a client can ask for: {_NAME_RULE}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """The most that a verdict allows, and what the watch over live traffic measures it by.

    `most` is live after a swap, cascade (at `threshold`) after a partial replacement, else shadow; `because` says why.
    `llm`, `slm` and `adapter` are whom the verdict is about, on which `track`; `comparison` and `digest` (SHA-256) its file. `agreement` is
    how far the SLM's answers agreed with the LLM's on the verdict's rows, by the track's primary metric, and
    `agreement_lower` its lower bound, wrong with probability `agreement_level` at most; None where it cannot be known.
    `stand_ins` answered in the name of a model: then the figures say nothing about that model.
    """

    most: Literal["shadow", "cascade", "live"]
    because: str
    threshold: float | None = None
    llm: str | None = None
    slm: str | None = None
    adapter: str | None = None
    track: str | None = None
    comparison: str | None = None
    digest: str | None = None
    rule: str | None = None
    delta: float | None = None
    agreement: float | None = None
    agreement_lower: float | None = None
    agreement_level: float | None = None
    stand_ins: tuple[str, ...] = ()

    def allows(self, state: State) -> bool:
        """Whether a route may be in this state: a cascade needs a threshold, and a threshold shows no canary to hold."""
        match state:
            case "record" | "shadow":
                return True
            case "cascade":
                return self.most == "cascade" and self.threshold is not None
            case "canary" | "live":
                return self.most == "live"

    @property
    def allowed(self) -> tuple[State, ...]:
        """All states that are granted."""
        return tuple(state for state in STATES if self.allows(state))


NO_VERDICT = Grant(most="shadow", because="no verdict was given")


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteState:
    """All that decides who answers a route now, and who decided so, when and why.

    `share` is the part of the users that a canary gives to the SLM, `audit_share` the part of requests that both sides
    are asked, `delta` how much worse the SLM may be, `timeout_s` how long it may take. `adapter` is the id of the SLM's
    adapter (None: the base itself), `previous` the one that a roll-back leads to (None: to record). `serial` counts the
    changes of the route from 1. ConfigError where the numbers are none, or the state is not granted.
    """

    route: Route
    state: State
    adapter: str | None
    granted: Grant
    changed_at: str
    by: str
    reason: str
    serial: int
    action: Action
    share: float = 0.0
    audit_share: float = 0.1
    delta: float = 0.02
    timeout_s: float = 10.0
    threshold: float | None = None
    previous: str | None = None

    def __post_init__(self) -> None:
        if self.state not in STATES:
            raise ConfigError(f"unknown state {self.state!r}: {choices(str(self.state), STATES)}")
        if not self.granted.allows(self.state):
            raise ConfigError(_refusal(self))
        if self.state == "canary" and not 0 < self.share <= 1:
            raise ConfigError(
                f"share: a canary is given to a part of the users, above 0 and at most 1, not {self.share!r}"
            )
        if not 0 <= self.audit_share <= 1 or not 0 <= self.share <= 1 or not 0 <= self.delta < 1:
            raise ConfigError(
                "share and audit_share lie in [0, 1] and delta in [0, 1), not"
                f" {self.share!r}, {self.audit_share!r} and {self.delta!r}"
            )
        if not 0 < self.timeout_s < 3600:
            raise ConfigError(f"timeout_s is a number of seconds above 0 and below 3600, not {self.timeout_s!r}")
        if self.state in SERVING and self.audit_share == 0:
            raise ConfigError(
                f"audit_share is 0, and {self.route.name} would be in {self.state} without anyone watching; give a share"
                " above 0, or move it to shadow, where both sides are asked every time"
            )
        if not self.reason.strip():
            raise ConfigError(f"say why {self.route.name} is changed: the reason is kept in its history")

    @property
    def serving(self) -> bool:
        """Whether any user gets answers of the SLM."""
        return self.state in SERVING

    @property
    def stand_ins(self) -> tuple[str, ...]:
        """The models in whose name a stand-in answered the verdict's rows."""
        return self.granted.stand_ins


def state_text(now: RouteState) -> str:
    """The state with its number."""
    if now.state == "canary":
        return f"canary {now.share:.3g}"
    return f"cascade at {now.threshold:.4g}" if now.state == "cascade" and now.threshold is not None else now.state


def watched_text(grant: Grant, delta: float) -> str:
    """What live traffic is held to, in words."""
    if grant.agreement is None or grant.agreement_lower is None:
        return "watched by nothing: no verdict's rows say how often both models agree"
    floor = grant.agreement_lower - delta
    said = f"watched: both agreed on {grant.agreement:.1%} of the verdict's rows (at least {grant.agreement_lower:.1%})"
    if floor <= 0:
        return f"{said}, which is too little for live traffic to fall below it: no alarm can come of it"
    return f"{said}; below {floor:.1%} it is taken back"


def held(grant: Grant, *, route: Route, adapter: str | None) -> Grant:
    """The grant as it stands for this route: a verdict about another adapter, LLM or track grants shadow and no more.

    A track that is a file is taken at its word.
    """
    if grant.comparison is None:
        return grant
    same = grant.adapter == adapter if grant.adapter or adapter else grant.slm == route.slm
    if not same:
        other = adapter or route.slm
        why = f"the verdict in {grant.comparison} is about {grant.adapter or grant.slm}, not about {other}"
        return replace(grant, most="shadow", threshold=None, because=why)
    if grant.llm != route.llm:
        why = f"the verdict in {grant.comparison} compares with {grant.llm}, and the route has {route.llm}"
        return replace(grant, most="shadow", threshold=None, because=why)
    if grant.track not in (None, route.track) and not route.track.endswith((".yaml", ".yml")):
        why = f"the verdict in {grant.comparison} is on the track {grant.track}, and the route has {route.track}"
        return replace(grant, most="shadow", threshold=None, because=why)
    return grant


def created(
    route: Route, *, adapter: str | None, grant: Grant, at: str, by: str, reason: str,
    audit_share: float = 0.1, delta: float | None = None, timeout_s: float = 10.0,
) -> RouteState:  # fmt: skip
    """A new route, at record. `delta` is that of the verdict where it is not given, else 0.02."""
    return RouteState(
        route=route, state="record", adapter=adapter, granted=held(grant, route=route, adapter=adapter), changed_at=at,
        by=by, reason=reason, serial=1, action="create", audit_share=audit_share, timeout_s=timeout_s,
        delta=_delta(grant) if delta is None else delta,
    )  # fmt: skip


def moved(state: RouteState, *, to: State, at: str, by: str, reason: str, share: float | None = None) -> RouteState:
    """The route in another state. A canary needs its `share`, unless it has one already.

    The same state as before when nothing changes; ConfigError, with what to do, where the verdict does not grant it.
    """
    if to != "canary" and share is not None:
        raise ConfigError(f"share: only a canary has one, and {to} is none; leave it away or move to canary")
    if to == "canary" and share is None and state.state != "canary" and state.granted.allows(to):
        raise ConfigError("share: a canary needs the part of the users that get the SLM, such as 0.1 (--share 0.1)")
    given = (share if share is not None else state.share) if to == "canary" else 0.0
    if (to, given) == (state.state, state.share):
        return state
    return replace(
        state, state=to, share=given, threshold=state.granted.threshold if to == "cascade" else None, changed_at=at,
        by=by, reason=reason, serial=state.serial + 1, action="move",
    )  # fmt: skip


def overturned(history: Sequence[RouteState]) -> frozenset[str]:
    """The digests of the verdicts that an alarm of the watch has shown not to hold any more."""
    alarms = (before for before, state in pairwise(history) if state.action == "alarm")
    return frozenset(before.granted.digest for before in alarms if before.granted.digest is not None)


def appointed(
    history: Sequence[RouteState], *, route: Route, adapter: str | None, grant: Grant, at: str, by: str, reason: str
) -> RouteState:
    """The route with another adapter, another LLM or a newer verdict; `history` is all of it, the last state now.

    A verdict that an alarm has overturned grants shadow. Another adapter or LLM starts at shadow (at record where the route is there), and a roll-back leads to the adapter that
    users had until now. A newer verdict about the same two leaves the state where it still grants it, else shadow.
    """
    state = history[-1]
    if route.name != state.route.name:
        raise ConfigError(f"{route.name} is another route than {state.route.name}; create it instead")
    new = held(grant, route=route, adapter=adapter)
    if new.digest in overturned(history):
        new = _overturned(new)
    same = adapter == state.adapter and (route.llm, route.slm) == (state.route.llm, state.route.slm)
    stays = state.state if state.state == "record" or (same and new.allows(state.state)) else "shadow"
    changed = replace(
        state, route=route, state=stays, adapter=adapter, granted=new, share=state.share if stays == "canary" else 0.0,
        threshold=new.threshold if stays == "cascade" else None,
        previous=state.adapter if state.serving and adapter != state.adapter else state.previous,
        changed_at=at, by=by, reason=reason, serial=state.serial + 1, action="appoint",
    )  # fmt: skip
    return replace(changed, previous=None) if changed.previous == adapter else changed


def adjusted(
    state: RouteState, *, at: str, by: str, reason: str,
    audit_share: float | None = None, delta: float | None = None, timeout_s: float | None = None,
) -> RouteState:  # fmt: skip
    """The route with other settings; those that are None stay. The same state as before when nothing changes."""
    given = {"audit_share": audit_share, "delta": delta, "timeout_s": timeout_s}
    changes = {name: value for name, value in given.items() if value is not None and value != getattr(state, name)}
    if not changes:
        return state
    return replace(state, **changes, changed_at=at, by=by, reason=reason, serial=state.serial + 1, action="set")  # type: ignore[arg-type]


def taken_back(history: Sequence[RouteState], *, at: str, by: str, reason: str, alarm: bool = False) -> RouteState:
    """The route as it last served its previous adapter, else at record; `history` is all of it, the last state now.

    What is gone back to keeps the grant that it had then. A verdict about another LLM than today's grants nothing, so that
    this is record too. An `alarm` overturns the verdict of what is taken back; at shadow, where nothing is to be taken back,
    it does that alone. The state is the same as before where nothing changes.
    """
    now = history[-1]
    changed = replace(
        now, changed_at=at, by=by, reason=reason, serial=now.serial + 1, action="alarm" if alarm else "back"
    )
    earlier = [then for then in history if then.serving and then.adapter == now.previous]
    if (
        now.previous is not None
        and not (alarm and now.state == "shadow")
        and earlier
        and earlier[-1].route.llm == now.route.llm
    ):
        then = earlier[-1]
        if then.granted.digest is None or then.granted.digest not in overturned((*history, changed)):
            return replace(
                changed, route=then.route, state=then.state, adapter=then.adapter, granted=then.granted, share=then.share,
                delta=then.delta, threshold=then.threshold, previous=then.previous,
            )  # fmt: skip
    granted = _overturned(now.granted) if alarm else now.granted
    if now.state == "record" or (alarm and now.granted.most == "shadow"):
        return now
    if alarm and now.state == "shadow":
        return replace(changed, granted=granted)
    return replace(changed, state="record", share=0.0, threshold=None, previous=None, granted=granted)


def _overturned(grant: Grant) -> Grant:
    return replace(
        grant, most="shadow", threshold=None,
        because="the watch rang: the SLM is worse on live traffic than on the verdict's rows, which overturns that verdict",
    )  # fmt: skip


def _delta(grant: Grant) -> float:
    return 0.02 if grant.delta is None else grant.delta


def _refusal(state: RouteState) -> str:
    grant, name = state.granted, state.route.name
    allowed = ", ".join(grant.allowed)
    do = f"evaluate and compare {state.adapter or state.route.slm} with {state.route.llm}, then slm-ray routes appoint {name} --verdict RUN"
    if grant.most != "shadow":
        do = f"move it to one of {allowed}"
    return f"{name} may not be in {state.state}: {grant.because}, which grants {allowed}; {do}"
