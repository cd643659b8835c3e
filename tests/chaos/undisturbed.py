"""The answers of an engine that nobody disturbs: the same simulated engine as the workers', in this process, stepped by hand."""

from __future__ import annotations

from collections.abc import Sequence

from forebay.worker.engine import EngineRequest, Sampling
from forebay.worker.simulated_engine import SimulatedEngine

from .plan import Ask
from .records import Answer


async def undisturbed_answers(asks: Sequence[Ask]) -> list[Answer]:
    """Returns the answer to each, in their order."""
    engine = SimulatedEngine(manual=True)
    await engine.start(lambda step: None)
    tokens: list[list[int]] = [[] for _ in asks]
    texts = [""] * len(asks)
    for ask in asks:
        engine.add(_request(ask))
    while step := engine.step():
        for output in step.outputs:
            number = int(output.attempt_id)
            tokens[number] += output.token_ids
            texts[number] += output.text
    await engine.close()
    return [Answer(tuple(ids), text) for ids, text in zip(tokens, texts, strict=True)]


def _request(ask: Ask) -> EngineRequest:
    return EngineRequest(
        attempt_id=str(ask.number),
        prompt_token_ids=ask.prompt,
        delivered_token_ids=(),
        held_text="",
        sampling=Sampling(
            max_tokens=ask.max_tokens,
            min_tokens=0,
            temperature=1.0,
            top_p=1.0,
            top_k=0,
            min_p=0.0,
            seed=ask.seed,
            stop=ask.stop,
            stop_token_ids=(),
            ignore_eos=ask.ignore_eos,
            presence_penalty=0.0,
            frequency_penalty=0.0,
            repetition_penalty=1.0,
        ),
        cache_salt="",
        priority=0,
        adapter="",
    )
