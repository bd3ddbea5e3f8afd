"""The parity check: what is served is what was trained, told from records of three sides.

The trainer notes which tokens it saw and what the model in its memory answered (`Note`); PEFT over the published files
answers the same (`Reference`); so does the server, each arm alone, again from its cache, and in mixed batches (`Served`).
`check` compares them and names what is wrong. Pure: it asks nobody and reads nothing.

What counts is log-probabilities at positions where both sides have read the same tokens, never whole texts: one rounded
logit can turn an answer, and a text that is right by chance proves nothing. `TOLERANCE` lies between what rounding does
and what a fault does; docs/how-to/training.md has the measurements. It cannot tell a fault that changes no answer to these
prompts; how far the doubled scaling would have been is therefore among the figures.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from slm_ray.answer_distance import Distance, Positions, distance

ROWS = 8  # training rows that are compared
POSITIONS = 16  # tokens of each answer
TOP = 5  # log-probabilities at each position
TOLERANCE = 0.15  # mean difference in log-probability, nats
PRECISION_TOLERANCE = 1.0  # the same between the base in training's precision and in the served one
SERVED_PRECISION = "16bit"
CANDIDATE = "@candidate"  # follows the id of an adapter that is served to be proved and is not published yet
_AROUND = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class NotedRow:
    """A training row as the trainer tokenised it: `row` counts from 0, `prompt` is what stands in front of the answer.

    `answer` are the answer's tokens, all of them learned; `trained` is what the model in the trainer's memory says at the
    first positions of the answer, each after the row's own tokens.
    """

    row: int
    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    trained: Positions


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """What one training worker says of a checkpoint: rows, the factor of B·A in every layer, and the base's precision."""

    rows: tuple[NotedRow, ...]
    scaling: float
    precision: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedAnswer:
    """A served greedy answer: the prompt's tokens as the engine got them, and the `model` that the response names."""

    prompt: tuple[int, ...]
    positions: Positions
    model: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """Answers to the noted prompts, in their order: each arm alone, the adapter again from the cache, both at once."""

    model: str  # what the responses for the adapter have to name
    base: tuple[ServedAnswer, ...]
    adapter: tuple[ServedAnswer, ...]
    adapter_cached: tuple[ServedAnswer, ...]
    base_mixed: tuple[ServedAnswer, ...]
    adapter_mixed: tuple[ServedAnswer, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """PEFT over the published files, in the served precision, after the same tokens as the other side.

    `noted` follow the trainer's rows, `noted_base` too but without the adapter; `base` and `adapter` follow the served
    answers. `alternatives` follow the adapter's: what a server with a certain fault would say, by that fault.
    """

    scaling: float
    all_b_zero: bool
    stop_tokens: tuple[int, ...]
    noted: tuple[Positions, ...]
    noted_base: tuple[Positions, ...]
    base: tuple[Positions, ...] = ()
    adapter: tuple[Positions, ...] = ()
    alternatives: Mapping[str, tuple[Positions, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """What an adapter was proved with, kept beside it: the prompts as clients send them, the note, the served answers."""

    prompts: tuple[tuple[Mapping[str, str], ...], ...]
    note: Note
    served: Served | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One fault: a word for it, and a sentence with what was seen and what to do."""

    fault: str
    message: str


def chosen_rows(lengths: Sequence[int], count: int = ROWS) -> list[int]:
    """The rows to note, in order: the shortest, the longest, and others evenly between them by length."""
    by_length = sorted(range(len(lengths)), key=lambda row: (lengths[row], row))
    if len(by_length) <= count:
        return sorted(by_length)
    return sorted({by_length[round(place * (len(by_length) - 1) / (count - 1))] for place in range(count)})


def first_difference(
    trained: Sequence[int], served: Sequence[int], decode: Callable[[list[int]], str], *, server: str = "the server"
) -> str | None:
    """Where the tokens of a prompt differ between trainer and server, in tokens and as text; None when they are equal."""
    if list(trained) == list(served):
        return None
    pairs = zip(trained, served, strict=False)
    at = next((place for place, (ours, theirs) in enumerate(pairs) if ours != theirs), min(len(trained), len(served)))
    start, end = max(0, at - _AROUND), at + _AROUND
    return (
        f"the prompt's tokens differ from token {at} on: training saw {decode(list(trained[start:end]))!r} "
        f"({len(trained)} tokens in all), {server} sees {decode(list(served[start:end]))!r} ({len(served)}); "
        "serve the adapter's own base with that base's chat template, or train again with the template that is served"
    )


def check(
    note: Note | None, reference: Reference, served: Served | None, decode: Callable[[list[int]], str]
) -> tuple[Finding, ...]:
    """Every fault that the records show, a consequence of another one left out; none is the proof.

    Without a `note` the tokens and the files are not compared with the training, without `served` no server is.
    """
    findings = []
    if reference.all_b_zero or (moved := distance(reference.noted, reference.noted_base)).mean == 0 < moved.positions:
        findings.append(_no_effect(reference))
    if note is not None:
        findings += _saved(note, reference)
    if served is not None:
        findings += _tokens(note, served, decode) or _served(served, reference)
    return tuple(findings)


def check_again(record: Record, served: Served) -> tuple[Finding, ...]:
    """What has changed since the proof, from answers alone: tokens, names, base, adapter, cache and mixed batches.

    The answers of the proof stand in for PEFT's, so that neither the base nor torch is needed.
    """
    before = record.served
    if before is None:
        return tuple(_tokens(record.note, served, str))
    base, adapter = tuple(_positions(before.base)), tuple(_positions(before.adapter))
    then = Reference(
        scaling=record.note.scaling, all_b_zero=False, stop_tokens=(), noted=(), noted_base=(), base=base, adapter=adapter,
        alternatives={"no adapter": base},
    )  # fmt: skip
    return tuple(_tokens(record.note, served, str) or _served(served, then))


def refusal(text: str, *, rank: int) -> Finding:
    """What a server's refusal of the adapter means; `text` is its own."""
    if "rank" in text.lower():
        return Finding(
            fault="rank above the server's maximum",
            message=f"the server does not take an adapter of rank {rank}: {text}; set max_lora_rank in its serving file to at "
            f"least {rank}, or train a lower lora.rank",
        )
    if "does not exist" in text:
        where = "let prove_on be an endpoint over the same adapters_dir"
        return Finding(fault="not found", message=f"the server does not see the adapter: {text}; {where}")
    return Finding(fault="refused", message=f"the server does not take the adapter: {text}")


def figures(note: Note | None, reference: Reference, served: Served | None) -> dict[str, Any]:
    """What was measured, as plain values for a manifest: distances in nats, shares of equal tokens."""
    measured: dict[str, Any] = {"tolerance": TOLERANCE}
    if note is not None:
        trained = distance([row.trained for row in note.rows], reference.noted)
        measured["from_training_precision"] = {"precision": note.precision, **_plain(trained)}
    if served is not None:
        measured["base"] = _plain(distance(_positions(served.base), reference.base))
        measured["adapter"] = _plain(distance(_positions(served.adapter), reference.adapter))
        measured["alternatives"] = {
            name: distance(answers, reference.adapter).mean for name, answers in reference.alternatives.items()
        }
    return measured


def in_words(proof: Mapping[str, Any] | None) -> str:
    """A manifest's `proof` in one line."""
    if proof is None:
        return "not proved: it was published without"
    if not proof["checked"]:
        return f"not proved: {'; '.join(proof['not_checked'])}"
    words = f"proved on {proof['on']}: {', '.join(proof['checked'])}"
    if "adapter" in proof:
        words += f"; {proof['adapter']['mean']:.3f} nats per token from PEFT (tolerance {proof['tolerance']:g})"
    if "from_training_precision" in proof:
        cost = proof["from_training_precision"]
        words += (
            f"; served in bf16 instead of {cost['precision']}: {cost['same_tokens']:.0%} of tokens stay, first token "
            f"{cost['first_mean']:.3f} nats off on average, {cost['first_max']:.3f} at most"
        )
    return words + "".join(f"; NOT checked: {reason}" for reason in proof["not_checked"])


def _no_effect(reference: Reference) -> Finding:
    why = "every lora_B is zero" if reference.all_b_zero else "its weights are lost in bf16"
    return Finding(
        fault="zero B",
        message=f"the adapter does not change the base's answers: {why}; training taught it nothing: raise learning_rate or "
        "epochs, or lower warmup_steps",
    )


def _saved(note: Note, reference: Reference) -> list[Finding]:
    """The files against the model in the trainer's memory."""
    if abs(reference.scaling - note.scaling) > 1e-6 * note.scaling:
        return _one(
            "alpha of the files",
            f"training scaled the adapter by {note.scaling:g}, adapter_config.json says {reference.scaling:g} "
            "(lora_alpha, r and use_rslora); publish the files as training saved them",
        )
    learned = [row.answer for row in note.rows]
    if reference.stop_tokens and not any(set(answer) & set(reference.stop_tokens) for answer in learned):
        return _one(
            "no end of an answer",
            "no learned answer ends in a token at which the base stops (generation_config.json, eos_token_id), so "
            "served answers would never end; add the template's end-of-turn token to eos_token_id",
        )
    apart = distance([row.trained for row in note.rows], reference.noted)
    rounding = TOLERANCE if note.precision == SERVED_PRECISION else PRECISION_TOLERANCE
    if apart.exceeds(rounding):
        return _one(
            "files of another training",
            f"the files answer otherwise than the model in the trainer's memory did: {apart} "
            f"on its own rows, rounding explains {rounding:g}; train again, and report it when it stays",
        )
    return []


def _tokens(note: Note | None, served: Served, decode: Callable[[list[int]], str]) -> list[Finding]:
    for row, answer in zip(note.rows if note else (), served.adapter, strict=bool(note)):
        if (message := first_difference(row.prompt, answer.prompt, decode)) is not None:
            return [Finding(fault="wrong template", message=f"training row {row.row + 1}: {message}")]
    return []


def _served(served: Served, reference: Reference) -> list[Finding]:
    """The server against PEFT over the same files, and against itself."""
    wrong_names = sorted({answer.model for answer in (*served.adapter, *served.adapter_mixed)} - {served.model})
    if wrong_names:
        return _one(
            "another version",
            f"asked for {served.model}, the server answers as {', '.join(wrong_names)}; the name must say which "
            "adapter answered: serve this adapters_dir with `slm-ray serve`",
        )
    base = _positions(served.base)
    if (apart := distance(base, reference.base)).exceeds(TOLERANCE):
        return _one(
            "wrong base",
            f"without an adapter the server answers {apart} away from the base of the adapter "
            f"(rounding explains {TOLERANCE:g}): it serves another base, or one in other precision; serve the adapter's own",
        )
    adapter = _positions(served.adapter)
    findings = []
    if (apart := distance(adapter, reference.adapter)).exceeds(TOLERANCE):
        findings.append(_explained(adapter, apart, reference))
    if (apart := distance(_positions(served.adapter_cached), adapter)).exceeds(TOLERANCE):
        findings += _one(
            "stale prefix cache",
            f"with its prefix cache the server answers {apart} away from what it answers "
            "without: the cache holds another adapter's work; restart it, and never serve new weights under an old name",
        )
    return findings + _mixed(served, base, adapter)


def _explained(adapter: Sequence[Positions], apart: Distance, reference: Reference) -> Finding:
    """The alternative that the server's answers fit in the rows that are wrong, if there is one."""
    wrong = apart.far_rows(TOLERANCE)
    near = {
        name: distance(_at(adapter, wrong), _at(answers, wrong)).mean
        for name, answers in reference.alternatives.items()
    }
    fault = min(near, key=near.__getitem__, default="")
    if not fault or near[fault] > TOLERANCE or near[fault] > _mean(apart.rows, wrong) / 2:
        fault, fits = "other answers", "no fault that is known explains them"
    else:
        fits = f"they fit this fault: {fault} ({near[fault]:.2f})"
    return Finding(
        fault=fault,
        message=f"the served answers are {apart} away from the adapter's own (rounding explains "
        f"{TOLERANCE:g}); {fits}; correct the server, or serve with `slm-ray serve`",
    )


def _mixed(served: Served, base: Sequence[Positions], adapter: Sequence[Positions]) -> list[Finding]:
    base_mixed, adapter_mixed = _positions(served.base_mixed), _positions(served.adapter_mixed)
    apart = distance(base_mixed, base)
    if apart.exceeds(TOLERANCE):
        wrong = apart.far_rows(TOLERANCE)
        if distance(_at(base_mixed, wrong), _at(adapter, wrong)).mean < _mean(apart.rows, wrong) / 2:
            return _one(
                "stock CPU kernel",
                "base requests that share a batch with the adapter's are answered with the adapter: vLLM's own "
                "LoRA kernel for CPU does that; install slm_ray where vLLM runs, its plug-in replaces the kernel",
            )
        return _one(
            "base changed in mixed batches",
            f"the base's answers are {apart} away when adapter requests share its batch; do not "
            "serve this adapter beside the base, and report it",
        )
    if (apart := distance(adapter_mixed, adapter)).exceeds(TOLERANCE):
        return _one(
            "adapter changed in mixed batches",
            f"the adapter's answers are {apart} away when base requests share its batch; do not "
            "serve it beside the base, and report it",
        )
    return []


def _at(answers: Sequence[Positions], rows: Sequence[int]) -> list[Positions]:
    return [answers[row] for row in rows]


def _mean(values: Sequence[float], rows: Sequence[int]) -> float:
    return sum(values[row] for row in rows) / len(rows)


def _one(fault: str, message: str) -> list[Finding]:
    return [Finding(fault=fault, message=message)]


def _positions(answers: Sequence[ServedAnswer]) -> list[Positions]:
    return [answer.positions for answer in answers]


def _plain(apart: Distance) -> dict[str, Any]:
    return {
        "mean": apart.mean, "worst_row": apart.worst, "first_mean": apart.first_mean, "first_max": apart.first_max,
        "same_tokens": apart.same_tokens, "positions": apart.positions,
    }  # fmt: skip
