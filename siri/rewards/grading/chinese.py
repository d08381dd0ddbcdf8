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
_NOUNS = "个只种人次岁枚条张本名位件块套题步项场棵辆头组对台把根页支匹朵颗粒片座间艘架部杯瓶盒箱袋株层段幅首句"
_MEASURES = "|".join(sorted(_UNITS, key=len, reverse=True))
_MEASURED = re.compile(
    rf"(?<=[\d}})])\s*(\\text\{{\s*)?({_MEASURES}|[{_NOUNS}])\s*(?(1)\}})(?=[\s。.$]*(?:$|[,\uff0c、;\uff1b和与及或]))"
)
_IN_BRACKETS = re.compile(rf"(?<=[\d}}])\s*[\uff08(]\s*({_MEASURES}|[{_NOUNS}])\s*[)\uff09]\s*$")
_TIME = re.compile(r"(\d+)\s*(天|小时|分|秒)钟?")
_TIMES = re.compile(rf"(?:{_TIME.pattern}\s*){{2,}}")
_PERIODS = {"天": "days", "小时": "h", "分": "min", "秒": "s"}
# An equation or a set behind a word for the answer.
_ANSWERED = re.compile(
    r"^\s*(?:(?:所以|因此|故|则|即)\s*[\uff0c,]?\s*)*(?:(?:原?方程组?|原?不等式组?)的?)?(?:答案?|解集?|结果|定义域|值域)\s*(?:为|是|[:\uff1a])"
    r"\s*(?=[a-zA-Z]\s*(?:[=<>≤≥\uff1c\uff1e∈]|\\[lgi][nte])|\\?\{|\uff5b|[(\[\uff08\uff3b\]])"
)
_COUNTED = re.compile(rf"\s*([一二三四五六七八九十两]{{1,4}})\s*((?:{_MEASURES}|[{_NOUNS}]))\s*")
_PERCENT = re.compile(r"百分之\s*([一二三四五六七八九十]{1,3}|\d+(?:\.\d+)?)")
# Sets and answers that have a word in both languages.
_REALS = ("全体实数", "一切实数", "所有实数", "任意实数", "实数集")
_WORDS = dict.fromkeys(_REALS, "\\mathbb{R}") | {"空集": "\\emptyset"}
_WORDS |= dict.fromkeys(("无解", "没有解"), "\\text{no solution}") | {"不存在": "\\text{does not exist}"}
_WORDS |= {"是": "\\text{yes}", "否": "\\text{no}", "偶数": "\\text{even}", "奇数": "\\text{odd}"}
# What a value may be called, so that it is compared as a label in English is.
_NAMED = """
答案 answer 答 answer 结果 result 值 value 面积 area 体积 volume 周长 perimeter 半径 radius 直径 diameter
长度 length 长 length 宽 width 高 height 概率 probability 和 sum 差 difference 积 product 商 quotient
距离 distance 速度 speed 时间 time 个数 number 人数 number 总数 total 斜率 slope 解 solution
最大值 maximum 最小值 minimum 总价 price 价格 price 利润 profit 年龄 age 重量 weight 质量 mass 次数 number
平均数 mean 平均值 mean 中位数 median 众数 mode 余数 remainder 公比 ratio 周期 period 系数 coefficient 边长 side
"""
_LABELS = dict(re.findall(r"(\S+) (\w+)", _NAMED))
# What it is the area of, say; but no half of it, and no wrong one.
_OF = r"(?:(?:(?![错误不非无半倍另除反假伪旧次前余约])[\u4e00-\u9fff]){1,10}的|[a-zA-Z]\s*的)?"
_LABELLED = re.compile(
    rf"^\s*(?:\\text\{{\s*)?(?:(?:所以|因此|故|则|即|其|它的|所求的?)\s*[\uff0c,]?\s*)*{_OF}("
    + "|".join(sorted(_LABELS, key=len, reverse=True))
    + r")\s*(?:为|是|等于|[:\uff1a])\s*[:\uff1a]?\s*(?:\}\s*)?(?=[\d\\(\[$.\uff0d-])"
)
_TOGETHER = re.compile(r"^\s*(?:一?共有?|总共有?|共计|合计|有)\s*(?=\d)")


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
    if (word := _WORDS.get(re.sub(r"\\text\{([^{}]*)\}", r"\1", text).strip(" 。.$"))) is not None:
        return word
    if (counted := _COUNTED.fullmatch(text)) and _value(counted[1]):
        text = f"{_value(counted[1])}{counted[2]}"
    text = _PERCENT.sub(lambda match: f"{_value(match[1]) or match[1]}\\%", text)
    text = _LABELLED.sub(lambda match: f"\\text{{{_LABELS[match[1]]}: }}", text)
    text = _ANSWERED.sub("", text)
    text = _TIMES.sub(lambda times: _TIME.sub(lambda time: f"{time[1]}\\text{{ {_PERIODS[time[2]]} }}", times[0]), text)
    text = _IN_BRACKETS.sub(lambda match: f"\\text{{ {_UNITS[match[1]]}}}" if match[1] in _UNITS else "", text)
    text = _TOGETHER.sub("", text)
    text = _JOINED.sub(lambda match: f"\\text{{{_JOINING[match[2]]}}}" if match[1] else _JOINING[match[2]], text)
    return _MEASURED.sub(lambda match: f"\\text{{ {_UNITS[match[2]]}}}" if match[2] in _UNITS else "", text)
