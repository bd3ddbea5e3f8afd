"""What is taken out of a request and its answers before they are written: named patterns, own ones, users, or all text.

Every text is searched: values and keys of the request, answers, reasons, feedback. What is found becomes its name in
brackets (`[email]`), so a row still reads. A text on which a pattern takes too long is withheld as a whole, since nobody
can say that it is clean. Patterns find what looks like an address, a number or a key, and nothing else: names, streets and
what is spelled out stay. What a client names its user by becomes a salted hash and leaves the request.
"""

from __future__ import annotations

import dataclasses
import hashlib
import hmac
import ipaddress
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import regex

from slm_ray.errors import ConfigError, choices
from slm_ray.traffic.record import ArmAnswer, Entry, Feedback, TrafficRow

WITHHELD = "[withheld]"
_TIMEOUT_S = 0.25
_USER_KEYS = frozenset({"user", "safety_identifier", "prompt_cache_key"})
_NAME = regex.compile(r"[a-z][a-z0-9_]{0,31}")

Check = Callable[[str], bool]


def _digits(text: str) -> list[int]:
    return [int(char) for char in text if char.isdecimal()]


def _is_card(text: str) -> bool:
    """Luhn's check over 13 to 19 digits."""
    digits = _digits(text)
    doubled = [digit * 2 - 9 * (digit > 4) for digit in digits[-2::-2]]
    return 13 <= len(digits) <= 19 and any(digits) and (sum(doubled) + sum(digits[-1::-2])) % 10 == 0


def _is_phone(text: str) -> bool:
    return 7 <= len(_digits(text)) <= 15


def _is_address(text: str) -> bool:
    try:
        # Without a digit it is more likely a name of C++.
        return bool(ipaddress.ip_address(text)) and any(_digits(text))
    except ValueError:
        return False


