#!/usr/bin/env python3
"""Makes tests/golden/tokenizers: small tokenizer files with what `tokenizers`, `sentencepiece` and `tiktoken` make of
a set of texts, and the same for the real vocabularies under ../shared/data (ids only; those tests need the folder).

Needs from PyPI: tokenizers sentencepiece tiktoken transformers gguf. Usage: tools/golden/text_tokenizers.py [SHARED_FOLDER]
"""
import functools
import io
import json
import os
import pathlib
import shutil
import sys
import tempfile

import sentencepiece
import tiktoken
import tiktoken.load
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

ROOT = pathlib.Path(__file__).resolve().parents[2]
OUT = ROOT / "tests/golden/tokenizers"
SHARED = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT.parent / "shared"

TEXTS = [
    "", " ", "  ", "   ", "a", "\n", "\t", "\n\n", " \n \t ", "Hello", "Hello, world!", " Hello", "  Hello  world  ",
    "The quick brown fox jumps over the lazy dog.", "I'll say: don't, we've, they're, he'd, I'm; it's 'S 'LL 'rE.",
    "안녕하세요, 세계! 한국어 문장입니다. 값은 3,000원이에요.", "你好,世界!这是一个测试。", "こんにちは、カタカナ・ひらがな・漢字ー。",
    "Привет, мир! Ёлка. ĐÀ NẴNG, Straße, İstanbul, ſeĸ", "مرحبا بالعالم", "नमस्ते दुनिया", "สวัสดีชาวโลก",
    "👨‍👩‍👧‍👦 family 👍🏽 flag 🇰🇷 heart ❤️ keycap 1️⃣", "e\u0301 cafe\u0301 café \u1e9b\u0323 Å \u212b q\u0307\u0323 ﬁ ½ ² Ⅷ",
    "1 12 123 1234 12345 123456 3.14159 1,000,000 0x1F 2024-05-17", "def f(x):\n    if x > 0:\n\treturn x ** 2  # ok\n    return {'a': [1, 2]}\n",
    "a\r\nb\r\n\r\nc\rd", "tabs\t\tand   runs    of     spaces      \n\n\n  end   ", "nul\x00 bell\x07 esc\x1b del\x7f nel\x85 bom\ufeff zwsp\u200b",
    "\u00a0nbsp\u2003em\u3000ideo\u2028line\u180emvs", "<s>special</s> <unk> [INST] x [/INST] <|endoftext|> <|im_start|>user\n<|im_end|> [CLS] [SEP] [MASK]",
    "<0x0A> ▁ ▁▁ Ġ ## </w> \ufffd", "x" * 200, "ab" * 60 + " " + "1" * 70 + " " * 40 + "!" * 30, "http://example.com/a?b=c&d=e#f user@host.org C:\\dir\\file",
    "!!! ... ?! -- --- \"quoted\" `code` $x + €y = £z © ™ “smart” ‘q’ … 「」", "CamelCaseWord snake_case_word kebab-case-word ALLCAPS mixedCASE123abc",
    "\U0001F600\U0001F601\U0010FFFF\ue000", "ȧ̶̡̢ Z͑ͫ̓a̴l̵g̶o̷", " leading", "trailing ", "a b c d e f g", "word" * 30, "I ~ <- _ you", "ünïcödé ÜNÏCÖDÉ",
]
# Enough for a golden of one normalizer or pre-tokenizer.
SHORT = [t for t in TEXTS if len(t) < 90]
CORPUS = [t for t in TEXTS if len(t) > 3] + [
    "A tokenizer turns a text into tokens, and the tokens back into the text. The model never sees the text itself.",
    "토크나이저는 글을 토큰으로 바꾸고, 토큰을 다시 글로 바꿉니다. 모델은 글을 직접 보지 않습니다.",
    "for (int i = 0; i < n; ++i) { sum += values[i]; } // the loop adds the values up",
] * 3


def cases(tok: Tokenizer, texts):
    tok.no_truncation()
    tok.no_padding()
    out = []
    for text in texts:
        plain = tok.encode(text, add_special_tokens=False).ids
        full = tok.encode(text, add_special_tokens=True).ids
        tok.encode_special_tokens = True
        raw = tok.encode(text, add_special_tokens=False).ids
        tok.encode_special_tokens = False
        case = {"text": text, "ids": plain}
        if full != plain:
            case["full"] = full
        if raw != plain:
            case["unparsed"] = raw
        for name, ids, skip in (("decode", full, False), ("skip", full, True)):
            try:
                decoded = tok.decode(ids, skip_special_tokens=skip)
            except BaseException as error:  # the library panics on some short inputs: no golden there
                if type(error).__name__ != "PanicException":
                    raise
                decoded = None
            if decoded != text:
                case[name] = decoded
        out.append(case)
    return out


