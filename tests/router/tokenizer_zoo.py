"""Tokenizers of each kind that models have, made on the spot, with control tokens of every sort."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

CORPUS = [
    "the quick brown fox jumps over the lazy dog and then the fox sleeps under the old oak tree",
    "if a < b and b > c or a | b: call the tool, think, and start to end; i'm <b>bold</b> [sep] {x: 1}",
    "naïve façade – 狐 and 🙂, ｆｕｌｌ width, <<|>> |> <| tool_call think im_start im_end",
] * 3

TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endfor %}"
    "{{ '<|im_start|>assistant\\n' }}"
)

MARKS = [AddedToken(content, special=True) for content in ("<|im_start|>", "<|im_end|>", "<|bos|>")]
TOOL = AddedToken("<tool_call>", special=False, normalized=False)
THINK = AddedToken("<think>", special=False, normalized=True)
INDENT = AddedToken("    ", special=False, normalized=False)


def byte_level(*added: AddedToken) -> Tokenizer:
    """As of GPT-2, Llama 3 and Qwen."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    _add(tokenizer, *(added or (*MARKS, TOOL, THINK, INDENT)))
    bos = tokenizer.token_to_id("<|bos|>")
    if bos is not None:
        tokenizer.post_processor = processors.TemplateProcessing(single="<|bos|> $A", special_tokens=[("<|bos|>", bos)])
    return tokenizer


def flags() -> Tokenizer:
    """Control tokens that take in white space, or that only stand alone."""
    return byte_level(
        *(AddedToken(mark.content, special=True, lstrip=True, rstrip=True) for mark in MARKS[:2]),
        AddedToken("<tool_call>", special=False, normalized=False, single_word=True),
        AddedToken("think", special=False, normalized=True, single_word=True),
        AddedToken("oak tree", special=False, normalized=False, rstrip=True),
    )


def sentencepiece_bpe() -> Tokenizer:
    """As of Llama 2: no pre-tokenizer, a mark put before every segment, and control tokens that the model knows, too."""
    special = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    trained.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=300, show_progress=False))
    model = json.loads(trained.to_str())["model"]
    words = dict.fromkeys([*special, *bytes_, *model["vocab"]])
    vocabulary = {word: id for id, word in enumerate(words)}
    merges = [tuple(pair) for pair in model["merges"]]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    _add(tokenizer, *(AddedToken(each, special=True, normalized=False) for each in special), THINK, TOOL)
    _after(tokenizer, "<s>")
    return tokenizer


def unigram() -> Tokenizer:
    """As of T5: the model itself would yield `</s>` for its literal."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
    special = ["<pad>", "</s>", "<unk>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.UnigramTrainer(vocab_size=160, special_tokens=special, unk_token="<unk>", show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    _add(tokenizer, *(AddedToken(each, special=True, normalized=False) for each in special), TOOL, THINK)
    eos = tokenizer.token_to_id("</s>")
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", eos)])
    return tokenizer


def wordpiece() -> Tokenizer:
    """As of BERT: lower case, without accents, and private-use characters removed."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=250, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    _add(tokenizer, *(AddedToken(each, special=True) for each in (*special, "<|im_start|>", "<|im_end|>")))
    _add(tokenizer, AddedToken("[TOOL]", special=False, normalized=True), THINK)
    _after(tokenizer, "[CLS]")
    return tokenizer


def wordlevel() -> Tokenizer:
    """Words between white space, of which a control token can be one."""
    special = ["[UNK]", "<|im_start|>", "<|im_end|>"]
    tokenizer = Tokenizer(models.WordLevel(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.train_from_iterator(CORPUS, trainers.WordLevelTrainer(special_tokens=special, show_progress=False))
    _add(tokenizer, *(AddedToken(each, special=True) for each in special), THINK)
    return tokenizer


ZOO: dict[str, Callable[[], Tokenizer]] = {
    "byte level": byte_level,
    "flags": flags,
    "sentencepiece": sentencepiece_bpe,
    "unigram": unigram,
    "wordpiece": wordpiece,
    "wordlevel": wordlevel,
}


def write(directory: Path, tokenizer: Tokenizer, template: str = TEMPLATE) -> Path:
    """Writes a model's directory."""
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "chat_template.jinja").write_text(template, encoding="utf-8")
    return directory


def _add(tokenizer: Tokenizer, *added: AddedToken) -> None:
    for token in added:
        (tokenizer.add_special_tokens if token.special else tokenizer.add_tokens)([token])


def _after(tokenizer: Tokenizer, first: str) -> None:
    id = tokenizer.token_to_id(first)
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{first} $A", special_tokens=[(first, id)])
