r"""A grammar of our own for one written value, LaTeX or plain text: nothing here evaluates anything.

The tree is made of tuples: ("num", Fraction), ("sym", name), ("+", parts), ("*", parts), ("/", a, b), ("^", a, b),
("neg", a), ("root", degree, a), ("log", base, a), ("call", name, arguments), ("!", a), ("deg", a).
As in latex2sympy, a product written without a sign binds closer than a slash (1/2x is 1/(2x)), and the argument of a
function without brackets runs to the next sum, product sign or function.
"""

from fractions import Fraction

from siri.rewards.grading.derivatives import name_of
from siri.rewards.grading.tokens import NotRead, recurring, tokens
from siri.rewards.grading.vocabulary import (
    ACCENTS,
    CALLED,
    FUNCTIONS,
    GREEK,
    LOGARITHMS,
    PLAIN_CONSTANTS,
    TRIG,
)

# Deeper than any answer, and far from Python's own limit: a level of brackets costs some ten frames.
MAX_DEPTH = 48

_CLOSING = {"(": ")", "[": "]", "{": "}", "\\lfloor": "\\rfloor", "\\lceil": "\\rceil", "\\lvert": "\\rvert"}
_ROUNDED = {"\\lfloor": "floor", "\\lceil": "ceil", "\\lvert": "abs"}
_TIMES = ("*", "\\cdot", "\\times", "\\ast")
_OVER = ("/", "\\div")

# Letters that stand for whole numbers in what is rounded, and in the exponent of -1.
WHOLE_NAMES = frozenset("nmk")

Tree = tuple


def read(text: str) -> Tree:
    """The value that `text` spells, as a tree. NotRead if the grammar does not hold all of it."""
    return _Reader(tokens(text)).whole()


def symbols(tree: Tree) -> set[str]:
    """The names of the variables in `tree`."""
    if tree[0] == "sym":
        return {tree[1]}
    return set().union(*(symbols(part) for part in parts(tree)), {"f()"} if tree[0] == "apply" else ())


def parts(tree: Tree) -> tuple:
    """The trees right below `tree`."""
    if tree[0] in ("num", "const", "sym"):
        return ()
    if tree[0] in ("+", "*", "call"):
        return tree[-1]
    return tuple(part for part in tree[1:] if isinstance(part, tuple))


def has(tree: Tree, node: Tree) -> bool:
    """Whether `node`, a leaf or the first words of a branch, is somewhere in `tree`."""
    return tree[: len(node)] == node or any(has(part, node) for part in parts(tree))


def _begins_with_d(tree: Tree) -> bool:
    """Whether it is a product such as dx."""
    return tree[0] == "*" and tree[1][0] == ("sym", "d")


