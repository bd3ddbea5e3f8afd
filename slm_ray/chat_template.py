"""How a base model is shown a chat: its own template, with a system turn that always arrives and a date that stands still.

Two things differ between bases and would make a served prompt another one than the trained one. Some templates refuse a
system turn, or show it only until an answer follows (Mistral); some write today's date (Llama 3.2). Both are settled here, by
a few lines in front of the base's template, so that one text renders alike in training, in counting tokens and in serving:
`open_tokenizer` of training sets it on the tokenizer, serving hands the same text to the engine.

Promises: the same base gives the same text everywhere and every day; a template that needs neither is left as it is. A chat
that the template refuses is a DataError in plain words. Not promised: turns that the template cannot show at all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

from jinja2 import TemplateError, TemplateSyntaxError

from slm_ray.errors import DataError, ModelError

PINNED_DATE = "26 Jul 2024"  # what Llama 3's own templates say where there is no clock

_SYSTEM, _USER, _ANSWER, _NEXT = "systemprobe", "userprobe", "answerprobe", "nextprobe"

# Each ends in one line break behind a block, which the renderer drops: the base's template below is untouched.
_FOLD = """\
{%- if messages and messages[0]['role'] == 'system' and messages[1:] and messages[1]['role'] == 'user' %}
{%- set folded = messages[0]['content'] | trim %}
{%- set folded = folded ~ '\\n\\n' ~ messages[1]['content'] if folded else messages[1]['content'] %}
{%- set messages = [dict(messages[1], content=folded)] + messages[2:] %}
{%- endif %}
"""
_DIRECTIVES = {
    "%d": "26", "%-d": "26", "%e": "26", "%j": "208", "%m": "07", "%-m": "7", "%b": "Jul", "%h": "Jul", "%B": "July",
    "%y": "24", "%Y": "2024", "%G": "2024", "%F": "2024-07-26", "%D": "07/26/24", "%x": "07/26/24", "%a": "Fri",
    "%A": "Friday", "%w": "5", "%u": "5", "%U": "29", "%W": "30", "%V": "30", "%H": "00", "%-H": "0", "%I": "12",
    "%-I": "12", "%p": "AM", "%M": "00", "%S": "00", "%f": "000000", "%T": "00:00:00", "%R": "00:00", "%X": "00:00:00",
    "%c": "Fri Jul 26 00:00:00 2024", "%s": "1721952000", "%z": "", "%Z": "", "%%": "%",
}  # fmt: skip
_CLOCK = "strftime_now"
_PIN = (
    "{%- macro strftime_now(format) %}{{- format"
    + "".join(f" | replace('{directive}', '{value}')" for directive, value in _DIRECTIVES.items())
    + " }}{%- endmacro %}\n"
)

Render = Callable[[list[dict[str, str]], bool], str]


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatTemplate:
    """A base's template as it is rendered everywhere.

    `text` is Jinja. `system` says how a system turn is shown: by the template itself (own), or put in front of the first
    user's turn with a blank line between (fold). `date_pinned`: the template asks the clock, and is answered `PINNED_DATE`.
    """

    text: str
    system: Literal["own", "fold"]
    date_pinned: bool

    @property
    def is_the_base_s_own(self) -> bool:
        """Whether nothing had to be put in front of it."""
        return self.system == "own" and not self.date_pinned

    def __str__(self) -> str:
        if self.is_the_base_s_own:
            return "the base's own"
        folded = "the system turn stands in front of the first user's turn" if self.system == "fold" else ""
        return "; ".join(filter(None, (folded, f"the date is always {PINNED_DATE}" if self.date_pinned else "")))


def decide(tokenizer: Any) -> ChatTemplate:
    """What a tokenizer's template does with a system turn and with the clock, found by rendering short chats.

    ModelError for a template that is no Jinja.
    """
    own: str = tokenizer.get_chat_template()
    pinned = (_PIN if _CLOCK in own else "") + own
    folding = _FOLD + pinned
    try:
        show = _shows_system(_renderer(tokenizer, pinned))
        fold = show != "always" and _better(_shows_system(_renderer(tokenizer, folding)), show)
    except TemplateSyntaxError as error:
        raise ModelError(f"the base's chat template is no Jinja ({error}); repair chat_template.jinja") from None
    return ChatTemplate(text=folding if fold else pinned, system="fold" if fold else "own", date_pinned=_CLOCK in own)


def served_template(base: str) -> str | None:
    """The text that whoever serves the base (a folder, or a hub name) renders chats with; None: the base's own."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base, mistral_format=False)
    if not tokenizer.chat_template:
        return None
    decided = decide(tokenizer)
    return None if decided.is_the_base_s_own else decided.text


def rendered(tokenizer: Any, messages: Sequence[Mapping[str, str]], *, answer_next: bool) -> str:
    """A chat as the tokenizer's template writes it; `answer_next` ends it where the assistant starts to write.

    DataError when the template refuses it, with the template's own reason and what to do.
    """
    try:
        text: str = tokenizer.apply_chat_template(list(messages), add_generation_prompt=answer_next, tokenize=False)
    except TemplateError as error:
        raise DataError(f"the base's chat template refuses this chat: {error}; {_remedy(messages)}") from None
    return text


def _remedy(messages: Sequence[Mapping[str, str]]) -> str:
    roles = [message["role"] for message in messages]
    turns = roles[1:] if roles[:1] == ["system"] else roles
    shown = ", ".join(roles[:8]) + (", …" if len(roles) > 8 else "")
    if turns[:1] != ["user"] or "system" in turns or any(one == other for one, other in pairwise(turns)):
        return (
            f"its turns are {shown}; let user and assistant alternate, the user first (join turns of the same side), or "
            "take a base whose template shows such chats"
        )
    return f"its turns are {shown}; take a base whose template shows such chats"


def _renderer(tokenizer: Any, template: str) -> Render:
    def render(messages: list[dict[str, str]], answer_next: bool) -> str:
        text: str = tokenizer.apply_chat_template(
            messages, chat_template=template, add_generation_prompt=answer_next, tokenize=False
        )
        return text

    return render


def _shows_system(render: Render) -> Literal["always", "moving", "never"]:
    """Whether a system turn is shown, and in one place however long the chat gets; "moving" otherwise."""
    system, user, answer, following = (
        {"role": role, "content": text}
        for role, text in (("system", _SYSTEM), ("user", _USER), ("assistant", _ANSWER), ("user", _NEXT))
    )
    try:
        prompt = render([system, user], True)
        longer = [render([system, user, answer], False), render([system, user, answer, following], True)]
    except TemplateSyntaxError:
        raise
    except TemplateError:
        return "never"
    if _SYSTEM not in prompt:
        return "never"
    stays = all(_SYSTEM in text and text.startswith(prompt) for text in longer)
    return "always" if stays else "moving"


def _better(folded: str, own: str) -> bool:
    rank = ("never", "moving", "always")
    return rank.index(folded) > rank.index(own)
