"""A model's chat template: a conversation as text, rendered by Jinja as `transformers` would.

The environment is set up as in `apply_chat_template` of `transformers`: block trimming, loop controls, `raise_exception`,
`strftime_now`, a `tojson` that does not escape HTML, a `generation` block that marks nothing. It gets the special tokens by
their names.

The environment is a sandbox that cannot change what it is given: a template comes with a model, from whoever made it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from forebay.config import ConfigError
from forebay.router.domain.ask import Message
from forebay.router.tokenizer import unusable_prompt

_SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


class ChatTemplate:
    """The template of one model's directory; there may be none."""

    def __init__(self, directory: Path) -> None:
        """Reads the files.

        Raises:
            ConfigError: a file cannot be read, or the template cannot be compiled; the message says which.
        """
        config = _read_json(directory / "tokenizer_config.json")
        self._special_tokens = {name: _content(config[name]) for name in _SPECIAL_TOKENS if config.get(name)}
        template = _template(directory, config)
        try:
            self._template = _environment().from_string(template) if template else None
        except TemplateError as error:
            raise ConfigError(f"{directory}: the chat template cannot be compiled: {error}") from None

    def render(self, messages: Sequence[Message]) -> str:
        """Returns a conversation as text, with the beginning of the assistant's turn after it.

        Raises:
            MeshError: INVALID_ARGUMENT when the template refuses the conversation, or the model has no template.
        """
        if self._template is None:
            raise unusable_prompt("prompt.chat", "cannot be rendered: the model has no chat template; send text")
        turns = [{"role": message.role, "content": message.content} for message in messages]
        try:
            return self._template.render(
                messages=turns, tools=None, documents=None, add_generation_prompt=True, **self._special_tokens
            )
        except (TemplateError, TypeError) as error:
            raise unusable_prompt("prompt.chat", f"is refused by the model's chat template: {error}") from None


class _GenerationBlock(Extension):
    """`{% generation %}…{% endgeneration %}` marks the assistant's words for training; here it is what it encloses."""

    tags = {"generation"}  # noqa: RUF012 - as Jinja declares it

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """Returns the block's body."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlock, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


def _to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)  # the machine's own time zone, as the template's author saw it


def _template(directory: Path, config: dict[str, Any]) -> str | None:
    """Returns the template: a file of its own goes before the configuration, and `default` before other named ones."""
    file = directory / "chat_template.jinja"
    if file.exists():
        return file.read_text(encoding="utf-8")
    template = config.get("chat_template")
    if isinstance(template, list):
        return next((entry["template"] for entry in template if entry["name"] == "default"), None)
    return template


def _content(token: str | dict[str, Any]) -> str:
    """Returns a special token's text; files hold it bare or with its properties."""
    return token if isinstance(token, str) else str(token["content"])


def _read_json(file: Path) -> dict[str, Any]:
    if not file.exists():
        return {}
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file}: cannot be read: {error}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{file}: must hold a JSON object")
    return content