def write(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, ensure_ascii=True, separators=(",", ":")) + "\n")


def save(name, tok, texts=TEXTS):
    path = OUT / f"{name}.tokenizer.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(tok.to_str(pretty=False) + "\n")
    assert path.stat().st_size < 60_000, (name, path.stat().st_size)
    write(OUT / f"{name}.golden.json", {"cases": cases(Tokenizer.from_file(str(path)), texts)})


SPECIAL = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]


def trained_models():
    # GPT-2
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tok.decoder = decoders.ByteLevel()
    tok.post_processor = processors.ByteLevel(trim_offsets=False)
    tok.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=600, special_tokens=["<|endoftext|>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    save("bpe_gpt2", tok)
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tok.add_tokens([AddedToken("    ", normalized=True), AddedToken("user", single_word=True), AddedToken("漢字", normalized=False)])
    tok.add_special_tokens([AddedToken("[MASK]", lstrip=True), AddedToken("[SEP]", rstrip=True), AddedToken("<|im_start|>", lstrip=True, rstrip=True)])
    tok.post_processor = processors.RobertaProcessing(("[SEP]", tok.token_to_id("[SEP]")), ("[MASK]", tok.token_to_id("[MASK]")))
    save("bpe_added_tokens", tok)

    # Llama 3
    tok = Tokenizer(models.BPE(ignore_merges=True))
    llama3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    tok.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(llama3), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tok.decoder = decoders.ByteLevel()
    tok.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=700, special_tokens=["<|begin_of_text|>"] + SPECIAL[3:], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    tok.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=True), processors.TemplateProcessing(single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", 0)])])
    save("bpe_llama3", tok)
    # Qwen 2
    qwen = llama3.replace("{1,3}", "")
    tok = Tokenizer.from_str(tok.to_str())
    tok.normalizer = normalizers.NFC()
    tok.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(qwen), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    save("bpe_qwen2", tok)
    # The byte alphabet before other steps, as Falcon has it
    tok.normalizer = None
    tok.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Punctuation("contiguous"), pre_tokenizers.ByteLevel(add_prefix_space=False), pre_tokenizers.Digits(False), pre_tokenizers.Split(Regex("[0-9][0-9][0-9]"), "isolated")])
    save("bpe_falcon", tok)

    # Llama 2 and Mistral: Metaspace with byte fallback
    for name, scheme, split, bytes_ in (("always", "always", True, True), ("first", "first", False, True), ("never", "never", True, True), ("no_bytes", "always", False, False)):
        tok = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=bytes_))
        tok.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=split)
        byte_tokens = [f"<0x{b:02X}>" for b in range(256)] if bytes_ else []
        tok.train_from_iterator(CORPUS[:30], trainers.BpeTrainer(vocab_size=620, limit_alphabet=90, special_tokens=SPECIAL[:3] + byte_tokens, show_progress=False))
        # Byte tokens are pieces, not special tokens.
        j = json.loads(tok.to_str())
        j["added_tokens"] = j["added_tokens"][:3]
        if scheme == "always" and bytes_:
            j["normalizer"] = {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]}
            j["pre_tokenizer"] = None
        tok = Tokenizer.from_str(json.dumps(j))
        tok.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
        tok.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)])
        save(f"bpe_metaspace_{name}", tok)
        if name == "no_bytes":
            tok.decoder = decoders.Metaspace(prepend_scheme=scheme)
            j = json.loads(tok.to_str())
            j["model"]["fuse_unk"] = False
            save("bpe_unfused_unk", Tokenizer.from_str(json.dumps(j)))

    # CLIP: end-of-word suffix
    tok = Tokenizer(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"))
    tok.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tok.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tok.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=500, limit_alphabet=120, special_tokens=SPECIAL, end_of_word_suffix="</w>", show_progress=False))
    tok.decoder = decoders.BPEDecoder("</w>")
    save("bpe_word_suffix", tok)
    # Continuing-subword prefix
    tok = Tokenizer(models.BPE(unk_token="<unk>", continuing_subword_prefix="##"))
    tok.pre_tokenizer = pre_tokenizers.Whitespace()
    tok.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=500, limit_alphabet=120, special_tokens=SPECIAL, continuing_subword_prefix="##", show_progress=False))
    tok.decoder = decoders.WordPiece("##", cleanup=True)
    save("bpe_subword_prefix", tok)

    # Unigram: T5-like and with byte fallback
    charsmap = small_charsmap()
    for name, bytes_ in (("unigram", False), ("unigram_bytes", True)):
        tok = Tokenizer(models.Unigram())
        tok.normalizer = normalizers.Sequence([normalizers.Precompiled(charsmap), normalizers.Replace(Regex(" {2,}"), " ")])
        tok.pre_tokenizer = pre_tokenizers.Metaspace()
        tok.decoder = decoders.Metaspace()
        tok.train_from_iterator(CORPUS[:25] + CORPUS[-3:], trainers.UnigramTrainer(vocab_size=400, special_tokens=["<unk>", "</s>"], unk_token="<unk>", show_progress=False))
        j = json.loads(tok.to_str())
        if bytes_:
            j["model"]["byte_fallback"] = True
            j["model"]["vocab"] += [[f"<0x{b:02X}>", -30.0] for b in range(256)]
            j["decoder"] = {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}]}
        tok = Tokenizer.from_str(json.dumps(j))
        tok.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
        save(name, tok)

    # BERT
    tok = Tokenizer(models.WordPiece(unk_token="[UNK]", max_input_chars_per_word=50))
    tok.normalizer = normalizers.BertNormalizer()
    tok.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tok.decoder = decoders.WordPiece()
    tok.train_from_iterator(CORPUS, trainers.WordPieceTrainer(vocab_size=500, limit_alphabet=150, special_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"], show_progress=False))
    tok.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    save("wordpiece_bert", tok)
    # No decoder: pieces joined by blanks
    tok = Tokenizer(models.WordLevel(unk_token="<unk>"))
    tok.pre_tokenizer = pre_tokenizers.Whitespace()
    tok.train_from_iterator(CORPUS, trainers.WordLevelTrainer(vocab_size=300, special_tokens=SPECIAL, show_progress=False))
    save("wordlevel", tok)
    # CTC
    tok = Tokenizer(models.WordLevel({c: i for i, c in enumerate(["<pad>", "|", "<unk>", "'", "H", "E", "L", "O", "W", "R", "D"])}, unk_token="<unk>"))
    tok.normalizer = normalizers.Replace(" ", "|")
    tok.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tok.decoder = decoders.CTC()
    save("ctc", tok, ["HELLO WORLD", "HHEELL", "", "H E", "XX"])


@functools.cache
def small_charsmap():
    """SentencePiece's compiled map of a few rules."""
    with tempfile.TemporaryDirectory() as folder:
        rules = pathlib.Path(folder) / "rules.tsv"
        pairs = [("\t", " "), ("\n", " "), ("\u3000", " "), ("\u00a0", " "), ("ﬁ", "fi"), ("½", "1/2"), ("²", "2"), ("e\u0301", "é"), ("\u212b", "Å"), ("\u200b", " "), ("\u200d", ""), ("\x07", ""), ("Ⅷ", "VIII"), ("…", "...")]
        rules.write_text("".join(" ".join(f"{ord(c):X}" for c in a) + "\t" + " ".join(f"{ord(c):X}" for c in b) + "\n" for a, b in pairs))
        blob = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(CORPUS), model_writer=blob, vocab_size=300, hard_vocab_limit=False, normalization_rule_tsv=str(rules), minloglevel=2)
    return field(field(blob.getvalue(), 3), 2)  # normalizer_spec.precompiled_charsmap


def field(message, number):
    """The last length-delimited field of that number in a protobuf message."""
    found, pos = b"", 0

    def varint():
        nonlocal pos
        value = shift = 0
        while True:
            byte = message[pos]
            pos += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while pos < len(message):
        key = varint()
        if key & 7 == 0:
            varint()
        elif key & 7 == 2:
            length = varint()
            if key >> 3 == number:
                found = message[pos:pos + length]
            pos += length
        else:
            pos += 8 if key & 7 == 1 else 4
    return found



def words_golden(name, normalizer=None, pre_tokenizer=None, decoder=None):
    """A WordLevel model that knows every word of the texts makes the words visible as ids."""
    vocab = {}
    for text in SHORT:
        if normalizer is not None:
            text = normalizer.normalize_str(text)
        words = [w for w, _ in pre_tokenizer.pre_tokenize_str(text)] if pre_tokenizer else [text]
        for word in words:
            vocab.setdefault(word, len(vocab))
    vocab.setdefault("<unk>", len(vocab))
    tok = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    if normalizer is not None:
        tok.normalizer = normalizer
    if pre_tokenizer is not None:
        tok.pre_tokenizer = pre_tokenizer
    tok.decoder = decoder or decoders.Fuse()
    save(name, tok, SHORT)


def steps():
    n, p = normalizers, pre_tokenizers
    for name, normalizer in {
        "nfc": n.NFC(), "nfd": n.NFD(), "nfkc": n.NFKC(), "nfkd": n.NFKD(), "lowercase": n.Lowercase(), "strip": n.Strip(), "strip_left": n.Strip(right=False),
        "strip_accents": n.Sequence([n.NFD(), n.StripAccents()]), "replace_string": n.Replace("a", "<A>"), "replace_regex": n.Replace(Regex(r"\s+"), "_"),
        "prepend": n.Prepend("▁"), "nmt": n.Nmt(), "byte_level": n.ByteLevel(), "precompiled": n.Precompiled(small_charsmap()),
        "bert": n.BertNormalizer(), "bert_cased": n.BertNormalizer(lowercase=False), "bert_bare": n.BertNormalizer(clean_text=False, handle_chinese_chars=False, strip_accents=False, lowercase=True),
    }.items():
        words_golden(f"normalizer_{name}", normalizer=normalizer)
    behaviours = ["removed", "isolated", "merged_with_previous", "merged_with_next", "contiguous"]
    table = {
        "whitespace": p.Whitespace(), "whitespace_split": p.WhitespaceSplit(), "bert": p.BertPreTokenizer(), "digits": p.Digits(False), "digits_each": p.Digits(True),
        "delimiter": p.CharDelimiterSplit("a"), "scripts": p.UnicodeScripts(), "metaspace_split": p.Sequence([p.WhitespaceSplit(), p.Metaspace(prepend_scheme="first")]),
        "metaspace_never": p.Metaspace("_", prepend_scheme="never"), "byte_level": p.ByteLevel(add_prefix_space=True), "byte_level_plain": p.Sequence([p.ByteLevel(add_prefix_space=False, use_regex=False), p.Digits(True)]),
        "fixed_length": p.FixedLength(3), "anchors": p.Split(Regex("^.|.$"), "isolated"), "interval": p.Split(Regex(r"\p{N}{1,3}+|\w{2}"), "isolated"), "lookahead": p.Split(Regex(r"(?=[A-Z])"), "isolated"),
        "classes": p.Split(Regex(r"[[:punct:]]|[\w&&[^aeiou]]+|\h"), "isolated"),
    }
    for b in behaviours:
        table[f"punctuation_{b}"] = p.Punctuation(b)
        table[f"split_string_{b}"] = p.Split(" ", b)
        table[f"split_regex_{b}"] = p.Split(Regex(r"\s|[aeiou]"), b)
        table[f"split_invert_{b}"] = p.Split(Regex(r"\p{L}+"), b, invert=True)
    for name, pre in table.items():
        words_golden(f"pre_{name}", pre_tokenizer=pre)
    d = decoders
    for name, decoder in {"replace": d.Sequence([d.Replace(Regex("[aeiou]"), "*"), d.Fuse(), d.Replace("*l", "L")]), "strip_left": d.Strip("a", 1, 0), "strip_right": d.Strip("s", 0, 2), "fuse_strip": d.Sequence([d.Fuse(), d.Strip(" ", 2, 3)]), "wordpiece": d.WordPiece("e", cleanup=True), "bpe": d.BPEDecoder("e"), "metaspace": d.Metaspace("a", prepend_scheme="always"), "metaspace_never": d.Metaspace("a", prepend_scheme="never")}.items():
        words_golden(f"decoder_{name}", pre_tokenizer=p.Split(" ", "merged_with_next"), decoder=decoder)


def sentencepiece_models():
    for name, options in {
        "spm_unigram": dict(model_type="unigram", user_defined_symbols=["<sep>", "ab"]),
        "spm_bpe": dict(model_type="bpe", byte_fallback=True, split_digits=True, control_symbols=["[INST]", "[/INST]"], user_defined_symbols=["\n", "    "], normalization_rule_name="identity", remove_extra_whitespaces=False),
        "spm_bpe_gemma": dict(model_type="bpe", byte_fallback=True, add_dummy_prefix=False, normalization_rule_name="identity", remove_extra_whitespaces=False, user_defined_symbols=["<mask>", "\n\n"]),
        "spm_bpe_nmt": dict(model_type="bpe", byte_fallback=False),
    }.items():
        blob = io.BytesIO()
        vocab = 900 if options.get("byte_fallback") else 600
        sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(CORPUS), model_writer=blob, vocab_size=vocab, hard_vocab_limit=False, minloglevel=2, normalization_rule_name=options.pop("normalization_rule_name", "identity"), **options)
        (OUT / f"{name}.tokenizer.model").write_bytes(blob.getvalue())
        assert len(blob.getvalue()) < 60_000
        write(OUT / f"{name}.golden.json", {"cases": sentencepiece_cases(sentencepiece.SentencePieceProcessor(model_proto=blob.getvalue()))})


