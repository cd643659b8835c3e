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

# Below this many characters a prompt is tokenised (in less than a millisecond) sooner than a thread would have begun.
_IN_LINE_CHARACTERS = 2_000
# What an error repeats of names, so that it fits into the trailers of its call.
MOST_NAMES = 16
MOST_CHARACTERS = 100


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
        raise _not_found(name, [model.card.name for model in allowed])

    async def tokenise(self, model: Model, prompt: Prompt, tenant: TenantPolicy) -> list[int]:
        """Returns the token ids of a tenant's prompt; errors as of `tokenizer.encode` and `TokenizerThreads.run`."""
        if prompt_size(prompt) + len(tenant.system_prompt) <= _IN_LINE_CHARACTERS:
            return encode(model.tokenizer, prompt, tenant.system_prompt)
        return await self._threads.run(tenant.tenant_id, lambda: encode(model.tokenizer, prompt, tenant.system_prompt))


def _not_found(name: str, allowed: list[str]) -> MeshError:
    """Returns what to say of a name that stands for none of the models that the caller may use."""
    names = ", ".join(allowed[:MOST_NAMES]) + (
        f" and {len(allowed) - MOST_NAMES} more" if len(allowed) > MOST_NAMES else ""
    )
    if not allowed:
        message = "this key may use no model that is served here; the mesh's administrators say which it may use"
    elif name:
        message = f"there is no model {name[:MOST_CHARACTERS]!r} for this key; there are: {names}"
    else:
        message = f"the request names no model, and this key may use {len(allowed)}; name one of: {names}"
    return MeshError(Code.NOT_FOUND, "MODEL_NOT_FOUND", message)