ALL_TEXT = "text"  # named beside patterns: no text is written
# What is looked for under one name: texts of which one has to be there, so that most texts are passed over at once; the
# pattern, bounded or possessive, so that it takes linear time; a check of what it matched. The order matters: a key may hold
# what looks like a number.
PATTERNS: Mapping[str, Sequence[tuple[Sequence[str], str, Check | None]]] = {
    "api_key": (
        (
            ("-----BEGIN",),
            r"-----BEGIN [A-Z ]{0,30}PRIVATE KEY-----.{0,8000}?(?:-----END [A-Z ]{0,30}PRIVATE KEY-----|\Z)",
            None,
        ),
        (("eyJ",), r"\beyJ[\w-]{8,}+\.[\w-]{8,}+\.[\w-]{8,}+", None),
        (("sk-", "sk_", "pk-", "pk_", "rk-", "rk_"), r"\b[spr]k[-_][\w-]{16,}+", None),
        (
            ("gho_", "ghp_", "ghr_", "ghs_", "ghu_", "github_pat_", "glpat-", "hf_", "xox", "AIza"),
            r"\b(?:gh[opusr]_|github_pat_|glpat-|hf_|xox[abprs]-|AIza)[\w-]{16,}+",
            None,
        ),
        (("AKIA", "ASIA"), r"\bA[KS]IA[0-9A-Z]{16}\b", None),
        (("earer", "EARER"), r"\b(?i:bearer)\s{1,4}[\w.~+/-]{16,}+=*+", None),
    ),
    "email": ((("@",), r"(?<![\w.+-])[\w.+-]{1,64}+@[\w-]{1,63}+(?:\.[\w-]{1,63}+){1,8}", None),),
    "card": (((), r"(?<!\d)\d(?:[ -]?\d){12,18}(?!\d)", _is_card),),
    "ip": (
        (
            ("::",),
            r"(?<![\w:.])[0-9A-Fa-f:]{0,38}::(?:(?:[0-9A-Fa-f]{1,4}:){0,5}\d{1,3}(?:\.\d{1,3}){3}|[0-9A-Fa-f:]{0,38})(?![\w:]|\.\d)",
            _is_address,
        ),
        ((":",), r"(?<![\w:.])(?:[0-9A-Fa-f]{1,4}:){7}[0-9A-Fa-f]{1,4}(?![\w:])", _is_address),
        ((".",), r"(?<![\w.])\d{1,3}(?:\.\d{1,3}){3}(?!\w|\.\d)", _is_address),
    ),
    "phone": (
        (
            (),
            r"(?<![\w.+])(?:(?:\+|00)[1-9](?:[ ()./-]{0,2}\d){6,14}"
            r"|\(?\d{3}\)?[ .-]\d{3}[ .-]\d{4}"
            r"|\(?0[1-9]\d{1,3}\)?[ /-]{1,2}\d{3,}(?:[ -]?\d{2,4}){0,4})(?![\w-])",
            _is_phone,
        ),
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rule:
    name: str
    needs: Sequence[str]
    pattern: regex.Pattern[str]
    check: Check | None

    def applied(self, text: str) -> str:
        """The text with what the rule finds replaced; TimeoutError where that takes too long."""
        if self.needs and not any(needed in text for needed in self.needs):
            return text

        def replaced(match: regex.Match[str]) -> str:
            return f"[{self.name}]" if self.check is None or self.check(match.group()) else match.group()

        return str(self.pattern.sub(replaced, text, concurrent=True, timeout=_TIMEOUT_S))


class Redaction:
    """Redacts entries for one log; `salt` makes its hashes. Holds no text.

    `withheld` counts the texts that were withheld because a pattern took too long on them.
    """

    def __init__(self, names: Sequence[str] = tuple(PATTERNS), patterns: Mapping[str, str] | None = None) -> None:
        """`names` of patterns, and ALL_TEXT; ConfigError for another name and for a pattern that cannot be used."""
        for name in names:
            if name not in (*PATTERNS, ALL_TEXT):
                raise ConfigError(f"unknown pattern {name!r} to redact: {choices(name, (*PATTERNS, ALL_TEXT))}")
        self._rules = [
            *(_own(name, pattern) for name, pattern in (patterns or {}).items()),
            *(
                _Rule(name=name, needs=needs, pattern=regex.compile(pattern, regex.DOTALL), check=check)
                for name, kinds in PATTERNS.items()
                if name in names
                for needs, pattern, check in kinds
            ),
        ]
        self._keep_text = ALL_TEXT not in names
        self.withheld = 0

    def entry(self, entry: Entry, salt: bytes) -> Entry:
        """The entry as it may be written."""
        return self._row(entry, salt) if isinstance(entry, TrafficRow) else self._feedback(entry, salt)

    def text(self, text: str) -> str:
        """The text without what the rules find."""
        text = writable(text)
        if text.startswith("data:") and ";base64," in text[:100]:
            return "[data]"
        for rule in self._rules:
            try:
                text = rule.applied(text)
            except TimeoutError:
                self.withheld += 1
                return WITHHELD
        return text

    def _row(self, row: TrafficRow, salt: bytes) -> TrafficRow:
        request = {name: value for name, value in row.request.items() if name not in _USER_KEYS}
        return dataclasses.replace(
            row,
            user=None if row.user is None else keyed_hash(row.user, salt)[:16],
            request=self._value(request) if self._keep_text else _counted(request, salt),
            answers=tuple(self._answer(answer, salt) for answer in row.answers),
            fallback=self._reason(row.fallback),
            feedback=(),
        )

    def _answer(self, answer: ArmAnswer, salt: bytes) -> ArmAnswer:
        text, reason, answer = answer.text, answer.reason, dataclasses.replace(answer, model=writable(answer.model))
        digest, chars = (None, None) if text is None else (keyed_hash(text, salt), len(text))
        if not self._keep_text:
            return dataclasses.replace(answer, text=None, digest=digest, chars=chars, reason=self._reason(reason))
        left = None if text is None else self.text(text)
        return dataclasses.replace(
            answer, text=left, digest=digest, chars=chars, redacted=text is not None and left != writable(text),
            reason=self._reason(reason),
        )  # fmt: skip

    def _reason(self, reason: str | None) -> str | None:
        """Without texts the kind of a failure alone: what it says may quote the question."""
        if reason is None or self._keep_text:
            return None if reason is None else self.text(reason)
        return reason.split(maxsplit=1)[0].rstrip(":")[:40] if reason.strip() else ""

    def _feedback(self, feedback: Feedback, salt: bytes) -> Feedback:
        if feedback.answer is None:
            return feedback
        left = self.text(feedback.answer)
        redacted = left != writable(feedback.answer)
        return dataclasses.replace(feedback, answer=left if self._keep_text else None, redacted=redacted)

    def _value(self, value: Any) -> Any:
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, Mapping):
            return {self.text(str(key)): self._value(inner) for key, inner in value.items()}
        if isinstance(value, list | tuple):
            return [self._value(inner) for inner in value]
        return value


def writable(text: str) -> str:
    """The text without half surrogate pairs, which JSON may hold and UTF-8 may not."""
    return text.encode("utf-8", "replace").decode("utf-8")


def keyed_hash(text: str, salt: bytes) -> str:
    """HMAC-SHA-256 in hex: nobody without the salt can try out what `text` may have been."""
    return hmac.new(salt, text.encode("utf-8", "replace"), hashlib.sha256).hexdigest()


def _own(name: str, pattern: str) -> _Rule:
    where = f"patterns.{name}"
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"{where}: a name is lower-case letters, digits and _, since it stands in brackets in the text"
        )
    if name in PATTERNS:
        raise ConfigError(f"{where}: a built-in pattern has this name; choose another")
    try:
        compiled = regex.compile(pattern)
        empty = compiled.match("", timeout=_TIMEOUT_S)
    except (regex.error, TimeoutError) as error:
        raise ConfigError(f"{where}: {pattern!r} is no regular expression ({error}); mend it") from None
    if empty:
        raise ConfigError(f"{where}: {pattern!r} matches the empty text, so it would match everywhere; write + for *")
    return _Rule(name=name, needs=(), pattern=compiled, check=None)


def _counted(request: Mapping[str, Any], salt: bytes) -> dict[str, Any]:
    """A request without its texts: a hash of its messages, how many there are, and how many characters they have."""
    messages = request.get("messages")
    turns = messages if isinstance(messages, list) else []
    chars = sum(
        len(turn["content"]) for turn in turns if isinstance(turn, dict) and isinstance(turn.get("content"), str)
    )
    numbers = {name: value for name, value in request.items() if isinstance(value, bool | int | float)}
    return {"digest": keyed_hash(repr(messages), salt), "turns": len(turns), "chars": chars, **numbers}
