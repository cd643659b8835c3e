"""Asks AsyncLLM directly, with the settings of the mesh's worker: python direct_vllm.py MODEL OUTPUT QUESTION..."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

from forebay.worker.vllm_config import VllmConfig
from forebay.worker.vllm_engine import engine_arguments  # also sets the environment that vllm needs

if __name__ == "__main__":
    from transformers import AutoTokenizer
    from vllm import SamplingParams
    from vllm.inputs import tokens_input
    from vllm.sampling_params import RequestOutputKind
    from vllm.v1.engine.async_llm import AsyncLLM


async def ask(model: str, output: Path, questions: list[str]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model)
    engine = AsyncLLM.from_engine_args(engine_arguments(model, VllmConfig()))
    answers = []
    for n, question in enumerate(questions):
        chat = [{"role": "user", "content": question}]
        prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True)["input_ids"]
        params = SamplingParams(max_tokens=24, temperature=0.0, output_kind=RequestOutputKind.FINAL_ONLY)
        async for result in engine.generate(tokens_input(prompt_token_ids=prompt), params, str(n)):
            answers.append(list(result.outputs[0].token_ids))
    output.write_text(json.dumps(answers))
    engine.shutdown()


if __name__ == "__main__":
    asyncio.run(ask(sys.argv[1], Path(sys.argv[2]), sys.argv[3:]))
