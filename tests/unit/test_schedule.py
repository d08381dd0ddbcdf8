"""L(t) against the test vectors of the paper's formulas, and what the rest of the product relies on."""

import pytest

from siri.errors import InputError
from siri.schedule import LengthSchedule

STEPS = (0, 40, 80, 120, 160, 200, 240, 280, 320, 400, 480, 560, 600, 640)
COSINE = (
    16384,
    16072.2,
    15184.3,
    13855.5,
    12288,
    10720.5,
    9391.7,
    8503.8,
    8192,
    9391.7,
    12288,
    15184.3,
    16072.2,
    16384,
)
STAIR_COSINE = (16384, 16384, 16384, 15184.3, 12288, 9391.7, 8192, 8192, 8192, 8192, 12288, 16384, 16384, 16384)


def paper(kind: str) -> LengthSchedule:
    return LengthSchedule(kind, l_max=16384, l_min=8192, cycle=640)


@pytest.mark.parametrize(("kind", "caps"), [("cosine", COSINE), ("stair_cosine", STAIR_COSINE)])
def test_paper_vectors(kind, caps):
    for step, cap in zip(STEPS, caps, strict=True):
        got = paper(kind).cap(step)
        assert isinstance(got, int)
        assert abs(got - cap) <= 0.55, (step, got, cap)  # the vector is rounded to 0.1, the cap to 1
        assert paper(kind).cap(step + 3 * 640) == got


def test_stair_compresses_first():
    caps = [paper("stair").cap(t) for t in (0, 319, 320, 639, 640)]
    assert caps == [8192, 8192, 16384, 16384, 8192]


def test_constant_and_steps():
    assert [LengthSchedule("constant", 96, 20, 60).cap(t) for t in (0, 59, 1000)] == [96, 96, 96]
    staged = LengthSchedule("steps", 1, 1, 1, stages=((0, 8192), (320, 16384), (1520, 24576)))
    assert [staged.cap(t) for t in (0, 319, 320, 1519, 1520, 9999)] == [8192, 8192, 16384, 16384, 24576, 24576]
    assert staged.longest == 24576
    assert {staged.phase(t) for t in range(0, 2000, 100)} == {"expansion"}


def test_odd_cycle_rounds_half_up_and_stays_inside():
    schedule = LengthSchedule("cosine", 97, 20, 7)
    caps = [schedule.cap(t) for t in range(14)]
    assert caps[:7] == caps[7:] and caps[0] == 97 and min(caps) >= 20
    # half-way up: 58.5 + 38.5 * cos(pi/2) = 58.5 -> 59
    assert LengthSchedule("cosine", 97, 20, 4).cap(1) == 59


@pytest.mark.parametrize("kind", ["cosine", "stair", "stair_cosine"])
def test_milestones_close_each_half_cycle(kind):
    schedule = LengthSchedule(kind, 96, 20, 40)
    marks = {done: schedule.milestone(done) for done in range(121) if schedule.milestone(done)}
    assert marks == {
        20: "siri-low-1", 40: "siri-high-1", 60: "siri-low-2", 80: "siri-high-2", 100: "siri-low-3", 120: "siri-high-3",
    }  # fmt: skip
    assert schedule.phase(19) == "compression" and schedule.phase(20) == "expansion"


def test_constant_has_no_milestones():
    assert all(LengthSchedule("constant", 96, 20, 40).milestone(t) is None for t in range(200))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("cosine", 10, 20, 40), "l_min <= l_max"),
        (("cosine", 20, 0, 40), "l_min is 0"),
        (("stair", 20, 10, 0), "cycle is 0"),
        (("constant", 0, 0, 0), "l_max is 0"),
        (("sine", 20, 10, 4), "choose one of"),
        (("steps", 20, 10, 4), "step 0"),
        (("steps", 20, 10, 4, ((5, 8),)), "step 0"),
        (("steps", 20, 10, 4, ((0, 8), (0, 9))), "rising"),
        (("steps", 20, 10, 4, ((0, 8), (4, 0))), "at least 1 token"),
    ],
)
def test_bad_schedules_are_refused(arguments, says):
    with pytest.raises(InputError, match=says):
        LengthSchedule(*arguments)


def test_an_offset_shifts_the_schedule_and_half_a_cycle_puts_expansion_first():
    plain = LengthSchedule("cosine", 16384, 8192, 640)
    shifted = LengthSchedule("cosine", 16384, 8192, 640, offset=1)
    assert [shifted.cap(t) for t in range(700)] == [plain.cap(t + 1) for t in range(700)]
    stair = LengthSchedule("stair", 48, 24, 8, offset=4)
    assert [stair.cap(t) for t in range(8)] == [48] * 4 + [24] * 4
    assert [stair.phase(t) for t in (0, 3, 4, 7)] == ["expansion"] * 2 + ["compression"] * 2


@pytest.mark.parametrize("cycle", [6, 7])
@pytest.mark.parametrize("offset", [0, 1, 3, 4, 5, 9])
def test_phases_that_a_run_ends_are_counted_from_one(cycle, offset):
    schedule = LengthSchedule("cosine", 48, 24, cycle, offset=offset)
    for kind in ("low", "high"):
        named = [name for step in range(5 * cycle) if (name := schedule.milestone(step)) and kind in name]
        assert named == [f"siri-{kind}-{i + 1}" for i in range(len(named))] and len(named) >= 4


def test_a_negative_offset_is_refused():
    with pytest.raises(InputError, match="schedule_offset is -1"):
        LengthSchedule("cosine", 48, 24, 6, offset=-1)
