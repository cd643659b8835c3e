"""What the engine tests build and read."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from forebay.worker.domain.step_cost import FREE
from forebay.worker.engine import Capacity, EngineRequest, FinishReason, Output, Sampling, Step
from forebay.worker.simulated_engine import SimulatedEngine

SAMPLING = Sampling(
    max_tokens=16,
    min_tokens=0,
    temperature=0.0,
    top_p=1.0,
    top_k=0,
    min_p=0.0,
    seed=7,
    stop=(),
    stop_token_ids=(),
    ignore_eos=False,
    presence_penalty=0.0,
    frequency_penalty=0.0,
    repetition_penalty=1.0,
)
SMALL = Capacity(
    kv_tokens=4_096, block_tokens=4, max_num_seqs=8, max_num_batched_tokens=64, max_model_len=512, max_adapters=0
)


def request(
    attempt_id: str = "a/1",
    prompt: Sequence[int] = range(300, 310),
    delivered: Sequence[int] = (),
    held_text: str = "",
    *,
    salt: str = "salt",
    priority: int = 0,
    adapter: str = "",
    **sampling: object,
) -> EngineRequest:
    """A request; further keywords are fields of Sampling."""
    return EngineRequest(
        attempt_id,
        prompt,
        delivered,
        held_text,
        replace(SAMPLING, **sampling),  # type: ignore[arg-type]
        salt,
        priority,
        adapter,
    )


async def hand_engine(capacity: Capacity = SMALL, **options: object) -> SimulatedEngine:
    """A started engine that moves by `step()` alone; steps cost nothing by default."""
    engine = SimulatedEngine(capacity, **{"cost": FREE, "manual": True, **options})  # type: ignore[arg-type]
    await engine.start(lambda step: None)
    return engine


@dataclass
class Transcript:
    """All outputs of one attempt."""

    outputs: list[Output] = field(default_factory=list)

    @property
    def token_ids(self) -> list[int]:
        return [token for output in self.outputs for token in output.token_ids]

    @property
    def text(self) -> str:
        return "".join(output.text for output in self.outputs)

    @property
    def finish(self) -> FinishReason | None:
        return self.outputs[-1].finish if self.outputs else None


def transcripts(steps: Iterable[Step]) -> dict[str, Transcript]:
    """The outputs of each attempt."""
    found: dict[str, Transcript] = {}
    for step in steps:
        for output in step.outputs:
            found.setdefault(output.attempt_id, Transcript()).outputs.append(output)
    return found


def play(engine: SimulatedEngine) -> list[Step]:
    """Steps the engine until nothing can run."""
    return list(iter(engine.step, None))


async def answer(asked: EngineRequest, capacity: Capacity = SMALL, **options: object) -> Transcript:
    """What a fresh engine answers."""
    engine = await hand_engine(capacity, **options)
    engine.add(asked)
    return transcripts(play(engine))[asked.attempt_id]
