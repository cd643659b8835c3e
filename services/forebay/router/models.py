"""The models that this router takes requests for, and how each one's prompts are tokenised."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from forebay.errors import Code, MeshError
from forebay.policy.model import TenantPolicy
from forebay.router.access import Caller
from forebay.router.domain.ask import LongPrompt, ModelCard, Prompt
from forebay.router.tokenizer import Tokenizer, encode
from forebay.router.tokenizer_frames import Job, Tokens
from forebay.router.tokenizer_processes import TokenizerProcesses
from forebay.words import instead_of

MAX_NAME = 128
# A prompt of at most so many bytes is tokenised on the event loop. That takes some tenths of a millisecond, as long as the way
# to a process and back.
IN_LINE_BYTES = 512


@dataclass(frozen=True, slots=True)
class Model:
    """A model and its tokenizer."""

    card: ModelCard
    tokenizer: Tokenizer


class Models:
    """All models of one router."""

    def __init__(self, models: Iterable[Model], processes: TokenizerProcesses) -> None:
        """Takes the models; long prompts are tokenised by `processes`."""
        self._models = {model.card.name: model for model in sorted(models, key=lambda model: model.card.name)}
        self._processes = processes

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

    async def tokenise(self, model: Model, prompt: Prompt | LongPrompt, tenant: TenantPolicy, most_ids: int) -> Tokens:
        """Returns the tokens of a tenant's prompt, or the number alone when they are more than `most_ids`.

        Raises:
            MeshError: as of `tokenizer.encode` and `TokenizerProcesses.run`.
        """
        if isinstance(prompt, LongPrompt):
            job = Job(model.card.name, tenant.system_prompt, most_ids, prompt.data)
            return await self._processes.run(tenant.tenant_id, job)
        return Tokens.of(encode(model.tokenizer, prompt, tenant.system_prompt), most_ids)
