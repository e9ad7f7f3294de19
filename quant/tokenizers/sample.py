"""Text of many kinds, always the same, on which two tokenizers are compared."""

# ruff: noqa: RUF001 - letters that look alike are the point
import random
from collections.abc import Sequence

_SENTENCES = (
    "The quick brown fox jumps over the lazy dog, doesn't it? WE'LL see: they've said I'm wrong, she'd agree.",
    "Ein Bäcker in Größenwahn übt fleißig; naïve Gäste zahlen 12,50 € für Käsespätzle.",
    "Où est la bibliothèque ? L'été dernier, j'ai vu « cœur » écrit à l'envers.",
    "El niño comió piñas en Asunción. ¿Cuándo volverá? ¡Mañana!",
    "Съешь ещё этих мягких французских булок, да выпей чаю. Їжак і ґанок.",
    "Η γρήγορη αλεπού πηδά πάνω από τον τεμπέλη σκύλο.",
    "敏捷的棕色狐狸跳过懒狗。我在2026年用Python写了3个程序，花了1,234.56元！",
    "素早い茶色の狐はのろまな犬を飛び越える。カタカナとひらがなの混在テスト。",
    "빠른 갈색 여우가 게으른 개를 뛰어넘는다. 한국어 띄어쓰기 시험입니다.",
    "الثعلب البني السريع يقفز فوق الكلب الكسول. ١٢٣٤٥",
    "השועל החום המהיר קופץ מעל הכלב העצלן.",
    "तेज़ भूरी लोमड़ी आलसी कुत्ते के ऊपर से कूदती है। १२३",
    "สุนัขจิ้งจอกสีน้ำตาลกระโดดข้ามสุนัขขี้เกียจ",
    "দ্রুত বাদামী শিয়াল অলস কুকুরের উপর লাফ দেয়।",
    "Nhanh như cáo nâu nhảy qua con chó lười biếng. Tiếng Việt có dấu.",
    "Hızlı kahverengi tilki İstanbul'da tembel köpeğin üstünden atlıyor; ığüşöç.",
)
_CODE = (
    "def f(x: int) -> int:\n    if x <= 1:\n\treturn x\n    return f(x - 1) + f(x - 2)  # fib\n",
    "for (int i = 0; i < n; ++i) {\r\n\ta[i] += b[i] * 0x1F; // sum\r\n}\r\n",
    '{"key": ["value", 1.5e-10, null, true], "nested": {"a\\n": "\\u00e9"}}',
    "SELECT * FROM t WHERE a>=10 AND b<>'x' -- comment\n",
    '<div class="a b"><p>Hello &amp; bye</p></div><!-- note -->',
    "https://example.org/path?q=1&r=%20#frag user@example.org C:\\temp\\new $HOME/.config",
    "$\\frac{a^2}{b_1} \\leq \\sum_{i=0}^{n} x_i$ ... `code` **bold** ~~gone~~ ------ ======",
)
_NUMBERS = (
    "0 1 12 123 1234 12345 123456 1234567 3.14159 1,000,000 1e9 0xFF ½ ² ³ Ⅷ ٣ 2026-11-23 10:15:30",
    "v1.2.3-rc.4",
)
_SPACES = (
    "a  b   c    d     e\t\tf\n\n\ng\r\nh \n i\n  j   \n",
    "trailing   ",
    "   leading",
    "\n",
    " ",
    "\t\t",
    "no\u00a0break\u2003em\u3000wide\u200bzero",
    "x" + " " * 40 + "y",
    "\n" * 20 + "z",
)
_EMOJI = ("😀😃 👨\u200d👩\u200d👧\u200d👦 🏳️\u200d🌈 ❤️ ✅ 🇩🇪🇫🇷 👍🏽", "⚡→∞≠√ ♠♣ ☕️")
_COMBINING = (
    "e\u0301 n\u0303 a\u0308o\u0308u\u0308 Z\u0351\u036b\u0343 q\u0307\u0323",
    "\u1112\u1161\u11ab\u1100\u1173\u11af Å \u212b",
)
_CONTROL = (
    "a\x01b\x1bc\x7fd\x85e",
    "bell\x07 form\x0cfeed vertical\x0btab",
    "\ufeffbom \ufffd \u2028line\u2029para \u00adsoft",
)
_RANGES = (
    (0x20, 0x7F),
    (0xA0, 0x250),
    (0x370, 0x530),
    (0x5D0, 0x700),
    (0x900, 0xE80),
    (0x1E00, 0x2200),
    (0x2500, 0x2C00),
)
_WIDE_RANGES = (
    (0x3040, 0x3100),
    (0x4E00, 0x9FA6),
    (0xAC00, 0xD7A4),
    (0xFF01, 0xFF60),
    (0x1F300, 0x1F700),
    (0x20000, 0x20100),
)


def mixed_text(special: Sequence[str] = (), *, seed: int = 0, n_random: int = 400) -> dict[str, list[str]]:
    """Texts by kind.

    Args:
        special: Special tokens to put inside text.
        seed: Of the random part.
        n_random: Random texts; each has up to 60 characters.
    """
    chance = random.Random(seed)
    return {
        "languages": [*_SENTENCES, " ".join(_SENTENCES), *(sentence.upper() for sentence in _SENTENCES[:6])],
        "code": list(_CODE),
        "numbers": list(_NUMBERS),
        "white space": list(_SPACES),
        "emoji": list(_EMOJI),
        "combining marks": list(_COMBINING),
        "control characters": list(_CONTROL),
        "special tokens": [
            f"{before}{token}{after}" for token in special for before, after in (("", "Hi"), ("a ", " b"))
        ],
        "random words": [_words(chance) for _ in range(n_random)],
        "random characters": [_characters(chance) for _ in range(n_random)],
    }


def _words(chance: random.Random) -> str:
    """Pieces of the texts above, cut anywhere and joined anyhow."""
    pool = (*_SENTENCES, *_CODE, *_NUMBERS, *_SPACES)
    pieces = []
    for _ in range(chance.randint(1, 5)):
        text = chance.choice(pool)
        start = chance.randrange(len(text))
        pieces.append(text[start : start + chance.randint(1, 15)])
    return "".join(pieces)


def _characters(chance: random.Random) -> str:
    """Characters of any script that has been assigned."""
    ranges = chance.sample((*_RANGES, *_WIDE_RANGES), 2)
    return "".join(chr(chance.randrange(*chance.choice(ranges))) for _ in range(chance.randint(1, 60)))
