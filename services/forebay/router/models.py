"""The models that this router takes requests for, and how each one's prompts are tokenised."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from concurrent.futures import Executor
from dataclasses import dataclass

from forebay.errors import Code, MeshError
from forebay.router.access import Caller
from forebay.router.domain.ask import ModelCard, Prompt
from forebay.router.tokenizer import Tokenizer, encode, prompt_size

# Below this many characters a prompt is tokenised (in well under a millisecond) sooner than a thread would have begun.
_IN_LINE_CHARACTERS = 2_000


@dataclass(frozen=True, slots=True)
class Model:
    """A model and its tokenizer."""

    card: ModelCard
    tokenizer: Tokenizer


class Models:
    """All models of one router."""

    def __init__(self, models: Iterable[Model], threads: Executor) -> None:
        """Takes the models; prompts above a size are tokenised in `threads`."""
        self._models = {model.card.name: model for model in sorted(models, key=lambda model: model.card.name)}
        self._threads = threads

    def of(self, caller: Caller) -> list[Model]:
        """Returns the models that the caller may use, in order of name."""
        return [model for name, model in self._models.items() if caller.may_use(name)]

    def resolve(self, caller: Caller, name: str) -> Model:
        """Returns the model of that name, or the caller's only one for an empty name.

        Raises:
            MeshError: NOT_FOUND, the same for a model that does not exist and one that the caller may not use.
        """
        allowed = self.of(caller)
        if not name and len(allowed) == 1:
            return allowed[0]
        for model in allowed:
            if model.card.name == name:
                return model
        message = "there is no such model for this key" if name else "name a model; there is more than one, or none"
        raise MeshError(Code.NOT_FOUND, "MODEL_NOT_FOUND", f"{message}; ListModels lists them")

    async def tokenise(self, model: Model, prompt: Prompt, system_prompt: str) -> list[int]:
        """Returns a prompt's token ids; errors as of `tokenizer.encode`."""
        if prompt_size(prompt) + len(system_prompt) <= _IN_LINE_CHARACTERS:
            return encode(model.tokenizer, prompt, system_prompt)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, encode, model.tokenizer, prompt, system_prompt)
