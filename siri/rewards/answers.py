"""When are two written answers the same? Text first, then structure, then the values inside.

A text is brought to one spelling (`grading.spelling`). Its structure (how many answers, which brackets, which
unit, which base) is compared here and has to agree: a comparison of values alone would throw it away, and would pay
for wrong answers. Sets of numbers (`grading.sets`) and values (`grading.grammar`, `grading.values`) are
read by a grammar of our own and compared exactly; what is undecided within bounds is not the same, and is counted.
math-verify (`grading.library`) is asked about what that grammar does not hold.
"""

import re
from dataclasses import dataclass
from fractions import Fraction

from siri.rewards.grading import library, sets
from siri.rewards.grading.antiderivatives import same_antiderivative
from siri.rewards.grading.approximations import with_sign
from siri.rewards.grading.bases import same_number
from siri.rewards.grading.boxes import final_boxes, given_answers, last_boxed
from siri.rewards.grading.choices import is_letter_of_choice, same_choice, same_letters
from siri.rewards.grading.compounds import same_compound
from siri.rewards.grading.conditions import differ_in_labels, without_declarations
from siri.rewards.grading.constants import alternatives
from siri.rewards.grading.equalities import condensed, names_a_value, turned
from siri.rewards.grading.equations import (
    applied,
    difference,
    event,
    is_derivative,
    is_graph,
    is_solved,
    same_curves,
    same_inequality,
    same_sides,
)
from siri.rewards.grading.forms import same_form
from siri.rewards.grading.golds import mended, unescaped
from siri.rewards.grading.grammar import NotRead, read
from siri.rewards.grading.integers import same_whole_sets
from siri.rewards.grading.joins import AND_OR, JUST_OR, joined_otherwise, listed, says_or, without_respectively
from siri.rewards.grading.labels import (
    chained,
    name_key,
    named_values,
    same_labelled,
    spread,
    without_index,
    without_label,
)
from siri.rewards.grading.lengths import has_needless_sign
from siri.rewards.grading.lines import same_union, with_lines
from siri.rewards.grading.money import same_currency
from siri.rewards.grading.names import with_names_of
from siri.rewards.grading.numbers import Undecided, Undefined
from siri.rewards.grading.parts import same_parts
from siri.rewards.grading.phrases import same_hour
from siri.rewards.grading.quantities import differ_in_units, same_amount
from siri.rewards.grading.ratios import same_named_sets, same_ratio
from siri.rewards.grading.readings import MAX_PARSED_CHARS, is_thousands, readings
from siri.rewards.grading.roundings import without_rounding
from siri.rewards.grading.scalars import is_a_word, same_scalar
from siri.rewards.grading.segments import is_of_segment, segment, unbarred
from siri.rewards.grading.spelling import clean
from siri.rewards.grading.structure import (
    RELATION,
    bracketed,
    chains,
    components,
    date,
    key,
    matrix,
    members,
    ratio,
    side_by_side,
    split,
)
from siri.rewards.grading.texts import apart
from siri.rewards.grading.truths import are_truths
from siri.rewards.grading.units import without_unit
from siri.rewards.grading.vectors import as_gold_vector, as_vector

__all__ = ["doubts", "final_boxes", "given_answers", "last_boxed", "same_answer"]

# One longer than this is not even cleaned, and is the same only if it is the same text.
MAX_CLEANED_CHARS = 8192
# One this much longer than the gold answer is wrong unread: nothing that is cleaned away takes as many characters.
MAX_EXTRA_CHARS = 200_000

_NUMBER = re.compile(r"-?\d+(?:\.\d+)?", re.ASCII)
_DECIMAL = re.compile(r"\.\d")
_APPROXIMATE = re.compile(r"approx|\\(?:simeq|cong|doteq)|[≈≒≃≊≅]")
_MATCHED = re.compile(r"(?:\d\s*-?\s*[A-Z]\s*,?\s*){2,}|(?:[A-Z]\s*-?\s*\d\s*,?\s*){2,}")


@dataclass(slots=True)
class Doubts:
    """How many answers scored 0 because a comparison was undecided, in this process."""

    count: int = 0


doubts = Doubts()


