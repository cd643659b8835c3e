"""Which engine a configuration means. Engines are imported only when they are wanted: vLLM takes its time."""

from __future__ import annotations

from forebay.worker.config import WorkerConfig
from forebay.worker.domain.step_cost import A10G, FREE
from forebay.worker.engine import Capacity, Engine


def make_engine(config: WorkerConfig) -> Engine:
    """Returns the engine, not yet started."""
    if config.engine == "simulated":
        from forebay.worker.simulated_engine import SimulatedEngine

        settings = config.simulated
        capacity = Capacity(
            kv_tokens=settings.kv_tokens,
            block_tokens=settings.block_tokens,
            max_num_seqs=settings.max_num_seqs,
            max_num_batched_tokens=settings.max_num_batched_tokens,
            max_model_len=settings.max_model_len,
            max_adapters=settings.max_adapters,
        )
        return SimulatedEngine(
            capacity,
            FREE if settings.free else A10G,
            speed=settings.speed,
            adapter_load_s=settings.adapter_load_s,
            window_tokens=settings.window_tokens,
        )
    from forebay.worker.vllm_engine import VllmEngine

    assert config.model_directory is not None
    return VllmEngine(config.model_directory, config.vllm)
