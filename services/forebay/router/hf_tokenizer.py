"""Tokenizers in Hugging Face's files: `tokenizer.json` by the library `tokenizers`, the chat template by Jinja.

The ids are those that `transformers` would give the engine, without importing it, as long as no text has the literal of a control
token. Text stays text: no message can make a control token, which is how a user would forge another's turn. Only the chat
template makes control tokens, and for plain text the tokenizer's post-processor.

*How a forged control token is noticed.* The control tokens of a conversation follow from its roles while nobody forges any. So
they are compared with those of a conversation of the same roles that says nothing (`_expected`). If they are the same, and no
message has a literal, the ids stand. That is so for nearly all prompts, and costs next to nothing.

*How it becomes text.* Otherwise the conversation is rendered again with the clients' characters in disguise (disguise.py). A
control token with a disguised character is the clients': one of them wrote it out, or it was put together from several messages,
by a filter of the template, or by the normaliser. The other control tokens are the template's. Everything else is encoded by the
tokenizer to which literals are text (control_tokens.py).

*Which characters are disguised.* All but white space, if the template treats the disguised conversation as it treats the
original. A template that looks at what a message says may not. Then only the marks are disguised, such as `<` and `|`, without
which there is no control token. If the template looks at these, too, only literals are disguised. If that leaves control tokens
that the disguised marks did not, the conversation with the disguised marks is encoded: safety goes before how the template treats
such a message.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import tokenizers

from forebay.config import ConfigError
from forebay.errors import MeshError
from forebay.router.chat_template import ChatTemplate
from forebay.router.control_tokens import Control, ControlTokens, encoded
from forebay.router.disguise import Disguise
from forebay.router.domain.ask import Message
from forebay.router.domain.validation import ROLES
from forebay.router.tokenizer import unusable_prompt

_REMEMBERED_ROLES = 256

_UNKNOWN = [-1]


class HfTokenizer:
    """The tokenizer of one model's directory."""

    def __init__(self, directory: Path) -> None:
        """Reads the files.

        Raises:
            ConfigError: a file is missing or cannot be read; the message says which.
        """
        try:
            self._tokenizer = tokenizers.Tokenizer.from_file(str(directory / "tokenizer.json"))
        except Exception as error:  # the library raises nothing narrower
            raise ConfigError(f"{directory / 'tokenizer.json'}: cannot be read: {error}") from None
        # A file may ask for cutting and filling up, which are for training.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.vocabulary: int = max(self._tokenizer.get_vocab(with_added_tokens=True).values()) + 1
        self._template = ChatTemplate(directory)
        self._controls = ControlTokens(self._tokenizer)
        self._around_text = self._controls.among(encoded(self._tokenizer, "", add_special_tokens=True))
        self._expected_controls: dict[tuple[str, ...], list[int] | None] = {}

    def encode_text(self, text: str) -> list[int]:
        """Returns the ids of plain text, with the special tokens that the model's tokenizer puts around one."""
        if not self._controls.literal_in(text):
            ids = encoded(self._tokenizer, text, add_special_tokens=True)
            if self._controls.among(ids) == self._around_text:
                return ids
        return self._controls.encode(text, add_special_tokens=True)

    def encode_chat(self, messages: Sequence[Message]) -> list[int]:
        """Returns the ids of a conversation, with the beginning of the assistant's turn after it."""
        prompt = self.render(messages)
        texts = _texts(messages)
        if not any(map(self._controls.literal_in, texts)):
            ids = encoded(self._tokenizer, prompt, add_special_tokens=False)
            if self._controls.among(ids) == self._expected(messages):
                return ids

        prompt, controls = self._own(prompt, messages, texts)
        return self._controls.encode(prompt, controls, add_special_tokens=False)

    def render(self, messages: Sequence[Message]) -> str:
        """Returns a conversation as text.

        Raises:
            MeshError: INVALID_ARGUMENT when the template refuses the conversation, or the model has no template.
        """
        return self._template.render(messages)

    def _expected(self, messages: Sequence[Message]) -> list[int] | None:
        """Returns the control tokens of a conversation of the same roles that says nothing; None if the template refuses that."""
        roles = tuple(message.role for message in messages)
        known = self._expected_controls
        if (expected := known.get(roles, _UNKNOWN)) is not _UNKNOWN:
            return expected
        prompt = self._rendered(messages, lambda text: "a")
        expected = None
        if prompt is not None:
            expected = self._controls.among(encoded(self._tokenizer, prompt, add_special_tokens=False))
        if len(known) >= _REMEMBERED_ROLES:
            known.clear()
        known[roles] = expected
        return expected

    def _own(self, prompt: str, messages: Sequence[Message], texts: list[str]) -> tuple[str, list[Control]]:
        """Returns the prompt to be encoded, the given one if possible, and which of its control tokens are the template's own.

        Raises:
            MeshError: INVALID_ARGUMENT when the template renders the conversation only with the control tokens in it.
        """
        find, expected = self._controls.find, self._expected(messages)
        safe, allowed = None, None if expected is None else Counter(expected)
        for hides in (_no_space, self._controls.is_mark):
            disguise = Disguise(texts, prompt, hides)
            hidden = self._rendered(messages, disguise.put_on)
            if hidden is None:
                continue
            if disguise.take_off(hidden) == prompt:
                return prompt, _untouched(prompt, hidden, find(prompt), find(hidden))
            own = find(hidden)
            safe, allowed = (disguise.take_off(hidden), own), _counts(own)
        disguise = Disguise(texts, prompt, _no_space)
        hidden = self._rendered(messages, lambda text: _hidden_literals(text, find(text), disguise))
        if hidden is not None and allowed is not None and _counts(own := find(hidden)) <= allowed:
            return disguise.take_off(hidden), own
        if safe is None:
            raise unusable_prompt("prompt.chat", "has control tokens of the model in a message; leave them out")
        return safe

    def _rendered(self, messages: Sequence[Message], change: Callable[[str], str]) -> str | None:
        """Returns a conversation as text with each of its messages changed; None if the template refuses that."""
        try:
            return self.render([_changed(message, change) for message in messages])
        except MeshError:
            return None