def same_answer(gold: str, answer: str) -> bool:
    """Whether `answer` is the answer `gold`, both LaTeX or plain text. May be slow for a hostile `answer`: time it.

    What cannot be decided within bounds is not the same, and adds one to `doubts`.
    """
    if len(answer) > len(gold) + MAX_EXTRA_CHARS:
        return False
    gold, answer = (last_boxed(text) or text for text in (gold, answer))
    if gold.strip() == answer.strip():
        return bool(gold.strip())
    if max(len(gold), len(answer)) > MAX_CLEANED_CHARS:
        return "".join(gold.split()) == "".join(answer.split())
    gold, answer = (without_rounding(apart(text)) for text in (mended(gold), unescaped(answer)))
    gold, answer = as_gold_vector(gold, answer), as_vector(answer, gold)
    if (verdict := same_currency(gold, answer)) is not None:
        return verdict
    if (verdict := same_parts(gold, answer, same_answer)) is not None:
        return verdict
    if has_needless_sign(gold, answer):
        return False
    undecided = False
    spellings = [clean(answer)]
    if _DECIMAL.search(gold) and _APPROXIMATE.search(answer):
        spellings.append(clean(answer, decimals=True))
    for reading in readings(clean(with_sign(gold))):
        others = [other for spelling in dict.fromkeys(spellings) for other in readings(spelling)]
        for pair in [pair for other in others for pair in alternatives(reading, other)]:
            try:
                if _same(*pair):
                    return True
            except Undecided:
                undecided = True
            except Undefined:
                pass
    doubts.count += undecided
    return False


def _same(gold: str, answer: str) -> bool:
    gold, answer = gold.strip(), answer.strip()
    if not gold or not answer:
        return False
    if "espectively" in gold + answer:
        return _same_respective(gold, answer)
    if key(gold) == key(answer) and gold != answer and differ_in_units(gold, answer):
        return False  # m s is no ms
    if key(gold) == key(answer) or same_letters(gold, answer) or same_hour(gold, answer):
        return True
    if same_compound(gold, answer):
        return True
    if max(len(gold), len(answer)) > MAX_PARSED_CHARS:
        return False
    if any(pairs := [side_by_side(text) for text in (gold, answer)]):
        if all(pairs):
            return _same_in_order(*pairs)  # a product of cycles looks like that, too
        gold, answer = (", ".join(each) or text for each, text in zip(pairs, (gold, answer), strict=True))
    if _MATCHED.fullmatch(gold) and _MATCHED.fullmatch(answer):
        return False  # 1A2B is no product
    if _NUMBER.fullmatch(gold) and _NUMBER.fullmatch(answer):
        return Fraction(gold) == Fraction(answer)
    if (dates := (date(gold), date(answer))) != ("", ""):
        return dates[0] == dates[1]
    if joined_otherwise(gold, answer) or ("\\text" in gold + answer and differ_in_labels(gold, answer)):
        return False
    renamed = without_declarations(gold, with_names_of(gold, answer))
    if renamed != (gold, answer):
        gold, answer = renamed
        if key(gold) == key(answer):
            return True
    verdict = same_form(gold, answer, _same)
    if verdict is not None:
        return verdict
    if same_antiderivative(gold, answer):
        return True
    if (verdict := _same_events(gold, answer)) is not None:
        return verdict
    gold, answer = with_lines(gold), with_lines(answer)
    if same_letters(gold, answer) is False:
        return False
    if is_thousands(gold) and says_or(answer):
        return False
    if (chosen := same_choice(gold, answer, _same)) is not None:
        return chosen
    if (verdict := same_whole_sets(gold, answer)) is not None:
        return verdict
    if (verdict := same_named_sets(gold, answer, _same)) is not None:
        return verdict
    if sets.may_be_a_set(gold) or sets.may_be_a_set(answer):
        verdict = _same_sets(gold, answer)
        if verdict is not None:
            return verdict
    if RELATION.search(gold) or RELATION.search(answer):
        return _same_relations(gold, answer)
    if (verdict := same_union(gold, answer)) is not None:
        return verdict
    if restated := _restated(gold, answer):
        return all(map(_same, *restated))
    (name, bare), (other_name, other) = without_label(gold), without_label(answer)
    if name and other_name:
        return name == other_name and _same(bare, other)
    return _same_lists(*(listed(text) for text in (bare, other)))


def _same_respective(gold: str, answer: str) -> bool:
    """Values that the gold answer gives in an order, for what the question named in it."""
    golds, answers = (
        [part for part in split(listed(without_respectively(text)), ",;") if part.strip()] for text in (gold, answer)
    )
    if "espectively" not in gold:
        return _same(gold, without_respectively(answer))
    return len(golds) > 1 and says_or(gold) == says_or(answer) and _same_in_order(golds, answers)


