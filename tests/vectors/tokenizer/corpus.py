"""The texts that every tokenizer is compared on. Each case is (text, times): the text repeated."""

import random

PLAIN = [
    "",
    " ",
    "  ",
    "a",
    "Hello",
    " Hello",
    "  Hello",
    "Hello world",
    "Hello  world   and    more     spaces      ",
    "The quick brown fox jumps over the lazy dog.",
    "I'm sure you'll say he's what we've got, they'd've; I'M, YOU'LL, HE'S, WE'VE, THEY'D",
    "don't can’t ‘quoted’ “double” rock'n'roll 'tis 'the 'llama 're",
    "'ſ 'S x'ſ Kelvin K and Å",
    "CamelCaseIdentifier snake_case_name SCREAMING_CASE XMLHttpRequest iPhone eBay aB Ab AB aBC",
    "ÉCOLE École éCOLE ǅ ǆ Ǆ straße STRASSE ŒUVRE",
]

NUMBERS = [
    "0 1 12 123 1234 12345 123456 1234567 12345678901234567890",
    "3.14159 -2.5e10 1,000,000.00 $99.99 50% 1/2 0xDEADBEEF 0b1010 1_000",
    "Room 101, 2024-01-31T23:59:59Z, +49 (0)30 123456, v1.2.3-rc4, a1b2c3",
    "٠١٢٣٤٥٦٧٨٩ १२३४५ ½ ¾ Ⅷ ② ³ ৳৫০ 一二三四",
]

CODE = [
    "def f(x):\n    return x + 1\n\n\nclass A:\n\tdef g(self):\n\t\tpass\n",
    "int main(void)\n{\n    for (int i = 0; i < 10; i++) {\n        printf(\"%d\\n\", i);\n    }\n}\n",
    "if (a && b || !c) { x->y = *p++; } // comment\r\n/* block */\r\n#define X(a) #a\r\n",
    "<html>\n  <body class=\"a b\">&amp;&nbsp;</body>\n</html>",
    "SELECT * FROM t WHERE a <> 'b''c' AND d >= 5; -- done",
    "{\"key\": [1, 2.5, null, true], \"nested\": {\"a\": \"\\u00e9\\n\"}}",
    "$ ls -la /usr/local/bin | grep -E '^d' > /dev/null 2>&1 && echo \"ok\"",
    "https://example.org/path/to?query=a%20b&x=[1]#frag user@example.org ../../etc/passwd",
    "x=y;z//w\\v{}[]()<>?!@#$%^&*-_=+|~`",
    "### Heading\n\n- item 1\n- item 2\n\n```python\nprint('x')\n```\n\n| a | b |\n|---|---|\n",
]

SPACES = [
    "\n", "\n\n", "\n\n\n", "\r", "\r\n", "\r\n\r\n", "\t", "\t\t", " \n", "\n ", " \n ", "  \n  \n  ",
    "a\nb", "a \nb", "a\n b", "a \n b", "a\n\n\nb", "a  \n\n  b", "a\r\nb\rc", "a\tb\t\tc", "a \t \n\t b",
    "trailing   ", "trailing\n", "trailing \n\n ", "\n leading", "x   \n", "one.\n\nTwo.\n \nThree.  \n\n  Four",
    "no\u00a0break\u00a0\u00a0space \u00a0 \u00a0mixed", "em\u2003space\u2003\u2003\u2003three thin\u2009x",
    "line\u2028sep par\u2029sep nel\u0085x ogham\u1680x ideo\u3000\u3000x", "zero\u200bwidth \u200b \ufeffbom",
    "mongolian\u180evowel \u180e \u180e", "vt\x0bff\x0cfs\x1cgs\x1d", "nnb\u202fsp mms\u205fp",
]

CONTROL = [
    "\x01\x02\x03\x04\x05\x06\x07\x08", "bell\x07esc\x1b[31mred\x1b[0m del\x7f", "c1\x80\x81\x9f soft\u00adhyphen",
    "\ufffd\ufffe\uffff\U0010ffff", "\ue000private\U000f0000use",
]

