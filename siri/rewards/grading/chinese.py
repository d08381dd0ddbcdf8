r"""Chinese numerals and measures: "五" is 5, "1或2" is 1 or 2, "5厘米" is 5 cm, "5个" is 5."""

import re

_DIGITS = {sign: value for value, sign in enumerate("零一二三四五六七八九")} | {"两": 2}
_NUMERAL = re.compile(
    r"\s*(\\text\{\s*)?(?:([一二三四五六七八九])?(十)([一二三四五六七八九])?|([零一二两三四五六七八九]))\s*(?(1)\})\s*"
)
# "三分之一": of three parts one.
_PART = re.compile(r"\s*([一二三四五六七八九十\d]{1,4})分之([一二三四五六七八九十\d]{1,4})\s*", re.ASCII)
_UNITS = {"厘米": "cm", "毫米": "mm", "分米": "dm", "米": "m", "千米": "km", "公里": "km", "克": "g", "千克": "kg"}
_UNITS |= {"平方厘米": "square cm", "平方米": "square m", "立方厘米": "cubic cm", "立方米": "cubic m"}
_UNITS |= {"公斤": "kg", "吨": "ton", "升": "l", "毫升": "ml", "度": "degrees", "元": "yuan"}
_UNITS |= {"秒": "s", "分钟": "min", "小时": "h", "天": "days", "年": "years"}
_NOUNS = "个只种人次岁枚条张本名位件块套题步项场棵辆头组对台把根页"
_MEASURES = "|".join(sorted(_UNITS, key=len, reverse=True))
_MEASURED = re.compile(
    rf"(?<=[\d}})])\s*(\\text\{{\s*)?({_MEASURES}|[{_NOUNS}])\s*(?(1)\}})(?=[\s。.$]*(?:$|[,\uff0c、;\uff1b和与及或]))"
)
_TOGETHER = re.compile(r"^\s*共\s*(?=\d)")


_JOINING = {"或者": " or ", "或": " or ", "并且": " and ", "且": " and ", "和": " and ", "与": " and ", "及": " and "}
_JOINED = re.compile(r"(\\text\{)?\s*(或者?|并?且|[和与及])\s*(?(1)\})")


def _value(text: str) -> int:
    """Of a numeral or of digits; 0 for none."""
    numeral = _NUMERAL.fullmatch(text)
    if numeral is None:
        return int(text) if text.isdigit() and text.isascii() else 0
    _, tens, _ten, ones, digit = numeral.groups()
    return _DIGITS[digit] if digit else 10 * _DIGITS.get(tens, 1) + _DIGITS.get(ones, 0)


def in_chinese(text: str) -> str:
    """`text` with digits for a numeral that is all of it, and with units in English; what only counts is dropped."""
    if (part := _PART.fullmatch(text)) and (under := _value(part[1])) and (over := _value(part[2])):
        return f"\\frac{{{over}}}{{{under}}}"
    if numeral := _NUMERAL.fullmatch(text):
        _, tens, ten, ones, digit = numeral.groups()
        if digit:
            return str(_DIGITS[digit])
        return str(10 * _DIGITS.get(tens, 1) + _DIGITS.get(ones, 0)) if ten else text
    text = _TOGETHER.sub("", text)
    text = _JOINED.sub(lambda match: f"\\text{{{_JOINING[match[2]]}}}" if match[1] else _JOINING[match[2]], text)
    return _MEASURED.sub(lambda match: f"\\text{{ {_UNITS[match[2]]}}}" if match[2] in _UNITS else "", text)
