#!/usr/bin/env python3
"""Makes tests/fixtures/tokenizers: a multilingual corpus, small tokenizers that carry the pipelines
of published ones, their GGUF forms, and what Hugging Face tokenizers makes of the corpus.
Needs the Python packages tokenizers, gguf, sentencepiece, protobuf and (with a model file as
argument) numpy.

    scripts/make_tokenizer_fixtures.py [SmolLM2-135M-Instruct.Q4_1.gguf]

corpus.txt: one text per line, with \\n \\r \\t \\\\ escaped. NAME.expect: per corpus line the CRC-32 of
    ids with specials parsed and added, ids as plain text, decoded text; on every 20th line the ids.
    "-": a line with characters of which BERT's normaliser in the library has older properties.
turns.txt, NAME.turns: the same for texts with the chat markers of DeepSeek and GLM.
"""
import json
import os
import random
import struct
import sys
import tempfile
import unicodedata
import zlib

import gguf
from sentencepiece import SentencePieceTrainer, sentencepiece_model_pb2
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import AddedToken, trainers

OUT = os.path.join(os.path.dirname(__file__), "..", "tests", "fixtures", "tokenizers")
MARK = "\u2581"
LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
          r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
QWEN2 = LLAMA3.replace("{1,3}", "")
DEEPSEEK = (r"\p{N}{1,3}", "[一-龥\u3040-ゟ゠-ヿ]+",
            r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+|"""
            r" ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
BEGIN, END = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"

SENTENCES = """
The ring passes every block of keys to its neighbour, and nobody waits longer than needed.
She didn't say they'd come; I'm sure we'll see, he's late, you've won, it'd rain, they're here.
HE SAID IT'S DONE, WE'LL GO, THEY'RE OFF AND I'D STAY. She'S odd'ly 'Quoted' 'ſ.
A long document is read once, then questions are asked about it many times over.
İstanbul'da yağmur yağıyordu; çocuklar ığdır ağacının gölgesinde şarkı söylüyordu.
Halka, Türkçede yüzük ya da çember demektir. Öğretmen: "Güneş doğdu mu?" diye sordu.
Çekoslovakyalılaştıramadıklarımızdan mısınız? Muvaffakiyetsizleştiricileştiriveremeyebileceklerimizden.
Der Fluß fließt über größere Brücken, während Äpfel im Öl schwimmen. Donaudampfschifffahrt!
Où êtes-vous né ? L'été dernier, à côté de l'hôtel, nous avons mangé des crêpes — déjà froides.
¿Dónde está el niño? ¡Mañana comeremos piñas y jalapeños! El pingüino cantó.
A coração não se engana: amanhã há pão, maçãs e açúcar na mesa da avó.
Zażółć gęślą jaźń. Příliš žluťoučký kůň úpěl. Árvíztűrő tükörfúrógép. Ђак љуби њиву.
Быстрая лиса перепрыгнула через ленивую собаку, а потом ещё раз; ёжик смотрел.
Η γρήγορη αλεπού πηδάει πάνω από το τεμπέλικο σκυλί. Άλφα, βήτα, ΰμνος.
鱼在河里游，鸟在天上飞。今天的天气很好，我们去公园散步吧！长文档需要分布式阅读。
東京の空は青くて、桜がきれいです。カタカナとひらがなと漢字を混ぜて書きます。ｶﾀｶﾅ ﾊﾝｶｸ。
오늘은 날씨가 좋아서 공원에 갔습니다. 한글은 자모로 이루어져 있다. 각 간 갇
القراءة الطويلة تحتاج إلى صبر كبير. ذهب الولدُ إلى المدرسةِ في الصباحِ الباكر، ثم عاد.
הספר מונח על השולחן, והילדה קוראת בו בשקט. שָׁלוֹם עֲלֵיכֶם, מה שלומך היום?
आज मौसम बहुत अच्छा है और हम बगीचे में घूमने जा रहे हैं। क्षत्रिय ज्ञान श्रृंखला।
আজ আকাশ পরিষ্কার। தமிழ் மொழி இனிமையானது. తెలుగు భాష తీయనిది. ಕನ್ನಡ ನುಡಿ. മലയാളം.
วันนี้อากาศดีมากและเราไปเดินเล่นที่สวนสาธารณะ ลาว ພາສາລາວ ខ្មែរ မြန်မာ བོད་སྐད་
Hôm nay trời đẹp, chúng tôi đi dạo trong công viên. Tiếng Việt có nhiều dấu.
ქართული ენა ლამაზია. Հայերեն լեզու. አማርኛ ቋንቋ. ᠮᠣᠩᠭᠣᠯ\u180eᠪᠢᠴᠢᠭ ᏣᎳᎩ ⴰⵎⴰⵣⵉⵖ
👩‍👩‍👧‍👦 family, 🏳️‍🌈 flag, 👍🏽 thumbs, 🇹🇷🇩🇪 flags, 🧑🏿‍🚀 astronaut, ❤️‍🔥, 1️⃣2️⃣3️⃣ keycaps.
∀ε>0 ∃δ>0: |x−a|<δ ⇒ |f(x)−f(a)|<ε; ∑ᵢ₌₁ⁿ i² = n(n+1)(2n+1)/6 ≈ ⅓n³ √2 ≠ 1½ x² ①②③ ⅧⅨ Ⅻ
𝒜𝓁𝓅𝒽𝒶 𝔹𝕖𝕥𝕒 ﬁne ﬂow ﬃ ℌ Å Ω K ™ ½ ㌔ ㈱ ﷺ １２３ ＡＢＣ ｶﾞ ﾊﾟ ㄱㅏ ﾡￂ
https://example.org/a/b-c_d?q=1&r=%20x#frag mailto:reader@example.com ftp://10.0.0.1:8080/~u/
for (int i = 0; i < n; i++) { sum += a[i] * b[i]; } // dot product
def read(path: str) -> list[int]:\\n    with open(path) as f:\\n        return [int(x) for x in f]\\n
#include <stdio.h>\\n\\nint main(void) {\\n\\tprintf("%d\\\\n", 42);\\n\\treturn 0;\\n}\\n
SELECT name, COUNT(*) FROM readers WHERE pages >= 1000 GROUP BY name HAVING COUNT(*) > 2;
{"key": [1, 2.5e-3, null, true], "nested": {"a": "b\\\\u00e9"}} <div class="x">&nbsp;</div>
1 12 123 1234 12345 1234567890 3.14159 1,000,000 1e-10 0xDEADBEEF 2024-02-29 12:34:56 ٣٤٥ १२३ 四五六
$5.00 €1.234,56 £99 ¥1000 50% #1 @user !!! ??? ... --- *** === ~~~ ((())) [[]] {{}} <<>> «ok» „ja“
<|im_start|>user\\nHello<|im_end|>\\n<|im_start|>assistant\\n <|endoftext|> <s> </s> <unk> <bos> <eos>
<|begin_of_text|><|start_header_id|>user<|end_header_id|>\\n\\nhi<|eot_id|> [INST] x [/INST] <0x41> <0xE2>
tabs\\tand\\ttabs\\t\\t end \\r\\n windows \\r\\n\\r\\n lines \\n\\n\\n  indented\\n    more\\n\\t\\tmixed \\n
""".strip().split("\n")


def unescape(line):
    out, it = [], iter(line)
    for c in it:
        out.append({"n": "\n", "r": "\r", "t": "\t", "\\": "\\"}[next(it)] if c == "\\" else c)
    return "".join(out)


def escape(text):
    return (text.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r").replace("\t", "\\t"))


def systematic(rng):
    spaces = [" ", "  ", "   ", "\t", "\n", "\r\n", "\n\n", "\u00a0", "\u3000", "\u2003", "\u2028",
              "\u0085", "\u180e", "\u200b", "\ufeff", "\x1c", "\x0b", "\x0c"]
    for n in list(range(1, 20)) + [33, 64, 100]:
        yield " " * n
        yield "a" + " " * n + "b"
        yield "\n" * n + " x" + " " * n
        yield "7" * n + "x" + "7" * n
        yield "z" * n
        yield "=" * n + "\n"
    for space in spaces:
        for other in spaces:
            yield f"one{space}{other}two{other}"
        yield f"{space}é{space}'s{space}1{space}！"
        yield f"x{space}<mask>{space}y halka{space}halkalar <|im_end|>{space}"
    # Combining marks: in and out of canonical order, on letters of many scripts, runs of them.
    marks = "\u0301\u0300\u0302\u0303\u0308\u0323\u0327\u0328\u031b\u0345\u0338\u3099\u05bc\u064b"
    for base in "aeiouAEOcsngkıİåưα가あカ=<א":
        for mark in marks:
            yield f"{base}{mark}x {base}{rng.choice(marks)}{mark}"
        yield base + "".join(rng.choice(marks) for _ in range(40))
    for text in ["\u1100\u1161\u11a8\u1100\u1161", "\uac00\u11a8", "\u0915\u093c\u0958", "\u212b\u2126\u212a",
                 "\ufb1d\ufb2a", "\u0344\u0387", "\u09c7\u09be\u09c7\u09d7", "\u1e9b\u0323", "\U0001d15e",
                 "\u0f73\u0f75\u0f81", "\u2adc", "\ufa0e\uf900\u2f800", "\u0374\u037e", "\u1025\u102e"]:
        yield text
        yield f"ab{text}cd {text} {text}{text}"
    for first in range(0, 0x3000, 64):
        text = "".join(chr(c) for c in range(first, first + 64, 3) if c != 0 and chr(c).isprintable())
        if text:
            yield text
    for first in [0x3040, 0x4e00, 0xac00, 0xa960, 0xfb00, 0xfe30, 0xff00, 0x10330, 0x12000, 0x1f1e6, 0x1f600,
                  0x1f900, 0x20000]:
        yield "".join(chr(first + 5 * i) for i in range(24))
        yield " ".join(chr(first + 7 * i) for i in range(12))
    for c in range(1, 32):
        yield f"a{chr(c)}b {chr(c)}{chr(c)}"
    yield "\x00nul\x00"
    yield "\x7f\ufffd\ufffe\U0010ffff"


def corpus():
    rng = random.Random(20240229)
    lines = [unescape(s.replace("\\u180e", "\u180e")) for s in SENTENCES]
    words = [w for line in lines for w in line.split(" ") if w]
    lines += list(systematic(rng))
    lines.append("")
    for line in lines[: len(SENTENCES)]:
        for cut in range(3):
            a = rng.randrange(len(line))
            lines.append(line[a : a + 60])
        lines.append(line.upper()[:80])
        lines.append(line.swapcase()[:80])
    while len(lines) < 2320:
        n = rng.randint(2, 9)
        joint = rng.choice([" ", " ", " ", "  ", "", "-", "\n", ", ", "_", " '", "\t", "1", "\u00a0"])
        lines.append(joint.join(rng.choice(words) for _ in range(n))[:90])
    # The library's normal forms are of an older Unicode version: leave out what they do not know.
    nfc = normalizers.NFC()
    return [line for line in lines if nfc.normalize_str(line) == unicodedata.normalize("NFC", line)]


def turns():
    """Chat markers of DeepSeek and GLM, whole, cut and among text that looks like them."""
    marks = [BEGIN, END, "<｜User｜>", "<｜Assistant｜>", "<think>", "</think>", "[gMASK]", "<sop>",
             "<|system|>", "<|user|>", "<|assistant|>", "/nothink", "<|endoftext|>"]
    for mark in marks:
        for text in (mark, f"a{mark}b", f" {mark} ", f"12345{mark}漢字かな{mark}\n", mark * 2,
                     mark[:-1], mark[1:], mark.replace("｜", "|"), mark.replace("|", "｜"),
                     mark.replace("▁", "_"), mark.lower(), f"é{mark}\u0301x"):
            yield text
    yield f"{BEGIN}Du bist hilfreich.<｜User｜>Was ist 1234567 + 89?\n\n漢字カナかな<｜Assistant｜></think>"
    yield "[gMASK]<sop><|system|>\nBe brief.<|user|>\nWhat is 2+2? 12345/nothink<|assistant|>\n<think></think>"
    yield "[gMASK]<sop><|user|>你好，世界！ 3.14159<|assistant|></think>"
    yield "漢字123漢字かな4567カナー・ヽ ゠ァ ぀ゟ 龥龦 一丁"
    yield "#include<a> .method() _name @user \\alpha {key} ~x `y` !z \"quoted\" 'it's' a.b.c"
    yield "$x+y=z ± × ÷ ≠ €5 £100 ^_^ ~~ ||| <<>> ==> +++\r\n--- \r\n\r\n x"
    yield "e\u0301te\u0301 \u0301\u0301 \u0e33\u0e48 \u094d\u0915 1\u0301 ١٢٣٤٥ Ⅷ½①²"


def special(*names, **flags):
    return [AddedToken(name, special=True, normalized=False, **flags) for name in names]


def byte_level(lines, size, normalizer, pre, names, bos=None, whole=False):
    tokenizer = Tokenizer(models.BPE(ignore_merges=whole))
    if normalizer:
        tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=special(*names), show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(lines, trainer)
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    if bos:
        template = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A $B", special_tokens=[(bos, tokenizer.token_to_id(bos))])
        tokenizer.post_processor = processors.Sequence([tokenizer.post_processor, template])
    return tokenizer


def sentencepiece_vocab(lines, size, names, split):
    """Pieces in the order of a SentencePiece file: specials, bytes, merges by score, characters."""
    trainee = Tokenizer(models.BPE())
    trainee.normalizer = normalizers.Replace(" ", MARK)
    if split:
        trainee.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=True)
    limit = [line[:400] for line in lines]
    trainee.train_from_iterator(limit, trainers.BpeTrainer(vocab_size=size, limit_alphabet=220,
                                                           show_progress=False, max_token_length=12))
    pieces = sorted(trainee.get_vocab().items(), key=lambda item: item[1])
    characters = [p for p, _ in pieces if len(p) == 1]
    if MARK not in characters:
        characters.append(MARK)
    longer = [p for p, _ in pieces if len(p) > 1]
    first = names + [f"<0x{b:02X}>" for b in range(256)]
    longer = [p for p in longer if p not in first]  # the corpus spells some of those out
    order = first + longer + characters
    vocab = {piece: i for i, piece in enumerate(order)}
    merges = []
    for piece in longer:
        cuts = [(piece[:i], piece[i:]) for i in range(1, len(piece))]
        cuts = [c for c in cuts if c[0] in vocab and c[1] in vocab]
        merges += sorted(cuts, key=lambda c: (vocab[c[0]], vocab[c[1]]))
    return vocab, merges


def sentencepiece(vocab, merges, unknown):
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token=unknown, fuse_unk=True,
                                     byte_fallback=True))
    undo = [decoders.Replace(MARK, " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence(undo + [decoders.Strip(" ", 1, 0)])
    return tokenizer, undo


def with_bos(tokenizer, bos, eos=None):
    names = [bos] + ([eos] if eos else [])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A" + (f" {eos}" if eos else ""), pair=f"{bos} $A $B",
        special_tokens=[(n, tokenizer.token_to_id(n)) for n in names])


def bert(lines, lower):
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]", max_input_chars_per_word=40))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lower, strip_accents=None)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer.train_from_iterator(lines, trainers.WordPieceTrainer(
        vocab_size=900, special_tokens=names, show_progress=False, limit_alphabet=300))
    pair = [("[SEP]", 3), ("[CLS]", 2)]
    if lower:
        with_bos(tokenizer, "[CLS]", "[SEP]")
    else:
        tokenizer.post_processor = processors.BertProcessing(*pair)
    return tokenizer


def normal_rules(lines):
    """Some of NFKC's rules, of single characters and of sequences, as SentencePiece reads them."""
    rules = {"\t": " ", "\n": " ", "\r": " ", "\u00a0": " ", "\u3000": " ", "\u200b": "", "\x7f": "",
             "\x01": "", "e\u0301": "é", "a\u0308": "ä", "o\u0308": "ö", "u\u0308": "ü", "ｶﾞ": "ガ",
             "\u1100\u1161": "가"}
    for c in sorted(set("".join(lines))):
        normal = unicodedata.normalize("NFKC", c)
        if normal != c and len(rules) < 400 and "\0" not in normal:
            rules[c] = normal
    return "".join(" ".join(f"{ord(x):X}" for x in a) + "\t" + " ".join(f"{ord(x):X}" for x in b) + "\n"
                   for a, b in rules.items())


def unigram(lines):
    """XLM-RoBERTa's pipeline over a model that SentencePiece trained."""
    with tempfile.TemporaryDirectory() as folder:
        with open(f"{folder}/rules.tsv", "w") as f:
            f.write(normal_rules(lines))
        with open(f"{folder}/text", "w") as f:
            f.write("".join(line.replace("\n", " ").replace("\0", "") + "\n" for line in 20 * lines[:40]))
        SentencePieceTrainer.train(
            input=f"{folder}/text", model_prefix=f"{folder}/m", model_type="unigram", vocab_size=1600,
            hard_vocab_limit=False, normalization_rule_tsv=f"{folder}/rules.tsv",
            character_coverage=0.98, num_threads=1, bos_id=-1, eos_id=-1, minloglevel=2)
        model = sentencepiece_model_pb2.ModelProto()
        with open(f"{folder}/m.model", "rb") as f:
            model.ParseFromString(f.read())
    vocab = [(name, 0.0) for name in ("<s>", "<pad>", "</s>", "<unk>")]
    vocab += [(piece.piece, piece.score) for piece in model.pieces[1:]]
    tokenizer = Tokenizer(models.Unigram(vocab, unk_id=3))
    tokenizer.normalizer = normalizers.Sequence([
        normalizers.Precompiled(model.normalizer_spec.precompiled_charsmap),
        normalizers.Strip(left=False, right=True), normalizers.Replace(Regex(" {2,}"), MARK)])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(prepend_scheme="always")])
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    tokenizer.add_special_tokens(special("<s>", "<pad>", "</s>", "<unk>") + special("<mask>", lstrip=True))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)])
    return tokenizer


