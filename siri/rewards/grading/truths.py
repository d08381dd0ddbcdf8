"""Lists of truth values: "True, False, True", Yes and No, T and F, right and wrong, 对 and 错.

They answer statements or questions in the order in which these stand, so that another order answers other ones.
"""

import re

_TRUTHS = frozenset(
    re.findall(
        r"\S+",
        "true false t f yes no y n right wrong correct incorrect valid invalid possible impossible 是 否 不是 对 错 "
        "不对 正确 错误 不正确 能 不能 有 没有 可以 不可以 真 假 ✓ ✔ ✗ ✘ \\sqrt \\surd \\times \\checkmark",
    )
)
_DECORATION = re.compile(r"\\text(?![a-zA-Z])|[{}\s.]")


def are_truths(parts: list[str]) -> bool:
    """Whether all of several parts are truth values."""
    return len(parts) > 1 and all(_DECORATION.sub("", part).casefold() in _TRUTHS for part in parts)
