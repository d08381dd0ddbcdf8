"""Names that the grammar knows: Greek letters, functions, constants, with a backslash and without."""

import re
from fractions import Fraction

GREEK = frozenset(
    re.findall(
        r"\w+",
        "alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta kappa lambda mu nu xi rho sigma tau phi "
        "varphi chi psi omega Gamma Delta Theta Lambda Xi Sigma Phi Psi Omega ell hbar",
    )
)
TRIG = ("sin", "cos", "tan", "cot", "sec", "csc")
FUNCTIONS = {name: name for name in (*TRIG, *(f"{name}h" for name in TRIG), "exp", "abs")}
FUNCTIONS |= {f"{prefix}{name}": f"arc{name}" for name in TRIG for prefix in ("arc", "a")}
FUNCTIONS |= {f"{prefix}{name}h": f"arc{name}h" for name in ("sin", "cos", "tan") for prefix in ("arc", "ar", "a")}
FUNCTIONS |= {"tg": "tan", "ctg": "cot", "cosec": "csc", "arctg": "arctan", "arcctg": "arccot"}
LOGARITHMS = {"ln": ("const", "e"), "lg": ("num", Fraction(10)), "log": ("num", Fraction(10))}
PLAIN_CONSTANTS = {"pi": "pi", "oo": "inf", "inf": "inf", "infty": "inf", "infinity": "inf", "Infinity": "inf"}
# "xi" is more often x times i
PLAIN = frozenset({*FUNCTIONS, *LOGARITHMS, *PLAIN_CONSTANTS, *(GREEK - {"mu", "nu", "xi", "ell"}), "sqrt", "cbrt"})
CALLED = {"gcd": "gcd", "lcm": "lcm", "max": "max", "min": "min", "floor": "floor", "ceil": "ceil", "cis": "cis"}
CALLED |= {"binom": "binom", "nCr": "binom", "factorial": "factorial", "Sqrt": "sqrt"}
"""Functions that take their arguments in brackets, as programs write them."""
ACCENTS = {name: name for name in ("bar", "hat", "tilde", "vec", "dot", "ddot")}
ACCENTS |= {"overline": "bar", "widehat": "hat", "widetilde": "tilde"}
LONGEST_PLAIN = max(map(len, PLAIN))