def sentencepiece_cases(sp):
    out = []
    for text in TEXTS:
        ids = sp.encode(text)
        case = {"text": text, "ids": ids}
        decoded = sp.decode(ids) if not any(sp.is_unknown(i) for i in ids) else None
        if decoded != text:
            case["decode"] = decoded
        out.append(case)
    return out


def tiktoken_cases(path, pattern, specials):
    ranks = tiktoken.load.load_tiktoken_bpe(str(path))
    encoding = tiktoken.Encoding("x", pat_str=pattern, mergeable_ranks=ranks, special_tokens=specials)
    out = []
    for text in TEXTS:
        case = {"text": text, "ids": encoding.encode(text, allowed_special="all")}
        raw = encoding.encode(text, disallowed_special=())
        if raw != case["ids"]:
            case["unparsed"] = raw
        out.append(case)
    return out


def real():
    data = SHARED / "data/tokenizers"
    texts = {"texts": TEXTS, "golden": {}}

    def put(path, found):
        # The texts are stored once.
        texts["golden"][path] = [{k: v for k, v in c.items() if k != "text"} for c in found]

    for path in sorted(data.glob("**/tokenizer.json")):
        try:
            tok = Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises no narrower type
            texts.setdefault("refused", []).append(str(path.relative_to(SHARED)))
            print("refused:", path, error)
            continue
        put(str(path.relative_to(SHARED)), cases(tok, TEXTS))
    for path in sorted(list(data.glob("mistral/*.model.*")) + list(data.glob("llama2/tokenizer.model"))):
        put(str(path.relative_to(SHARED)), sentencepiece_cases(sentencepiece.SentencePieceProcessor(model_file=str(path))))
    gpt2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
    llama3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    o200k = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    for path, pattern, specials in (
        ("llama3/tokenizer.model", llama3, {"<|begin_of_text|>": 128000}), ("llama4/tokenizer.model", o200k, {"<|begin_of_text|>": 200000}),
        ("tiktoken/cl100k_base.tiktoken", llama3, {"<|endoftext|>": 100257}), ("tiktoken/o200k_base.tiktoken", o200k, {"<|endoftext|>": 199999}),
        ("tiktoken/r50k_base.tiktoken", gpt2, {"<|endoftext|>": 50256}), ("tiktoken/p50k_base.tiktoken", gpt2, {"<|endoftext|>": 50256}),
    ):
        put("data/tokenizers/" + path, tiktoken_cases(data / path, pattern, specials))
    # vocab.json + merges.txt
    for folder, pattern in (("qwen2", llama3.replace("{1,3}", "")), ("ort-ext/roberta-base", gpt2)):
        tok = Tokenizer(models.BPE.from_file(str(data / folder / "vocab.json"), str(data / folder / "merges.txt")))
        if folder == "qwen2":
            tok.normalizer = normalizers.NFC()
            tok.add_special_tokens([AddedToken(t, normalized=False) for t in ("<|endoftext|>", "<|im_start|>", "<|im_end|>")])
        tok.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
        tok.decoder = decoders.ByteLevel()
        put(f"data/tokenizers/{folder}/vocab.json", cases(tok, TEXTS))
    write(OUT / "real.json", texts)


if __name__ == "__main__":
    if OUT.exists():
        shutil.rmtree(OUT)
    trained_models()
    steps()
    sentencepiece_models()
    if SHARED.exists():
        real()
    print(sum(f.stat().st_size for f in OUT.glob("*")), "bytes in", len(list(OUT.glob("*"))), "files")