class _Reader:
    """Recursive descent over the tokens."""

    def __init__(self, tokens: list[tuple[str, str]]):
        self.tokens, self.place, self.depth = tokens, 0, 0
        self.bars = 0

    def whole(self) -> Tree:
        tree = self.sum()
        if self.place < len(self.tokens):
            raise NotRead(self.tokens[self.place][1])
        return tree

    def peek(self, ahead: int = 0) -> str:
        place = self.place + ahead
        return self.tokens[place][1] if place < len(self.tokens) else ""

    def kind(self) -> str:
        return self.tokens[self.place][0] if self.place < len(self.tokens) else ""

    def take(self, *expected: str) -> str:
        text = self.peek()
        if not text or (expected and text not in expected):
            raise NotRead(f"{text!r} instead of {expected}")
        self.place += 1
        return text

    def sum(self) -> Tree:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise NotRead("too deep")
        terms = [self.product()]
        while self.peek() in ("+", "-"):
            sign = self.take()
            term = self.product()
            terms.append(term if sign == "+" else ("neg", term))
        self.depth -= 1
        return ("+", tuple(terms)) if len(terms) > 1 else terms[0]

    def product(self) -> Tree:
        tree = self.signed(self.factors)
        while self.peek() in (*_TIMES, *_OVER):
            over = self.take() in _OVER
            factor = self.signed(self.factors)
            tree = ("/", tree, factor) if over else ("*", (tree, factor))
        return tree

    def signed(self, what) -> Tree:
        negative = False
        while self.peek() in ("+", "-"):
            negative ^= self.take() == "-"
        tree = what()
        return ("neg", tree) if negative else tree

    def factors(self, in_function: bool = False) -> Tree:
        """Factors side by side. A number before a fraction of integers is a mixed number."""
        factors = [self.power()]
        while self.starts_a_factor() and not (in_function and self.is_function()):
            if self.kind() in ("number", "recurring") and factors[-1][0] == "num":
                raise NotRead("two numbers side by side")
            before, last = factors[-1], self.tokens[self.place - 1]
            mixed = self.peek() == "\\frac" and last[0] == "number" and "." not in last[1] and before[0] == "num"
            factor = self.atom() if mixed else self.power()
            if mixed and factor[0] == "/" and factor[1][0] == factor[2][0] == "num":
                factors[-1] = self.suffixed(("+", (before, factor)))  # of the whole: 12\frac12\% is 1/8
            else:
                factors.append(self.raised(factor) if mixed else factor)
        return ("*", tuple(factors)) if len(factors) > 1 else factors[0]

    def starts_a_factor(self) -> bool:
        text, kind = self.peek(), self.kind()
        if kind in ("number", "recurring", "letter", "name", "derivative"):
            return True
        if kind == "command":
            return text not in (*_TIMES, *_OVER, "\\%", "\\}", "\\|", "\\rfloor", "\\rceil", "\\rvert", "\\degree")
        return text in ("(", "{", "[") or (text == "|" and self.bars == 0)

    def is_function(self) -> bool:
        name = self.peek().removeprefix("\\")
        return self.kind() in ("name", "command") and (name in FUNCTIONS or name in LOGARITHMS)

    def power(self) -> Tree:
        return self.raised(self.atom())

    def raised(self, tree: Tree) -> Tree:
        """With the factorials and the exponent that follow."""
        tree = self.suffixed(tree)
        if self.peek() == "^":
            self.take()
            tree = self.suffixed(("^", tree, self.script()))
            if self.peek() == "^":
                raise NotRead("two exponents")
        return tree

    def suffixed(self, tree: Tree) -> Tree:
        while True:
            if self.peek() == "!":
                self.take()
                if self.peek() == "!":
                    raise NotRead("a double factorial")
                tree = ("!", tree)
            elif self.peek() == "\\%":
                self.take()
                tree = ("/", tree, ("num", Fraction(100)))
            elif self.kind() == "degree":
                self.take()
                tree = ("deg", tree)
            else:
                return tree

    def script(self) -> Tree:
        """An exponent: a group in any brackets, a signed number, a command or one letter."""
        if self.peek() in ("+", "-"):
            return self.signed(self.script)
        if self.peek() == "{":
            return self.group()
        tree = self.atom()
        if self.peek() == "^" and self.tokens[self.place - 1][1] != "}":
            self.take()
            tree = ("^", tree, self.script())
        return tree

    def group(self) -> Tree:
        opening = self.take()
        bars, self.bars = self.bars, 0
        tree = self.sum()
        self.bars = bars
        self.take(_CLOSING[opening])
        return tree

    def argument(self) -> Tree:
        """What a command takes: a group in braces, one digit or one letter."""
        if self.peek() == "{":
            return self.group()
        kind, text = self.kind(), self.peek()
        if kind == "number" and len(text) > 1 and text.isdigit():
            self.tokens[self.place] = ("number", text[1:])
            return ("num", Fraction(int(text[0])))
        return self.atom()

    def atom(self) -> Tree:
        kind, text = self.kind(), self.peek()
        if kind == "number":
            return ("num", Fraction(self.take()))
        if kind == "recurring":
            return ("num", recurring(self.take().strip()))
        if kind == "letter":
            return self.letter(self.take())
        if kind == "name":
            return self.named(self.take())
        if kind == "derivative":
            return ("sym", name_of(self.take()))
        if kind == "command":
            return self.command(self.take())
        if text == "[":
            return self.rounded(self.group())
        if text in ("(", "{"):
            return self.group()
        if text == "|" and self.bars == 0:
            return self.bar("|")
        raise NotRead(text or "the end")

    def rounded(self, tree: Tree) -> Tree:
        r"""[n/2] is \lfloor n/2\rfloor: a fraction alone needs no brackets, but to be raised to a power."""
        whole = tree[0] == "/" and self.peek() != "^" and symbols(tree) and symbols(tree) <= WHOLE_NAMES
        return ("call", "floor", (tree,)) if whole else tree

    def bar(self, sign: str) -> Tree:
        self.take(sign)
        self.bars += 1
        tree = self.sum()
        self.bars -= 1
        self.take(sign)
        return ("call", "abs", (tree,))

    def letter(self, name: str) -> Tree:
        name += self.subscript()
        if name in ("e", "i"):
            return ("const", name)
        if name == "C" and self.peek() == "(":
            return self.binomial(name)
        if name == "f" and self.peek() == "(":
            return ("apply", self.group())
        return ("sym", name)

    def binomial(self, name: str) -> Tree:
        start = self.place
        self.take("(")
        upper = self.sum()
        if self.peek() == ",":
            self.take()
            lower = self.sum()
            self.take(")")
            return ("call", "binom", (upper, lower))
        self.place = start
        return ("sym", name)

    def subscript(self) -> str:
        """The subscript and primes of a name, as part of it."""
        subscript = ""
        if self.peek() == "_":
            self.take()
            subscript = "_"
            if self.peek() == "{":
                self.take()
                while self.peek() != "}":
                    subscript += self.take()
                self.take("}")
            else:
                subscript += self.take()
        while self.peek() == "'":
            subscript += self.take()
        return subscript

    def named(self, name: str) -> Tree:
        """A name without a backslash."""
        if name in PLAIN_CONSTANTS:
            return ("const", PLAIN_CONSTANTS[name])
        if name in CALLED:
            return self.called(CALLED[name])
        if name in ("sqrt", "cbrt"):
            return ("root", ("num", Fraction(2 if name == "sqrt" else 3)), self.atom())
        return self.function(name) if name in FUNCTIONS or name in LOGARITHMS else ("sym", name + self.subscript())

    def command(self, text: str) -> Tree:
        name = text[1:]
        if name == "frac":
            upper, lower = self.argument(), self.argument()
            if _begins_with_d(lower) and (upper == ("sym", "d") or _begins_with_d(upper)):
                raise NotRead("a derivative")
            return ("/", upper, lower)
        if name == "sqrt":
            degree: Tree = ("num", Fraction(2))
            if self.peek() == "[":
                degree = self.group()
            return ("root", degree, self.argument())
        if name in ("binom", "dbinom", "tbinom"):
            upper = self.argument()
            return ("call", "binom", (upper, self.argument()))
        if name == "pi":
            return ("const", "pi")
        if name == "infty":
            return ("const", "inf")
        if name in ACCENTS:
            return self.accented(ACCENTS[name])
        if name in GREEK:
            return ("sym", name + self.subscript())
        if name in FUNCTIONS or name in LOGARITHMS:
            return self.function(name)
        if name in ("gcd", "lcm", "max", "min", "cis", "floor", "ceil"):
            return self.called(name)
        if text in _ROUNDED:
            tree = self.sum()
            self.take(_CLOSING[text])
            return ("call", _ROUNDED[text], (tree,))
        raise NotRead(text)

    def accented(self, accent: str) -> Tree:
        r"""\bar x and the like are names of their own. Vectors are not multiplied: their products do not commute."""
        argument = self.argument()
        if (
            accent == "vec"
            and argument[0] == "*"
            and all(part[0] == "sym" and part[1].isupper() for part in argument[1])
        ):
            argument = ("sym", "".join(part[1] for part in argument[1]))  # from A to B
        if argument[0] != "sym" or (accent == "vec" and any(text in _TIMES for _, text in self.tokens)):
            raise NotRead(accent)
        return ("sym", f"{accent} {argument[1]}{self.subscript()}")

    def called(self, name: str) -> Tree:
        """A function of all that is in the brackets behind it."""
        if name == "cis" and self.peek() not in ("(", "{", "["):
            return ("call", "exp", (("*", (("const", "i"), self.bare_argument())),))
        opening = self.take("(", "[", "\\{")
        arguments = [self.sum()]
        while self.peek() == ",":
            self.take()
            arguments.append(self.sum())
        self.take({"\\{": "\\}"}.get(opening) or _CLOSING[opening])
        if name in ("gcd", "lcm", "max", "min") or (name == "binom" and len(arguments) == 2):
            return ("call", name, tuple(arguments))
        if len(arguments) > 1 or name == "binom":
            raise NotRead(name)
        if name == "cis":
            return ("call", "exp", (("*", (("const", "i"), arguments[0])),))
        if name == "sqrt":
            return ("root", ("num", Fraction(2)), arguments[0])
        return ("!", arguments[0]) if name == "factorial" else ("call", name, tuple(arguments))

    def function(self, name: str) -> Tree:
        exponent = base = None
        for _ in range(2):
            if self.peek() == "^" and exponent is None:
                self.take()
                exponent = self.script()
            elif self.peek() == "_" and base is None and name == "log":
                self.take()
                base = self.base()
        if self.peek() in ("(", "{", "["):
            tree = self.suffixed(self.group())
        elif self.peek() == "|" and self.bars == 0:
            tree = self.bar("|")
        else:
            tree = self.signed(self.bare_argument)
        if name in LOGARITHMS:
            tree = ("log", LOGARITHMS[name] if base is None else base, tree)
        elif exponent == ("neg", ("num", Fraction(1))) and name in (*TRIG, "sinh", "cosh", "tanh"):
            return ("call", f"arc{name}", (tree,))
        else:
            tree = ("call", FUNCTIONS[name], (tree,))
        return tree if exponent is None else ("^", tree, exponent)

    def base(self) -> Tree:
        """Of a logarithm. No logarithm has the base 1: what begins with it has two digits."""
        kind, text = self.kind(), self.peek()
        if kind == "number" and text in ("10", "12", "16"):
            return ("num", Fraction(self.take()))
        return self.argument()

    def bare_argument(self) -> Tree:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise NotRead("too deep")
        tree = self.function(self.take().removeprefix("\\")) if self.is_function() else self.factors(in_function=True)
        self.depth -= 1
        while self.peek() == "/":
            self.take()
            tree = ("/", tree, self.factors(in_function=True))
        return tree