def same_properties(line):
    """Whether BERT's normaliser sees each character as the Unicode of this Python does."""
    def check(**flags):
        off = dict(clean_text=False, handle_chinese_chars=False, strip_accents=False, lowercase=False)
        return normalizers.BertNormalizer(**dict(off, **flags))
    clean, marks, lower = check(clean_text=True), check(strip_accents=True), check(lowercase=True)
    words = pre_tokenizers.BertPreTokenizer()
    for c in line:
        kind = unicodedata.category(c)
        removed = kind in ("Cc", "Cf", "Co") and c not in "\t\n\r" or c in "\0\ufffd"
        bare = "".join(x for x in unicodedata.normalize("NFD", c) if unicodedata.category(x) != "Mn")
        mark = kind[0] == "P" or c.isascii() and kind[0] == "S"
        if (clean.normalize_str(c) == "") != removed or marks.normalize_str(c) != bare:
            return False
        if lower.normalize_str(c) != c.lower() or kind == "Cn":
            return False
        if (len(words.pre_tokenize_str(f"a{c}b")) == 3) != mark and not c.isspace():
            return False
    return True


def make_tokenizers(lines):
    out = {}
    byte = pre_tokenizers.ByteLevel
    split = pre_tokenizers.Split
    out["smollm"] = byte_level(
        lines, 1000, None,
        pre_tokenizers.Sequence([pre_tokenizers.Digits(True), byte(add_prefix_space=False)]),
        ["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    out["gpt2"] = byte_level(lines, 800, None, byte(add_prefix_space=False), ["<|endoftext|>"])
    for name, pattern, normalizer, names, bos in [
            ("llama3", LLAMA3, None,
             ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
             "<|begin_of_text|>"),
            ("qwen2", QWEN2, normalizers.NFC(), ["<|endoftext|>", "<|im_start|>", "<|im_end|>"], None)]:
        pre = pre_tokenizers.Sequence([split(Regex(pattern), "isolated"),
                                       byte(add_prefix_space=False, use_regex=False)])
        out[name] = byte_level(lines, 1000, normalizer, pre, names, bos, whole=name == "llama3")
    pre = pre_tokenizers.Sequence([split(Regex(p), "isolated") for p in DEEPSEEK]
                                  + [byte(add_prefix_space=False, use_regex=False)])
    out["deepseek"] = byte_level(lines, 1000, normalizers.Sequence([]), pre, [BEGIN, END])
    out["deepseek"].add_tokens([AddedToken(t, normalized=False) for t in
                                ["<｜User｜>", "<｜Assistant｜>", "<think>", "</think>"]])
    pre = pre_tokenizers.Sequence([split(Regex(LLAMA3), "isolated"),
                                   byte(add_prefix_space=False, use_regex=False)])
    out["glm"] = byte_level(lines, 1000, None, pre, [
        "<|endoftext|>", "[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>"])
    out["glm"].add_tokens([AddedToken(t, normalized=False) for t in ["<think>", "</think>", "/nothink"]])
    # Every behaviour of a split, compatibility forms, prefix spaces, grouped digits.
    out["mixed"] = byte_level(
        lines, 700, normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {3,}"), " _ ")]),
        pre_tokenizers.Sequence([
            split(Regex(r"\s*[\r\n]+"), "merged_with_previous"), split("-", "merged_with_next"),
            split(",", "removed"), split(Regex(r"\w+"), "contiguous"), split(Regex(r"[^\s]+"), "isolated", True),
            pre_tokenizers.Digits(False), byte(add_prefix_space=True)]),
        ["<|endoftext|>"])
    out["modernbert"] = byte_level(lines, 900, normalizers.NFC(), byte(add_prefix_space=False),
                                   ["<|padding|>", "<|endoftext|>"])
    out["modernbert"].add_tokens([AddedToken(t, normalized=True) for t in
                                  [" " * 8, " " * 4, "  ", "|||IP_ADDRESS|||"]])
    out["modernbert"].add_special_tokens(special("[UNK]", "[CLS]", "[SEP]", "[PAD]")
                                         + special("[MASK]", lstrip=True))
    with_bos(out["modernbert"], "[CLS]", "[SEP]")
    out["roberta"] = byte_level(lines, 800, None, byte(add_prefix_space=False),
                                ["<s>", "<pad>", "</s>", "<unk>"])
    out["roberta"].add_special_tokens(special("<mask>", lstrip=True))
    out["roberta"].post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    out["bert"] = bert(lines, True)
    out["bert-cased"] = bert(lines, False)
    out["unigram"] = unigram(lines)
    vocab, merges = sentencepiece_vocab(lines, 900, ["<unk>", "<s>", "</s>"], True)
    llama, _ = sentencepiece(vocab, merges, "<unk>")
    llama.normalizer = normalizers.Sequence([normalizers.Prepend(MARK), normalizers.Replace(" ", MARK)])
    llama.add_special_tokens(special("<unk>", "<s>", "</s>"))
    with_bos(llama, "<s>")
    out["llama2"] = llama
    mistral, _ = sentencepiece(vocab, merges, "<unk>")
    mistral.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    mistral.add_special_tokens(special("<unk>", "<s>", "</s>", "[INST]", "[/INST]"))
    mistral.add_special_tokens(special("<mask>", lstrip=True, rstrip=True))
    mistral.add_tokens([AddedToken("halka", single_word=True)])
    with_bos(mistral, "<s>", "</s>")
    out["mistral"] = mistral
    vocab, merges = sentencepiece_vocab(lines, 900, ["<pad>", "<eos>", "<bos>", "<unk>"], False)
    for extra in ["\n\n", "\n\n\n"]:
        vocab.setdefault(extra, len(vocab))
    gemma, undo = sentencepiece(vocab, merges, "<unk>")
    gemma.normalizer = normalizers.Replace(" ", MARK)
    gemma.pre_tokenizer = split(" ", "merged_with_previous")
    gemma.decoder = decoders.Sequence(undo)
    gemma.add_special_tokens(special("<pad>", "<eos>", "<bos>", "<unk>"))
    gemma.add_tokens([AddedToken(t, normalized=False) for t in ["\n\n", "\n\n\n"]])
    with_bos(gemma, "<bos>")
    out["gemma"] = gemma
    return out


GGUF = {"smollm": ("gpt2", "smollm", None), "gpt2": ("gpt2", "gpt-2", None),
        "deepseek": ("gpt2", "deepseek-v3", None), "glm": ("gpt2", "glm4", None),
        "llama3": ("gpt2", "llama-bpe", "<|begin_of_text|>"), "qwen2": ("gpt2", "qwen2", None),
        "llama2": ("llama", None, "<s>"), "gemma": ("llama", None, "<bos>")}


def write_gguf(name, tokenizer):
    model, pre, bos = GGUF[name]
    data = json.loads(tokenizer.to_str())
    added = {t["id"]: t for t in data["added_tokens"]}
    vocab = {i: t for t, i in data["model"]["vocab"].items()}
    tokens, types, scores = [], [], []
    for i in range(max(list(vocab) + list(added)) + 1):
        text = added[i]["content"] if i in added else vocab[i]
        kind = gguf.TokenType.NORMAL
        if i in added:
            kind = gguf.TokenType.CONTROL if added[i]["special"] else gguf.TokenType.USER_DEFINED
        elif model == "llama" and len(text) == 6 and text.startswith("<0x"):
            kind = gguf.TokenType.BYTE
        if text == "<unk>":
            kind = gguf.TokenType.UNKNOWN
        tokens.append(text)
        types.append(int(kind))
        scores.append(-float(i))
    writer = gguf.GGUFWriter(os.path.join(OUT, name + ".gguf"), "llama")
    writer.add_tokenizer_model(model)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    if pre:
        writer.add_tokenizer_pre(pre)
        writer.add_token_merges([" ".join(m) for m in data["model"]["merges"]])
    else:
        writer.add_token_scores(scores)
        writer.add_add_space_prefix(name == "llama2")
        writer.add_unk_token_id(tokenizer.token_to_id("<unk>"))
    if bos:
        writer.add_bos_token_id(tokenizer.token_to_id(bos))
    writer.add_add_bos_token(bos is not None)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()


def expect(path, tokenizer, lines):
    def pack(ids):
        return struct.pack(f"<{len(ids)}i", *ids)

    is_bert = isinstance(tokenizer.normalizer, normalizers.BertNormalizer)
    with open(path, "w") as f:
        for i, line in enumerate(lines):
            if is_bert and not same_properties(line):
                f.write("-\n")
                continue
            tokenizer.encode_special_tokens = False
            parsed = tokenizer.encode(line, add_special_tokens=True).ids
            tokenizer.encode_special_tokens = True
            plain = tokenizer.encode(line, add_special_tokens=False).ids
            crc = zlib.crc32(pack(parsed))
            crc = zlib.crc32(pack(plain), crc)
            crc = zlib.crc32(tokenizer.decode(parsed).encode(), crc)
            f.write(f"{crc:08x}" + (" " + " ".join(map(str, parsed)) if i % 20 == 0 else "") + "\n")


def published(path):
    """SmolLM2's own vocabulary, under the pipeline that its tokenizer.json describes."""
    fields = gguf.GGUFReader(path).fields
    tokens = fields["tokenizer.ggml.tokens"].contents()
    types = fields["tokenizer.ggml.token_type"].contents()
    merges = [tuple(m.split(" ", 1)) for m in fields["tokenizer.ggml.merges"].contents()]
    tokenizer = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(special(*[t for t, k in zip(tokens, types) if k == 3]))
    return tokenizer


def main():
    os.makedirs(OUT, exist_ok=True)
    lines = corpus()
    with open(os.path.join(OUT, "corpus.txt"), "w") as f:
        f.write("".join(escape(line) + "\n" for line in lines))
    marked = list(turns())
    with open(os.path.join(OUT, "turns.txt"), "w") as f:
        f.write("".join(escape(line) + "\n" for line in marked))
    for name, tokenizer in make_tokenizers(lines).items():
        with open(os.path.join(OUT, name + ".json"), "w") as f:
            f.write(tokenizer.to_str(pretty=False))
        expect(os.path.join(OUT, name + ".expect"), tokenizer, lines)
        if name in ("deepseek", "glm"):
            expect(os.path.join(OUT, name + ".turns"), tokenizer, marked)
        if name in GGUF:
            write_gguf(name, tokenizer)
    if len(sys.argv) > 1:
        expect(os.path.join(OUT, "smollm2.expect"), published(sys.argv[1]), lines)


main()
