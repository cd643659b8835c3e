"""What a router and its tokenizer processes say to each other, over a pipe: a header in JSON and then plain bytes.

A process takes a `Job` and answers with a `Tokens` or an error. Nothing here is unpickled: a process that works on a client's
text is believed no more than the numbers that it sends.
"""

from __future__ import annotations

import json
import struct
from array import array
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from forebay.errors import Code, FieldViolation, MeshError

PREFIX = struct.Struct("<II")


@dataclass(frozen=True, slots=True)
class Job:
    """A prompt to tokenise.

    Attributes:
        model: its name.
        system_prompt: the tenant's; empty for none.
        most_ids: a prompt with more tokens is only counted.
        prompt: a `Prompt` of the public contract as bytes.
    """

    model: str
    system_prompt: str
    most_ids: int
    prompt: bytes


@dataclass(frozen=True, slots=True)
class Tokens:
    """A prompt's tokens.

    Attributes:
        count: how many.
        ids: the tokens, 4 bytes each in memory; empty when there are more than were asked for.
    """

    count: int
    ids: Sequence[int]

    @classmethod
    def of(cls, ids: Sequence[int], most_ids: int) -> Tokens:
        """Returns the tokens of a prompt, at most `most_ids` of them or none."""
        return cls(len(ids), array("I", ids if len(ids) <= most_ids else ()))


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """What a tokenizer process knows of a model.

    Attributes:
        context_tokens: prompt and completion together.
    """

    name: str
    directory: str
    context_tokens: int


def frame(header: dict[str, Any], body: bytes = b"") -> bytes:
    """Returns a message for the pipe."""
    head = json.dumps(header).encode()
    return b"".join((PREFIX.pack(len(head), len(body)), head, body))


def job_frame(job: Job) -> bytes:
    """Returns a job for the pipe."""
    return frame({"model": job.model, "system_prompt": job.system_prompt, "most_ids": job.most_ids}, job.prompt)


def read_job(header: dict[str, Any], body: bytes) -> Job:
    """Returns the job of a frame."""
    return Job(header["model"], header["system_prompt"], header["most_ids"], body)


def tokens_frame(tokens: Tokens) -> bytes:
    """Returns an answer for the pipe."""
    return frame({"count": tokens.count}, array("I", tokens.ids).tobytes())


def error_frame(error: MeshError) -> bytes:
    """Returns an error for the pipe; of a prompt's errors, all that they have."""
    fields = [asdict(violation) for violation in error.field_violations]
    return frame({"code": error.code.name, "reason": error.reason, "message": error.message, "fields": fields})


def read_answer(header: dict[str, Any], body: bytes) -> Tokens:
    """Returns the answer of a frame, or raises the error that it is."""
    if "code" in header:
        fields = [FieldViolation(**field) for field in header["fields"]]
        raise MeshError(Code[header["code"]], header["reason"], header["message"], field_violations=fields)
    ids = array("I")
    ids.frombytes(body)
    return Tokens(header["count"], ids)
