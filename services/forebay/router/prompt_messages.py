"""Prompts of the public contract to the router's own values; apart, because tokenizer processes need no more of the contract."""

from __future__ import annotations

from array import array

from google.protobuf.message import DecodeError

from forebay.api.router.v1 import router_pb2
from forebay.errors import Code, MeshError
from forebay.router.domain.ask import Chat, Message, Prompt, Text, TokenIds
from forebay.router.domain.validation import MAX_MESSAGES


def read_prompt(data: bytes) -> Prompt | None:
    """Returns the prompt in a message's bytes, or None when there is none.

    Raises:
        MeshError: INVALID_ARGUMENT MALFORMED_MESSAGE.
    """
    try:
        message = router_pb2.Prompt.FromString(data)
    except DecodeError:
        text = "the prompt cannot be read as the contract's; generate the stubs anew, or see what stands in between"
        raise MeshError(Code.INVALID_ARGUMENT, "MALFORMED_MESSAGE", text) from None
    match message.WhichOneof("form"):
        case "chat":
            # A message may hold millions of turns. One too many is known by its number, and no more are made.
            turns = message.chat.messages[: MAX_MESSAGES + 1]
            return Chat(tuple(Message(turn.role, turn.content) for turn in turns))
        case "text":
            return Text(message.text)
        case "tokens":
            return TokenIds(array("I", message.tokens.ids))
    return None