def _restated(gold: str, answer: str) -> tuple[list[str], list[str]] | None:
    """ "1/2 or 0.5" is one answer, twice: each part has to be it."""
    parts = [[part for part in JUST_OR.split(text) if part.strip(" ,")] for text in (gold, answer)]
    if sorted(map(len, parts)) != [1, 2] or sets.may_be_a_set(gold) or sets.may_be_a_set(answer):
        return None
    short, long = sorted(parts, key=len)
    if len(members(short[0])) > 1 or not _same(long[0].strip(" ,"), long[1].strip(" ,")):
        return None
    return short * 2, [part.strip(" ,") for part in long]


def _same_events(gold: str, answer: str) -> bool | None:
    """Probabilities with the event that they are of, in one or both; None without any."""
    golds, answers = event(gold), event(answer)
    if golds or answers:
        both = golds or split(gold, "="), answers or split(answer, "=")
        if all(len(sides) == 2 and applied(sides[0]) for sides in both):
            return _same_equations(*both)
        return _same(golds[1] if golds else gold, answers[1] if answers else answer)
    return None


def _same_sets(gold: str, answer: str) -> bool | None:
    """Whether two sets of real numbers are the same; None where one of them is not read as such a set or a number."""
    gold_set, answer_set = _set_or_none(gold), _set_or_none(answer)
    (name, bare), (other_name, other) = without_label(gold), without_label(answer)
    if (gold_set is None and name) or (answer_set is None and other_name):
        return False if name and other_name and name != other_name else _same_sets(bare, other)
    if gold_set is None or answer_set is None:
        if gold_set is answer_set:
            return None
        try:
            read(gold if gold_set is None else answer)
        except NotRead:
            return None
        return False  # a number is no set
    (golds, gold_name), (answers, name) = gold_set, answer_set
    if sets.is_and_for_or(answer) and not sets.is_and_for_or(gold):
        return False
    return (not gold_name or not name or gold_name == name) and sets.same_pieces(golds, answers)


def _set_or_none(text: str) -> tuple[sets.Pieces, str] | None:
    try:
        return sets.read_set(text)
    except (sets.NotASet, Undefined):
        return None


def _same_relations(gold: str, answer: str) -> bool:
    golds, answers = (split(AND_OR.sub(",", text), ",;") for text in (gold, answer))
    if len(golds) > 1 or len(answers) > 1:
        both = all(RELATION.search(text) for text in (gold, answer))
        return both and _same_in_any_order(golds, answers)
    if (links := chains(*(without_label(text)[1] for text in (gold, answer)))) is not None:
        return all(map(_same, *links))
    return same_inequality(gold, answer)


def _same_lists(gold: str, answer: str) -> bool:
    golds, answers = members(gold), members(answer)
    statements = spread(golds), spread(answers)
    if min(map(len, statements)) > 1 or (min(len(golds), len(answers)) == 1 and any(map(bracketed, golds + answers))):
        golds, answers = statements
    if len(golds) > 1 or len(answers) > 1:
        golds = without_index(golds, answers)
        answers = without_index(answers, golds)
        if len(golds) == 1 or len(answers) == 1:
            return _same_named_tuple(golds, answers)
        if are_truths(golds) and not gold.lstrip().startswith("\\{"):
            return _same_in_order(golds, answers)
        if is_thousands(gold):  # read as a list these have one order, and no sign of a set
            return ";" not in answer and "\\{" not in answer and _same_in_order(golds, answers)
        verdict = same_labelled(golds, answers, _same_member)
        return _same_in_any_order(golds, answers) if verdict is None else verdict
    gold, answer = golds[0].strip(), answers[0].strip()

    golds, answers = split(gold, "="), split(answer, "=")
    if len(golds) > 1 or len(answers) > 1:
        return _same_equation(golds, answers)

    if is_a_word(gold) or is_a_word(answer):
        return False  # a word would be a product of letters, in any order
    if gold.count("\\begin") > 1 or answer.count("\\begin") > 1:
        return library.verify(gold, answer)  # a sum or product of matrices
    for parts in (matrix, bracketed, ratio):
        gold_parts, answer_parts = parts(gold), parts(answer)
        if gold_parts or answer_parts:
            if parts is bracketed and (vectors := components(gold, answer)):
                return all(map(_same, *vectors))
            if not gold_parts or not answer_parts:
                kind = (gold_parts or answer_parts or ("",))[0]
                # a determinant and a number
                return library.verify(gold, answer) if parts is matrix and kind[0] else False
            if gold_parts[0] != answer_parts[0]:
                return False
            return all(map(_same_member, gold_parts[1], answer_parts[1]))
    return same_scalar(gold, answer)


