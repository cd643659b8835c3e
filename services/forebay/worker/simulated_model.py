"""The simulated model: a small vocabulary about water and mills, a tokenizer for it, and the chain that speaks it.

Token ids follow from this module alone, so the simulated engine needs no files. The router does: `build` writes a
directory like a real model's, with a byte-level BPE tokenizer, which takes any UTF-8 and gives it back unchanged.
"""

import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from forebay.worker.domain.word_chain import ROW_LENGTH, WordChain

NAME = "simulated"
CONTEXT_TOKENS = 32_768

# What may follow a kind of word, and how often, in parts. "prompt" is every token that the chain does not speak.
_FOLLOWS: Mapping[str, Mapping[str, int]] = {
    "prompt": {"first": 1},
    "first": {"subject": 5, "subject_adjective": 4},
    "opening": {"subject": 5, "subject_adjective": 4},
    "subject_adjective": {"subject": 1},
    "subject": {"verb": 1},
    "verb": {"article": 1},
    "article": {"object": 5, "object_adjective": 4},
    "object_adjective": {"object": 1},
    "object": {"stop": 6, "adverb": 4, "comma": 3, "conjunction": 2},
    "adverb": {"stop": 3, "comma": 1},
    "comma": {"conjunction": 1},
    "conjunction": {"subject_pronoun": 1},
    "subject_pronoun": {"verb": 1},
    "stop": {"opening": 15, "end": 1},
}

_WORDS: Mapping[str, str] = {
    "subject": "river mill wheel turbine stream current miller keeper forebay sluice spring rotor heron tide",
    "subject_adjective": "old patient quick steady mountain early wooden clear restless northern",
    "verb": "turns feeds fills drives lifts follows carries meets cools guards crosses reaches warms wakes passes joins "
    "lights steadies finds remembers",
    "article": "the our every one its",
    "object": "gate channel pond valley bank meadow lantern basin canal bridge reservoir weir spillway penstock village "
    "shaft grindstone dam orchard generator",
    "object_adjective": "quiet narrow broad silver green deep lower sunlit winding stone cold distant",
    "adverb": "slowly gently quietly again downstream evenly softly always together",
    "conjunction": "and while until because before",
    "subject_pronoun": "it",
}
_OPENINGS = "The Our Every This One Each"

# Not spoken, but frequent in prompts: they keep prompts at a natural number of tokens.
_COMMON = (
    "a able about above after all also am an any are as ask at away back be been best better between big black both "
    "but by call can capital city come could country day did different do does down each eat end even ever example "
    "explain eye face far father few first for found four France from gave get give go good great had hand has have "
    "he head hear help her here high him his home hot house how I if in into is just keep kind know land large last "
    "late learn left less let life light like list little live long look made make man many may me mean men might "
    "more most mother mountain move much must my name near need never new next night no not now number of off often "
    "on only open or other out over own page part people place plan play please point question read real right run "
    "said same saw say school sea second see sentence set several she short should show side small so some something "
    "start still stop story such summary take tell than that their them then there these they thing think this those "
    "three through time to too tree try turn two under up us use very want was water way we well went were what when "
    "where which white who why will wind with word work world would write year yes you young your"
)

END_MARK = "<|end|>"
_SPECIAL_TOKENS = [END_MARK, "<|system|>", "<|user|>", "<|assistant|>"]

_CHAT_TEMPLATE = """\
{%- for message in messages -%}
<|{{ message['role'] }}|>{{ message['content'] }}<|end|>
{%- endfor -%}
{%- if add_generation_prompt -%}
<|assistant|>
{%- endif -%}
"""


def _spoken() -> dict[str, list[str]]:
    """Returns the texts of each kind of word; a spoken word is one token."""
    spoken = {kind: [f" {word}" for word in words.split()] for kind, words in _WORDS.items()}
    spoken["first"] = _OPENINGS.split()
    spoken["opening"] = [f" {word}" for word in spoken["first"]]
    spoken["stop"] = ["."]
    spoken["comma"] = [","]
    return spoken


def _pieces() -> list[str]:
    """Returns the BPE tokens of two letters and more, in the order of their merges, a space written as in byte-level BPE.

    A word's pieces are its prefixes, each made of the one before and a letter. Shorter ones merge first, and those that
    begin with a space before all others, so that a word that begins so always becomes one token.
    """
    words = [word for texts in _spoken().values() for word in texts]
    words += [f" {word}" for word in _COMMON.split()] + [word.capitalize() for word in _COMMON.split()]
    prefixes = dict.fromkeys(word[:end].replace(" ", "Ġ") for word in words for end in range(2, len(word) + 1))
    return sorted(prefixes, key=lambda piece: (piece[0] != "Ġ", len(piece)))


_ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())
_TOKENS = [*_SPECIAL_TOKENS, *_ALPHABET, *_pieces()]
_IDS = {token: number for number, token in enumerate(_TOKENS)}

VOCABULARY_TOKENS = len(_TOKENS)
END = _IDS[END_MARK]
# The text of each token that the chain speaks; special tokens have none.
TEXT = ["" if token in _SPECIAL_TOKENS else token.replace("Ġ", " ") for token in _TOKENS]


def _row(follows: Mapping[str, int], ids: Mapping[str, Sequence[int]]) -> list[int]:
    """Returns ROW_LENGTH tokens, each kind in its proportion and its words by turns."""
    row: list[int] = []
    parts, total = 0, sum(follows.values())
    for kind, share in follows.items():
        parts += share
        while len(row) < ROW_LENGTH * parts // total:
            row.append(ids[kind][len(row) % len(ids[kind])])
    return row


@cache
def word_chain() -> WordChain:
    """Returns the chain over this vocabulary; about one sentence in sixteen is the last."""
    ids = {kind: [_IDS[text.replace(" ", "Ġ")] for text in texts] for kind, texts in _spoken().items()}
    numbers = {kind: number for number, kind in enumerate(_FOLLOWS)}
    kinds = [numbers["prompt"]] * VOCABULARY_TOKENS
    for kind, tokens in ids.items():
        for token in tokens:
            kinds[token] = numbers[kind]
    ids["end"] = [END]
    rows = [_row(follows, ids) for follows in _FOLLOWS.values()]
    unending = [
        _row({kind: share for kind, share in follows.items() if kind != "end"}, ids) for follows in _FOLLOWS.values()
    ]
    return WordChain(kinds, rows, unending, END)


def tokenizer() -> Tokenizer:
    """Returns the model's tokenizer."""
    merges = [(piece[:-1], piece[-1]) for piece in _pieces()]
    made = Tokenizer(models.BPE(vocab=dict(_IDS), merges=merges))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in _SPECIAL_TOKENS])
    return made


def build(directory: Path) -> None:
    """Writes the model into an existing directory: tokenizer, chat template, configuration; takes milliseconds."""
    tokenizer().save(str(directory / "tokenizer.json"))
    (directory / "chat_template.jinja").write_text(_CHAT_TEMPLATE, encoding="utf-8")
    _write_json(
        directory / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": END_MARK,
            "pad_token": END_MARK,
            "model_max_length": CONTEXT_TOKENS,
            "clean_up_tokenization_spaces": False,
        },
    )
    _write_json(
        directory / "config.json",
        {
            "model_type": NAME,
            "vocab_size": VOCABULARY_TOKENS,
            "max_position_embeddings": CONTEXT_TOKENS,
            "eos_token_id": END,
        },
    )


def _write_json(path: Path, content: Mapping[str, object]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
