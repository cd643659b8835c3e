"""The model against the original: vLLM's own scheduler, given the same history, must compute the same in every step."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from forebay.simulator.engine import Engine, EngineShape, Sequence

pytestmark = [pytest.mark.vllm, pytest.mark.slow]

BLOCKS = 40
SHAPE = EngineShape(kv_tokens=BLOCKS * 16, max_num_seqs=12, max_num_batched_tokens=24, max_model_len=512)
MODEL = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64, "intermediate_size": 128,
    "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2, "vocab_size": 1_000,
    "max_position_embeddings": 4_096, "torch_dtype": "bfloat16", "hidden_act": "silu", "rms_norm_eps": 1e-5,
}  # fmt: skip


class Original:
    """vLLM's scheduler with a model runner that answers any token."""

    def __init__(self, model: Path, policy: str) -> None:
        import torch
        from vllm.config import CacheConfig, ModelConfig, SchedulerConfig, VllmConfig
        from vllm.v1.core.sched.scheduler import Scheduler
        from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
        from vllm.v1.structured_output import StructuredOutputManager

        config = VllmConfig(
            model_config=ModelConfig(
                model=str(model), skip_tokenizer_init=True, dtype="bfloat16", max_model_len=SHAPE.max_model_len
            ),
            scheduler_config=SchedulerConfig(
                max_num_seqs=SHAPE.max_num_seqs,
                max_num_batched_tokens=SHAPE.max_num_batched_tokens,
                max_model_len=SHAPE.max_model_len,
                enable_chunked_prefill=True,
                is_encoder_decoder=False,
                async_scheduling=False,
                policy=policy,
            ),
            cache_config=CacheConfig(block_size=SHAPE.block_tokens, enable_prefix_caching=False),
        )
        blocks = BLOCKS + 1  # vLLM keeps one to itself
        config.cache_config.num_gpu_blocks = blocks
        spec = FullAttentionSpec(block_size=SHAPE.block_tokens, num_kv_heads=1, head_size=1, dtype=torch.float32)
        self._scheduler: Any = Scheduler(
            vllm_config=config,
            kv_cache_config=KVCacheConfig(
                blocks, kv_cache_tensors=[], kv_cache_groups=[KVCacheGroupSpec(["layer"], spec)]
            ),
            log_stats=False,
            structured_output_manager=StructuredOutputManager(config),
            block_size=SHAPE.block_tokens,
        )
        self._requests: dict[int, Any] = {}

    def add(self, sequence: Sequence) -> None:
        from vllm.sampling_params import SamplingParams
        from vllm.v1.request import Request

        request = self._requests[sequence.id] = Request(
            request_id=str(sequence.id),
            prompt_token_ids=[1] * sequence.prompt,
            sampling_params=SamplingParams(max_tokens=sequence.output, ignore_eos=True),
            pooling_params=None,
            arrival_time=float(sequence.id),
            priority=sequence.priority,
        )
        self._scheduler.add_request(request)

    def abort(self, sequence: Sequence) -> None:
        from vllm.v1.request import RequestStatus

        self._scheduler.finish_requests(str(sequence.id), RequestStatus.FINISHED_ABORTED)

    def step(self) -> dict[int, int]:
        """Runs one step; returns the tokens computed for each request."""
        from vllm.v1.outputs import ModelRunnerOutput

        plan = self._scheduler.schedule()
        tokens = {int(id): count for id, count in plan.num_scheduled_tokens.items()}
        # A token comes only out of a step that computes all tokens that are known.
        ready = [id for id in tokens if self._requests[id].num_computed_tokens == self._requests[id].num_tokens]
        output = ModelRunnerOutput(
            req_ids=[str(id) for id in tokens],
            req_id_to_index={str(id): index for index, id in enumerate(tokens)},
            sampled_token_ids=[[7] if id in ready else [] for id in tokens],
            logprobs=None,
            prompt_logprobs_dict={},
            pooler_output=[],
        )
        self._scheduler.update_from_output(plan, output)
        return tokens

    @property
    def preemptions(self) -> int:
        return sum(request.num_preemptions for request in self._requests.values())


@pytest.mark.parametrize("policy", ["fcfs", "priority"])
def test_every_step_of_a_random_history_computes_the_same(policy: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(MODEL))
    chance = random.Random(5)
    original, model = Original(tmp_path, policy), Engine(SHAPE)
    sequences: list[Sequence] = []
    alive: set[int] = set()
    steps = 0
    while len(sequences) < 300 or alive:
        for _ in range(chance.choice((0, 0, 0, 0, 1)) if len(sequences) < 300 else 0):
            priority = chance.randint(0, 3) if policy == "priority" else 0
            sequence = Sequence(len(sequences), chance.randint(1, 300), chance.randint(1, 120), priority)
            sequences.append(sequence)
            alive.add(sequence.id)
            original.add(sequence)
            model.add(sequence)
        if alive and chance.random() < 0.01:
            gone = sequences[chance.choice(sorted(alive))]
            alive.remove(gone.id)
            original.abort(gone)
            model.abort(gone)
        begun = model.begin()
        computed = {sequence.id: sequence.step for sequence in model.running if sequence.step}
        done = model.complete()
        theirs = original.step()
        if begun is not None and not theirs:
            theirs = original.step()  # a step of theirs can preempt and compute nothing; the model goes on at once
        assert computed == theirs
        alive -= {sequence.id for sequence in done.finished}
        steps += 1
    assert model.preemptions == original.preemptions > 50
    assert steps > 1_000
