"""Small tokenizers of many kinds, trained on a few lines, with added tokens that are awkward neighbours."""

from functools import cache

import pytest

tokenizers = pytest.importorskip("tokenizers", reason="tokenizers is not installed: install homing[http]")
from tokenizers import (  # noqa: E402
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

LINES = [
    "The quick brown fox jumps over the lazy dog. The quick brown fox!",
    "user assistant system\nuser\nassistant\n",
    "def f(x):\n    return x + 1\n\n\nprint(f(41))\r\n",
    "Größe, naïve, 中文字符、日本語。\n한국어 e\u0301 \U0001f600",
    "1234 567 8\n9 it's we'll / // http://a.b/c\n",
]
SPECIAL = ["<|im_start|>", "<|im_end|>", "<s>", "</s>"]
ENDINGS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3 = ENDINGS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|" + SPACES
QWEN2 = ENDINGS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|" + SPACES
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
O200K = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+{ENDINGS}?|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*{ENDINGS}?"
    rf"|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{SPACES}"
)
TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*"
    rf"|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{SPACES}"
)


def byte_level(pre_tokenizer, normalizer=None):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        LINES * 3, trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    )
    return tokenizer


def split_by(pattern, normalizer=None):
    steps = [
        pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
    return byte_level(pre_tokenizers.Sequence(steps), normalizer)


def unigram(prepend_scheme):
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prepend_scheme)
    trainer = trainers.UnigramTrainer(vocab_size=150, unk_token="<unk>", special_tokens=["<unk>"], show_progress=False)
    tokenizer.train_from_iterator(LINES * 3, trainer)
    return tokenizer


def llama2():
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    trainer = trainers.BpeTrainer(vocab_size=250, special_tokens=["<unk>"], show_progress=False)
    tokenizer.train_from_iterator(LINES * 3, trainer)
    return tokenizer


def wordpiece():
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=250, special_tokens=["[UNK]"], show_progress=False)
    tokenizer.train_from_iterator(LINES * 3, trainer)
    return tokenizer


def stripping():
    steps = [normalizers.Strip(), normalizers.NFKC(), normalizers.Lowercase()]
    return byte_level(pre_tokenizers.ByteLevel(add_prefix_space=True), normalizers.Sequence(steps))


def awkward():
    """Tokens that take space along, overlap the cut's neighbours, or are sought after normalisation."""
    tokenizer = byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False), normalizers.NFC())
    tokenizer.add_tokens(
        [
            AddedToken("<|im", normalized=False),
            AddedToken("|><", normalized=False),
            AddedToken("<left>", lstrip=True, normalized=False),
            AddedToken("<right>", rstrip=True, normalized=False),
            AddedToken("fox", normalized=True),
            AddedToken("é", normalized=True),
        ]
    )
    return tokenizer


def lined():
    """Added tokens that leave line feeds alone, so that these stay cuts."""
    digits = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    tokenizer = byte_level(pre_tokenizers.Sequence(digits))
    tokenizer.add_tokens([AddedToken("  ", normalized=False), AddedToken("<right>", rstrip=True, normalized=False)])
    return tokenizer


def digits(*, individual):
    steps = [pre_tokenizers.Digits(individual_digits=individual), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    return byte_level(pre_tokenizers.Sequence(steps))


MAKERS = {
    "gpt2": lambda: byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False)),
    "prefix space": lambda: byte_level(pre_tokenizers.ByteLevel(add_prefix_space=True)),
    "smollm": lined,
    "digits": lambda: digits(individual=True),
    "numbers": lambda: digits(individual=False),
    "llama3": lambda: split_by(LLAMA3),
    "qwen2": lambda: split_by(QWEN2, normalizers.NFC()),
    "o200k": lambda: split_by(O200K),
    "tekken": lambda: split_by(TEKKEN),
    "metaspace first": lambda: unigram("first"),
    "metaspace always": lambda: unigram("always"),
    "metaspace never": lambda: unigram("never"),
    "llama2": llama2,
    "wordpiece": wordpiece,
    "stripping": stripping,
    "awkward": awkward,
}
WORDY = {"gpt2", "digits", "numbers", "llama3", "qwen2", "o200k", "tekken"}
LINED = WORDY | {"smollm"}


@cache
def text_of(kind):
    tokenizer = MAKERS[kind]()
    tokenizer.add_special_tokens([AddedToken(text, normalized=False, special=True) for text in SPECIAL])
    ids = [("<s>", tokenizer.token_to_id("<s>")), ("</s>", tokenizer.token_to_id("</s>"))]
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=ids)
    return tokenizer.to_str()


def make(kind):
    """A tokenizer of its own for each caller, trained once."""
    return Tokenizer.from_str(text_of(kind))
