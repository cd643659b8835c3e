"""The models that this router takes requests for, and how each one's prompts are tokenised."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from forebay.errors import Code, MeshError
from forebay.policy.model import TenantPolicy
from forebay.router.access import Caller
from forebay.router.domain.ask import ModelCard, Prompt
from forebay.router.tokenizer import Tokenizer, encode, prompt_size
from forebay.router.tokenizer_threads import TokenizerThreads
from forebay.words import instead_of

MAX_NAME = 128
# Below this many characters a prompt is tokenised (in less than a millisecond) sooner than a thread would have begun.
_IN_LINE_CHARACTERS = 2_000


@dataclass(frozen=True, slots=True)
class Model:
    """A model and its tokenizer."""

    card: ModelCard
    tokenizer: Tokenizer


class Models:
    """All models of one router."""

    def __init__(self, models: Iterable[Model], threads: TokenizerThreads) -> None:
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
        names = [model.card.name for model in allowed]
        if not names:
            message = "this key may use no model that is served here; ask the operator"
        elif name:
            message = f"there is no model {name[:MAX_NAME]!r} for this key; {instead_of(name, names)}"
        else:
            message = f"the request names no model, and there is more than one; {instead_of('', names)}"
        raise MeshError(Code.NOT_FOUND, "MODEL_NOT_FOUND", message)

    async def tokenise(self, model: Model, prompt: Prompt, tenant: TenantPolicy) -> list[int]:
        """Returns the token ids of a tenant's prompt; errors as of `tokenizer.encode` and `TokenizerThreads.run`."""
        if prompt_size(prompt) + len(tenant.system_prompt) <= _IN_LINE_CHARACTERS:
            return encode(model.tokenizer, prompt, tenant.system_prompt)
        return await self._threads.run(tenant.tenant_id, lambda: encode(model.tokenizer, prompt, tenant.system_prompt))
