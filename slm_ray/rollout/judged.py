"""What an answer is worth without an expected one: its form by the route's track, and the SLM's against the LLM's.

The same scorers and the same rules as in the verdict: an answer has to be valid JSON, a valid call, in the track's schema,
where the track asks for that; one that stopped at its token limit is in no form. Tracks are read once.
"""

from __future__ import annotations

import functools

from slm_ray.corpus.tracks import Track
from slm_ray.rollout.grants import agreement
from slm_ray.rollout.states import RouteState
from slm_ray.rollout.upstream import Reply
from slm_ray.scoring.run import form_metrics, score, unreadable
from slm_ray.tasks import open_track


@functools.lru_cache(maxsize=256)
def track_named(name: str) -> Track:
    """The track of a route, by its name or its file."""
    return open_track(name)


def in_form(state: RouteState, reply: Reply) -> bool | None:
    """Whether an answer is in the form that the track asks for; None where it asks for none, or there is no text to judge."""
    failure, text = reply.outcome.failure, reply.outcome.text
    truncated = failure is not None and failure.kind == "truncated"
    if reply.trouble is not None or (text is None and not truncated):
        return None
    names, scores = form_metrics(), score(track_named(state.route.track), "", text, "").scores
    known = [found.value for found in scores if found.name in names and found.value is not None]
    return all(value > 0 for value in known) if known else None


def agreed(state: RouteState, slm: Reply, llm: Reply) -> float | None:
    """How far the SLM's answer agrees with the LLM's, in [0, 1]; None where that cannot be said of these two.

    A refusal, an empty or a cut answer of the SLM agrees with nothing: 0. A call that did not reach it says nothing.
    """
    if slm.unanswered or llm.trouble is not None:
        return None
    return agreement(track_named(state.route.track), slm.outcome.text, llm.outcome.text)


def labelled(state: RouteState, slm: Reply, llm: Reply, expected: str) -> float | None:
    """The SLM's score minus the LLM's by the track's primary metric, in [-1, 1]; None where `expected` is none it can read.

    A verdict that grants a cascade says nothing of the SLM's answers that a cascade does not give, and the SLM may well be
    worse there: of these the LLM's answer counts on both sides.
    """
    track = track_named(state.route.track)
    if unreadable(track, expected) is not None:
        return None
    values = [
        next((found.value for found in score(track, "", reply.outcome.text, expected).scores if found.name == track.primary), None)
        for reply in (slm, llm)
    ]  # fmt: skip
    if values[0] is None or values[1] is None:
        return None
    return 0.0 if _left_to_the_llm(state, slm) else values[0] - values[1]


def _left_to_the_llm(state: RouteState, slm: Reply) -> bool:
    """Whether the cascade that the verdict grants gives the LLM's answer in place of this one."""
    threshold = state.granted.threshold
    if threshold is None:
        return False
    return slm.trouble is not None or in_form(state, slm) is False or slm.unsure(threshold) is not None
