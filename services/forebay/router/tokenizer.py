"""The tokenizer port: text to a model's token ids, exactly as the engine would have them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from forebay.errors import Code, FieldViolation, MeshError
from forebay.router.domain.ask import Chat, Message, Prompt, Text, TokenIds


class Tokenizer(Protocol):
    """One model's tokenizer. Each process that tokenises has its own.

    Text stays text: whatever a message or a plain text says, no part of it becomes a control token of the model.
    """

    @property
    def vocabulary(self) -> int:
        """The number of token ids; each id is below it."""
        ...

    def encode_text(self, text: str) -> list[int]:
        """Returns the ids of plain text, with the marks that the model wants around one (such as a beginning-of-text token)."""
        ...

    def encode_chat(self, messages: Sequence[Message]) -> list[int]:
        """Returns the ids of a conversation as the model's template renders it, open for the model's answer.

        Raises:
            MeshError: INVALID_ARGUMENT when the template has no place for such a conversation, or the model has no template.
        """
        ...


class ByteTokenizer:
    """The port's in-memory twin: one token per UTF-8 byte, and byte 0 between the parts of a turn."""

    vocabulary = 256

    def encode_text(self, text: str) -> list[int]:
        """Returns the text's bytes."""
        return list(text.encode())

    def encode_chat(self, messages: Sequence[Message]) -> list[int]:
        """Returns role, byte 0, content, byte 0 for each message, and `assistant`, byte 0 after the last.

        A NUL that a message has is C0 80, as in Java's modified UTF-8.
        """
        parts = [part for message in messages for part in (message.role, message.content)]
        return list(b"".join(part.encode().replace(b"\0", b"\xc0\x80") + b"\0" for part in (*parts, "assistant")))


def encode(tokenizer: Tokenizer, prompt: Prompt, system_prompt: str) -> list[int]:
    """Returns a prompt's ids; the tenant's system prompt, if any, is the first turn of every conversation.

    Raises:
        MeshError: INVALID_ARGUMENT, as of `encode_chat`, or when nothing is left of the prompt.
    """
    match prompt:
        case Chat(messages):
            before = (Message("system", system_prompt),) if system_prompt else ()
            ids = tokenizer.encode_chat((*before, *messages))
        case Text(text):
            ids = tokenizer.encode_text(text)
        case TokenIds(given):
            ids = list(given)
    if not ids:
        raise unusable_prompt("prompt", "has no tokens")
    return ids


def unusable_prompt(field: str, description: str) -> MeshError:
    """Returns the error of a prompt that the model cannot be given."""
    violation = FieldViolation(field, description)
    return MeshError(Code.INVALID_ARGUMENT, "BAD_PROMPT", f"{field} {description}", field_violations=[violation])