SCRIPTS = [
    "Zażółć gęślą jaźń. Příliš žluťoučký kůň úpěl ďábelské ódy.",
    "Съешь же ещё этих мягких французских булок, да выпей чаю. ПРИВЕТ Привет пРИВЕТ",
    "Ξεσκεπάζω την ψυχοφθόρα βδελυγμία. ΑΘΗΝΑ Αθήνα",
    "我能吞下玻璃而不伤身体。他说：“你好，世界！”（测试）",
    "いろはにほへと ちりぬるを。カタカナ テスト　全角スペース、ﾊﾝｶｸ ＡＢＣ１２３",
    "다람쥐 헌 쳇바퀴에 타고파. 한국어 ㄱㄴㄷ 테스트",
    "นี่คือข้อความภาษาไทยที่ไม่มีช่องว่าง",
    "यह हिन्दी में एक वाक्य है। क्षत्रिय ज्ञान श्री",
    "আমি কাচ খেতে পারি। தமிழ் எழுத்து తెలుగు ಕನ್ನಡ",
    "هذا نص عربي مع تَشْكِيل وأرقام ١٢٣ و English مختلط.",
    "זה טקסט בעברית עם נִקּוּד ו-English.",
    "\u202eright to left override\u202c \u200fmark\u200e \u2067isolate\u2069",
    "አማርኛ ᚠᛇᚻ ⠓⠑⠇⠇⠕ ꙮ 𐍈𐌰 𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𝟙𝟚𝟛 𠜎𠜱",
    "e\u0301 é a\u0308o\u0308 ä q\u0323\u0307 s\u0307\u0323 A\u030a Å \u212b",
    "Z\u0351\u036b\u0343a\u0324\u035cl\u0321\u0317g\u0315\u0301o\u0334 \u0301\u0302 lone",
    "가각 \u1100\u1161\u11a8 \u1100\u1161 ﬁ ﬀ ² № ㎏",
    "\u0958 \u0915\u093c \ufb1d \u2126 \u1e9b\u0323 \u0344 \u0374 \u2000",
]

EMOJI = [
    "😀😁😂🤣", "👍🏽👍🏿 👨‍👩‍👧‍👦 👩🏽‍💻 🏳️‍🌈 🇩🇪🇫🇷 ❤️ ❤ ☺️ 1️⃣", "text😀text 😀 text", "🏴\U000e0067\U000e0062\U000e0073\U000e007f",
    "→ ← ∑ ∫ √ ≠ ≤ ∞ ☃ ★ ✓ ♠ © ® ™ € £ ¥ ₹", "\u200d\ufe0f\u20e3",
]

SPECIALS = [
    "<s>", "</s>", "<unk>", "<s>Hello</s>", "Hello</s> world", "a<s>b", "<s> <s>  x", "<|im_start|>user\nHi<|im_end|>\n",
    "<|im_start|><|im_start|>", "<|im_start", "|im_start|>", "<<|im_start|>>", "< |im_start|>", "<|im_star<|im_end|>",
    "<|endoftext|>a<|endoftext|>", "<0x0A>", "<0x41>", "\u2581", "\u2581\u2581a", "a\u2581b", "Ġhello Ċ", "<|end|> <|end|>x",
    "<|user|>\nHi  there<|end|>\n<|assistant|>\n", "<|end|>\u3000\u2003 \t\nx<|end|>", "<|endoftext|>\n x</s>\n x <|user|>",
    "<tool_call>\n{}\n</tool_call>", "<tool_call></tool_call>", "[INST] x [/INST]",
]

RUNS = [
    ("a", 300), ("A", 300), (" ", 300), ("\n", 300), ("\t", 100), ("!", 300), ("-", 200), ("=", 200), ("0", 200),
    ("7", 199), ("中", 200), ("é", 200), ("😀", 100), ("ab", 200), ("a ", 200), (" a", 200), ("\r\n", 100),
    (" \n", 100), ("aB", 100), ("\u0301", 50), ("<|", 100), ("the ", 150), ("x\u0301", 60), ("'s", 80),
]

WORDS = [
    "Donaudampfschifffahrtselektrizitätenhauptbetriebswerkbauunterbeamtengesellschaft",
    "pneumonoultramicroscopicsilicovolcanoconiosis" * 4,
    "MethionylthreonylthreonylglutaminylarginyltyrosylglutamylserylleucylphenylalanylAla" * 3,
]


def mixed():
    """Random walks through the alphabet of everything above; fixed seed."""
    rng = random.Random(20240131)
    pool = " ".join(PLAIN + NUMBERS + CODE + SPACES + SCRIPTS + EMOJI)
    out = []
    for _ in range(60):
        n = rng.randrange(1, 60)
        if rng.random() < 0.5:
            out.append("".join(rng.choice(pool) for _ in range(n)))
        else:
            parts = []
            for _ in range(rng.randrange(1, 8)):
                at = rng.randrange(len(pool))
                parts.append(pool[at : at + rng.randrange(1, 12)])
            out.append("".join(parts))
    return out


def cases():
    texts = PLAIN + NUMBERS + CODE + SPACES + CONTROL + SCRIPTS + EMOJI + SPECIALS + WORDS + mixed()
    return [(t, 1) for t in texts] + RUNS