def _texts(messages: Sequence[Message]) -> list[str]:
    """Returns what clients have written; a role is one of a few words."""
    return [message.content for message in messages] + [m.role for m in messages if m.role not in ROLES]


def _changed(message: Message, change: Callable[[str], str]) -> Message:
    role = message.role if message.role in ROLES else change(message.role)
    return Message(role, change(message.content))


def _hidden_literals(text: str, literals: list[Control], disguise: Disguise) -> str:
    parts: list[str] = []
    last = 0
    for literal in literals:
        parts += text[last : literal.start], disguise.put_on(text[literal.start : literal.end])
        last = literal.end
    return "".join((*parts, text[last:]))


def _no_space(char: str) -> bool:
    return not char.isspace()


def _counts(controls: list[Control]) -> Counter[int]:
    return Counter(control.token for control in controls)


def _untouched(prompt: str, hidden: str, found: list[Control], own: list[Control]) -> list[Control]:
    """Returns the control tokens of a prompt that are the template's own.

    Args:
        prompt, hidden: the prompt, and the same with the clients' characters in disguise.
        found, own: the control tokens in each.
    """
    forged = [control for control in found if _differs(prompt, hidden, control)]
    genuine = set(found)
    controls, at = [], 0
    for control in own:
        while at < len(forged) and forged[at].end <= control.start:
            at += 1
        # One that is found only in the disguised prompt may be so because a forged one took some of its characters.
        displaced = at < len(forged) and forged[at].start < control.end
        if (control in genuine or displaced) and not _differs(prompt, hidden, control):
            controls.append(control)
    return controls


def _differs(prompt: str, hidden: str, control: Control) -> bool:
    return prompt[control.start : control.end] != hidden[control.start : control.end]
