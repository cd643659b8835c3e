"""A process that renders and tokenises long prompts: `python -m forebay.router.tokenizer_process`.

It reads frames (`tokenizer_frames`) from standard input and writes one answer to each on standard output: first `{"models": …}`,
answered once the tokenizers are loaded, then jobs. It ends when its input does, and so with its router, whichever way that ends.
Its priority is below that of the router, whose event loop has everybody's answers to deliver.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import IO, Any

from forebay.errors import Code, MeshError
from forebay.memory import give_back_early, trim
from forebay.router.domain.ask import ModelCard
from forebay.router.domain.validation import check_prompt
from forebay.router.hf_tokenizer import HfTokenizer
from forebay.router.prompt_messages import read_prompt
from forebay.router.tokenizer import Tokenizer, encode
from forebay.router.tokenizer_frames import (
    PREFIX,
    Job,
    ModelFiles,
    Tokens,
    error_frame,
    frame,
    read_job,
    tokens_frame,
)

NICENESS = 10
# After a prompt of this size what the C library holds on to is worth giving back.
LARGE_BYTES = 256 << 10


def tokens_of(job: Job, tokenizer: Tokenizer, card: ModelCard, max_prompt_bytes: int) -> Tokens:
    """Returns the tokens of a job.

    Raises:
        MeshError: INVALID_ARGUMENT; what is wrong with the prompt.
    """
    prompt = read_prompt(job.prompt)
    check_prompt(prompt, card, tokenizer.vocabulary, bool(job.system_prompt), max_prompt_bytes)
    assert prompt is not None
    return Tokens.of(encode(tokenizer, prompt, job.system_prompt), job.most_ids)


def serve(source: IO[bytes], sink: IO[bytes]) -> None:
    """Answers frames until there are no more."""
    header, _ = _next_frame(source) or ({"models": [], "max_prompt_bytes": 0}, b"")
    max_prompt_bytes = header["max_prompt_bytes"]
    files = [ModelFiles(**model) for model in header["models"]]
    models = {
        file.name: (HfTokenizer(Path(file.directory)), ModelCard(file.name, file.context_tokens, 1)) for file in files
    }
    _write(sink, frame({"loaded": len(models)}))
    while (read := _next_frame(source)) is not None:
        job = read_job(*read)
        try:
            answer = tokens_frame(tokens_of(job, *models[job.model], max_prompt_bytes))
        except MeshError as error:
            answer = error_frame(error)
        except Exception as error:
            # The kind of the error alone: its text may hold the prompt.
            sys.stderr.write(f"tokenizing failed: {type(error).__name__}\n")
            answer = error_frame(MeshError(Code.INTERNAL, "BUG", "the service failed; its log has the details"))
        _write(sink, answer)
        size = len(job.prompt)
        del read, job, answer
        if size >= LARGE_BYTES:
            trim()


def _next_frame(source: IO[bytes]) -> tuple[dict[str, Any], bytes] | None:
    prefix = source.read(PREFIX.size)
    if len(prefix) < PREFIX.size:
        return None
    head_size, body_size = PREFIX.unpack(prefix)
    return json.loads(source.read(head_size)), source.read(body_size)


def _write(sink: IO[bytes], answer: bytes) -> None:
    sink.write(answer)
    sink.flush()


def main() -> None:
    """Serves until standard input ends. A signal to the group, such as Ctrl-C, is the router's to act on."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    give_back_early()
    os.nice(NICENESS)
    # Nothing but answers may be written where the router reads them.
    sink = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    try:
        serve(sys.stdin.buffer, sink)
    except BrokenPipeError:
        pass  # the router has gone


if __name__ == "__main__":
    main()
