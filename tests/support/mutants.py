"""Answers that no honest model gives: seeded mutations of good ones, nonsense, bombs, and attempts to run code."""

import random
from collections.abc import Iterator

GOOD = [
    *("5", "-3", "142.0", "\\frac{1}{2}", "6\\frac{1}{6}", "12.5\\%", "\\$5.50", "22,500", "45^\\circ", "\\pi/4"),
    *("10\\text{ cm}", "15\\mbox{ cm}^2", "\\text{Evelyn}", "1011_2", "-2, 2", "1 \\pm \\sqrt{19}", "\\{4,5,7\\}"),
    *("\\left( 3, \\frac{\\pi}{2} \\right)", "(-\\infty, 3) \\cup (3, \\infty)", "x \\in [-2,7]", "x < 3", "k = 5"),
    *("-80\\leq g(x)\\leq 82", "\\begin{pmatrix} 1 \\\\ 2 \\end{pmatrix}", "y = 2x + 3", "(x+1)(x-2)", "2^{10}"),
    *("\\sum_{k=1}^{n} k^2", "\\int_0^1 x dx", "\\binom{5}{2}", "\\log_2 8", "5!", "\\sqrt[3]{8}", "\\gcd(4, 6)"),
    *("8:34 \\text{ p.m.}", "\\lim_{x \\to 0} \\frac{\\sin x}{x}", "a_{n+1} = 2 a_n", "3 \\times 10^{-8}", "e^{i\\pi}"),
]
JUNK = [
    *(
        "\\",
        "{",
        "}",
        "$",
        "\\\\",
        "^",
        "_",
        "&",
        "%",
        "~",
        "#",
        "\\left(",
        "\\right.",
        "\\begin{array}",
        "\\end{array}",
    ),
    *(
        "\\frac",
        "\\sqrt",
        "\\over",
        "\\boxed{",
        "\\text{",
        "\\not",
        "\\mathbb{R}",
        "^{^{",
        "\\limits",
        "\\operatorname{",
    ),
    *(
        "\x00",
        "\x1b[2J",
        "\r\n",
        "\u202e",
        "\u2028",
        "\ufeff",
        "\ud800",
        "\U0001f600",
        "e\u0301",
        "٣",
        "½",
        "²",
        "\u2212",
        "∞",
    ),
    *(
        "</think>",
        "<think>",
        "nan",
        "inf",
        "None",
        "True",
        "1e999",
        "0x1F",
        "1_000",
        "1j",
        "\\infty",
        "\\emptyset",
        "i",
    ),
]
BOMBS = [
    *(
        "9^{9^{9^{9}}}",
        "1000000000!",
        "((10!)!)!",
        "10^{10^{10}}",
        "\\binom{10^9}{5 \\times 10^8}",
        "2^{2^{2^{2^{2^2}}}}",
    ),
    *("\\sum_{k=1}^{10^{12}} \\frac{1}{k^k}", "\\prod_{k=1}^{10^9} k", "\\int_0^1 x^{x^{x^x}} dx", "(x+1)^{100000}"),
    *(
        "\\frac{1}{" * 40 + "2" + "}" * 40,
        "\\sqrt{" * 80 + "7" + "}" * 80,
        "(" * 160 + "1" + ")" * 160,
        "-" * 400 + "1",
    ),
    *("0." + "3" * 480, "9" * 500, "x^" * 200 + "x", "\\{" * 120 + "\\}" * 120, "1+" * 240 + "1", "\\sin " * 70 + "x"),
]


def attacks(canary: str) -> list[str]:
    """Answers that would make the file `canary` if anything evaluated them as Python, in a shell or as TeX."""
    touch = f"__import__('os').system('touch {canary}')"
    write = f"open('{canary}', 'w')"
    reach = "().__class__.__bases__[0].__subclasses__()"
    return [
        *(
            touch,
            write,
            f"[{touch}]",
            f"(lambda: {touch})()",
            f"f'{{{touch}}}'",
            f"exec({touch!r})",
            f"eval({write!r})",
        ),
        *(f"1 if {touch} else 2", f"x = {touch}", f"5, {write}", f"\\text{{{touch}}}", f"\\frac{{{touch}}}{{2}}"),
        *(
            f"Symbol('x').__class__({touch})",
            f"sympify({touch!r})",
            f"S({touch!r})",
            f"{reach}[0]({write})",
            f"5;{touch}",
        ),
        *(
            f"__builtins__['open']('{canary}','w')",
            f"globals()['__builtins__'].open('{canary}','w')",
            f"\\sqrt{{{write}}}",
        ),
        *(f"Lambda(x, {touch})", f"\\operatorname{{{touch}}}", f"\\mathrm{{{write}}}", f"x_{{{touch}}}", f"{touch}_2"),
        *(f"\\write18{{touch {canary}}}", f"\\input{{|touch {canary}}}", f"$(touch {canary})", f"`touch {canary}`"),
        *(
            f"'+{touch}+'",
            f"1){touch}(1",
            f'1")+{touch}+("',
            f"Integer({touch})",
            f"0.{touch}",
            f"1e{touch}",
            f"@{write}",
        ),
        *(
            f"\\begin{{pmatrix}} {touch} \\end{{pmatrix}}",
            f"{{{{{touch}}}}}",
            f"${{{touch}}}",
            f"%({touch})s",
            f"!{touch}",
        ),
    ]


def mutants(seed: int, count: int, canary: str, *, bombs: float = 0.002) -> Iterator[tuple[str, str]]:
    """`count` pairs of (response, gold answer): mostly mutated good answers, some attacks, a share of `bombs`."""
    draw = random.Random(seed)
    hostile = attacks(canary)
    for _ in range(count):
        gold = draw.choice(GOOD)
        kind = draw.random()
        if kind < bombs:
            answer = draw.choice(BOMBS)
        elif kind < 0.15:
            answer = draw.choice(hostile)
            if draw.random() < 0.5:
                answer = _mutate(draw, answer, 2)
        else:
            answer = _mutate(draw, draw.choice(GOOD), draw.randint(1, 6))
        wrap = draw.choice(
            ("</think>\\boxed{%s}", "</think>%s", "%s", "</think>\\boxed{1}\\boxed{%s", "</think>\\fbox{%s}}")
        )
        yield wrap.replace("%s", answer), gold if draw.random() < 0.9 else draw.choice(hostile)


def _mutate(draw: random.Random, text: str, times: int) -> str:
    for _ in range(times):
        a, b = sorted(draw.randint(0, len(text)) for _ in range(2))
        piece = text[a:b]
        text = (
            text[:a]
            + draw.choice(
                (
                    lambda piece=piece: "",
                    lambda piece=piece: piece * draw.randint(2, 20),
                    lambda piece=piece: draw.choice(JUNK) + piece,
                    lambda piece=piece: draw.choice(GOOD),
                    lambda piece=piece: piece[::-1],
                    lambda piece=piece: "{" * draw.randint(1, 30) + piece + "}" * draw.randint(1, 30),
                    lambda piece=piece: piece + chr(draw.choice((draw.randint(32, 126), draw.randint(128, 0xD7FF)))),
                    lambda piece=piece: f"\\frac{{{piece}}}{{{draw.choice(GOOD)}}}",
                    lambda piece=piece: piece + draw.choice(JUNK) * draw.randint(1, 40),
                )
            )()
            + text[b:]
        )
        text = text[:2000]
    return text
