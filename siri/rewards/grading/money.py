"""Money: which currency an amount is in, and amounts of one currency in two units, as 75 cents are $0.75."""

import re
from fractions import Fraction

from siri.rewards.grading.grammar import NotRead, read
from siri.rewards.grading.margins import trimmed, without_text_signs
from siri.rewards.grading.numbers import Undecided, Undefined
from siri.rewards.grading.readings import readings
from siri.rewards.grading.spelling import clean
from siri.rewards.grading.units import without_unit
from siri.rewards.grading.values import same_value

# Words, in the plural or not, and codes of currencies; those of dollars elsewhere are other currencies.
_WORDS = """
dollar: dollar buck greenback
cent: cent
euro: euro
pound: pound sterling quid
yen: yen
yuan: yuan renminbi rmb
jiao: jiao
fen: fen
rupee: rupee
paisa: paise paisa
peso: peso
centavo: centavo
pence: pence
ruble: ruble rouble
kopeck: kopeck kopek
franc: franc
centime: centime rappen
dime: dime
nickel: nickel
penny: penny pennies
quarter: quarter
shilling: shilling
won: won
krona: krona krone kronor kroner krona kroon crown
oere: oere
zloty: zloty zlotych
grosz: grosz groszy
baht: baht
lira: lira lire
mark: mark deutschmark
pfennig: pfennig
dinar: dinar
dirham: dirham
riyal: riyal rial
shekel: shekel
forint: forint
rand: rand
real: reais
ringgit: ringgit
rupiah: rupiah
dong: dong
taka: taka
naira: naira
cedi: cedi
hryvnia: hryvnia
leu: leu lei
lev: lev leva
koruna: koruna
guilder: guilder florin
drachma: drachma
peseta: peseta
escudo: escudo
ducat: ducat
bitcoin: bitcoin
coin: coin
"""
_CODES = """
dollar: USD
euro: EUR
pound: GBP
yen: JPY
yuan: CNY RMB
rupee: INR Rs
ringgit: RM MYR
rupiah: IDR
rand: ZAR
dirham: AED
riyal: SAR
taka: BDT
naira: NGN
dong: VND
forint: HUF
koruna: CZK
shekel: ILS
hryvnia: UAH
pakistani: PKR
kenyan: KES
newzealand: NZD
won: KRW
franc: CHF
peso: MXN PHP
ruble: RUB
real: BRL
zloty: PLN
krona: SEK NOK DKK
lira: TRY
baht: THB
canadian: CAD
australian: AUD
hongkong: HKD
singapore: SGD
"""
_NAMES = {name: currency for currency, names in re.findall(r"(\w+): (.+)", _WORDS) for name in names.split()}
_CODED = {code: currency for currency, codes in re.findall(r"(\w+): (.+)", _CODES) for code in codes.split()}
_SIGNS = {"€": "euro", "£": "pound", "¥": "yen", "￥": "yen", "元": "yen", "円": "yen", "₹": "rupee", "₩": "won"}
_SIGNS |= {"₽": "ruble", "₺": "lira", "₫": "dong", "₱": "peso", "฿": "baht", "₴": "hryvnia", "₪": "shekel"}
_SIGNS |= {"₦": "naira", "₡": "colon", "¢": "cent"}
_SIGN = re.compile("[" + "".join(_SIGNS) + "]")
_DOLLAR = re.compile(r"(?P<of>\b(?:C|CA|A|AU|NZ|HK|S|R|NT|Mex)\s*)?(?:\\\$|\\(?:text|math)dollar(?![a-zA-Z]))")
# A sign without a backslash before a number, where no other closes it.
_OPEN = re.compile(r"\s*-?\$\s*-?[\d.]")
_LAYOUT = re.compile(r"\\(?:[,;:! ]|q?quad(?![a-zA-Z])|(?:text|math|m|h)[a-z]*\s*\{)|[{}~]")
_ELSEWHERE = re.compile(
    r"\b(Canadian|Australian|Singapore|Hong Kong|New Zealand|Taiwan|Jamaican|Fijian)\s+dollars?\b", re.IGNORECASE
)
_PERCENT = re.compile(r"[%\uff05]|\bper ?cent(?:age)?\b|\bpct\b|\u767e\u5206\u4e4b", re.IGNORECASE)
_WORD = re.compile(r"[a-zA-Z]+")


def currencies(text: str) -> set[str]:
    """The currencies that `text`, as it was written, names by sign, word or code. Yen and yuan share a sign."""
    known = {_SIGNS[sign] for sign in _SIGN.findall(text)}
    for sign in _DOLLAR.finditer(text):
        known.add(f"dollar of {sign['of'].strip()}" if sign["of"] else "dollar")
    if "$" in text:
        plain = trimmed(without_text_signs(text))
        if plain.replace("\\$", "").count("$") == 1 and _OPEN.match(plain):
            known.add("dollar")
    if elsewhere := _ELSEWHERE.search(_LAYOUT.sub(" ", text)):
        return known - {"dollar"} | {f"dollar of {elsewhere[1].casefold()}"}
    if "\\pounds" in text:
        known.add("pound")
    if not re.search(r"\d", text):
        return known
    for word in _WORD.findall(_LAYOUT.sub(" ", text)):
        lower = word.casefold()
        currency = _CODED.get(word) or _NAMES.get(lower) or _NAMES.get(lower.removesuffix("s"))
        if currency:
            known.add(currency)
    return known | {"yuan"} if "yen" in known and _SIGN.search(text) else known


def same_currency(gold: str, answer: str) -> bool | None:
    """Whether two amounts, as they were written, are money of one currency; False where their currencies or units
    differ, but for cents beside dollars, which are converted. None where this says nothing."""
    money, other_money = currencies(gold), currencies(answer)
    if money and other_money:
        if money & other_money:
            return None
        return {*money, *other_money} == {"dollar", "cent"} and _same_amount(gold, answer)
    if not money and not other_money:
        return None
    if _PERCENT.search(gold if other_money else answer) and not _PERCENT.search(answer if other_money else gold):
        return False  # 20 % of something is no amount of money
    units = [_measured(text) for text in (gold, answer)]
    unit, other = units if money else units[::-1]
    return False if other and other != unit else None


def _measured(text: str) -> tuple[str, ...]:
    """What a quantity is measured in besides money."""
    _, unit = without_unit(clean(text))
    return tuple(name for name in unit or () if name not in _NAMES and name != "unit")


def _same_amount(gold: str, answer: str) -> bool:
    """Whether two texts are the same number of dollars or cents."""
    amounts, rests = [], []
    for text in (gold, answer):
        amount, unit = without_unit(clean(text))
        scale = ("num", Fraction(100 if unit and unit[0] == "cent" else 1))
        rests.append([name for name in unit or () if name not in ("cent", "dollar")])
        try:
            amounts.append(("/", read(readings(amount)[-1]), scale))
        except NotRead:
            return False
    try:
        return rests[0] == rests[1] and same_value(*amounts)
    except (Undecided, Undefined):
        return False