def _same_in_any_order(golds: list[str], answers: list[str]) -> bool:
    if len(golds) != len(answers):
        return False
    left = list(answers)
    for gold in golds:
        place = next((i for i, answer in enumerate(left) if _same_member(gold, answer)), None)
        if place is None:
            return False
        del left[place]
    return True


def _same_member(gold: str, answer: str) -> bool:
    """Whether two members of a list are the same: 1 is not the set that holds it."""
    sets_ = [text.strip().startswith("\\{") for text in (gold, answer)]
    empty = any("\\emptyset" in text for text in (gold, answer))
    return (empty or sets_[0] == sets_[1]) and _same(gold, answer)


def _same_in_order(golds: list[str], answers: list[str]) -> bool:
    return len(golds) == len(answers) and all(map(_same_member, golds, answers))


def _same_named_tuple(golds: list[str], answers: list[str]) -> bool:
    """`x = 1, y = 2` is the pair (1, 2): the values in the order of the names."""
    single, several = (golds[0], answers) if len(golds) == 1 else (answers[0], golds)
    tuple_, values = bracketed(single), named_values(several)
    if not tuple_ or not values or single.strip()[0] + single.strip()[-1] != "()" or len(values) != len(tuple_[1]):
        return False
    return all(map(_same, tuple_[1], values))


def _same_equation(golds: list[str], answers: list[str]) -> bool:
    """Compares what is between equals signs, where one side or both have some."""
    if (verdict := same_number(golds, answers)) is not None:
        return verdict
    if len(golds) > 1 and len(answers) > 1:
        return _same_equations(golds, answers)
    named, value = (golds, answers[0]) if len(golds) > 1 else (answers, golds[0])
    if len(answers) > 1 and is_letter_of_choice(value) and answers[-1].strip().islower():
        return False  # z = c is no choice
    if (converted := same_amount(named, value, _same)) is not None:
        return converted
    named = turned(named)
    measured = [side for side in named if (parts := without_unit(side))[1] and "\\text" not in parts[0]]
    if not all(_same(*((side, value) if len(golds) > 1 else (value, side))) for side in measured):
        return False  # 5 g = 5 is no 5 kg
    return names_a_value(named, as_answer=len(answers) > 1, same=_same) and (
        _same(named[-1], value) if len(golds) > 1 else _same(value, named[-1])
    )


def _same_equations(golds: list[str], answers: list[str]) -> bool:
    golds, answers = unbarred(golds), unbarred(answers)
    if segment(golds[0]) and is_of_segment(answers[0]) and not re.search("[A-Z]", golds[-1]):
        return False  # 2AB = 10 is to be solved
    if len(golds) == len(answers) == 2:
        names = name_key(golds[0]), name_key(answers[0])
        if names[0] == names[1] or is_graph(*names):
            return _same(golds[1], answers[1])
        if (verdict := same_ratio(golds, answers, _same)) is not None:
            return verdict
        function, other = applied(golds[0]), applied(answers[0])
        if function and other:  # f(2) = 5 is nothing of f(5)
            (gold_name, at), (name, point) = function, other
            places = (split(text, ",;|") for text in (at, point))
            return gold_name == name and _same_in_order(*places) and _same(golds[1], answers[1])
        if all(map(is_derivative, names)):
            return False
    if bool(chained("=".join(golds))) != bool(chained("=".join(answers))):
        return False  # x = 1 is half of x = y = 1
    golds, answers = condensed(golds, _same), condensed(answers, _same)
    if len(golds) != len(answers):
        return False  # a = c is half of a = b = c
    if len(golds) > 2:
        return _same_in_any_order(golds, answers)
    try:
        trees = [[read(sides[0]), read(sides[-1])] for sides in (golds, answers)]
        if is_solved(*trees[0]) > is_solved(*trees[1]):
            return False  # 2x = 4 is to be solved
        return same_sides(*trees) or same_curves(*(difference(*sides) for sides in trees))
    except NotRead:
        return library.verify("=".join(golds), "=".join(answers))
