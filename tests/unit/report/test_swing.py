"""Amplitude and lag of a figure behind the cap, against series made by formula, and the test's level under noise."""

import math
import random

import pytest

from siri.report.swing import answers, cap_period, swing, swing_of_run, swing_of_runs

PERIOD = 24


def caps(cycles: int, period: int = PERIOD) -> list[float]:
    return [36 + 12 * math.cos(2 * math.pi * step / period) for step in range(cycles * period)]


def following(cycles: int, *, amplitude: float, lag: float, drift: float = 0.0, noise: float = 0.0, seed: int = 0):
    """A series that follows the cap, on a line, with noise of first order (coefficient 0.8)."""
    rng, past, values = random.Random(seed), 0.0, []
    for step in range(cycles * PERIOD):
        past = 0.8 * past + rng.gauss(0, 1)
        values.append(30 + drift * step + amplitude * math.cos(2 * math.pi * (step - lag) / PERIOD) + noise * past)
    return values


@pytest.mark.parametrize("lag", [0, 3.5, 7, 20])
@pytest.mark.parametrize("drift", [-0.4, 0.3])
def test_amplitude_and_lag_of_a_series_that_follows_the_cap(lag, drift):
    series = following(4, amplitude=4, lag=lag, drift=drift)
    points = answers(caps(4), series, PERIOD)
    assert len(points) == 3, "the first cycle is left out"
    noisy = [point + 0.01 * turn for point, turn in zip(points, (1, 1j, -1 - 1j), strict=True)]
    fitted = swing(noisy, PERIOD)
    assert fitted.amplitude == pytest.approx(4, abs=1e-6)
    assert math.cos(2 * math.pi * (fitted.lag - lag) / PERIOD) == pytest.approx(1)
    assert fitted.sure and fitted.count == 3 and fitted.lag_half < 0.1
    assert "4, " in fitted.text() and "behind" in fitted.text()


def test_the_statistic_is_hotellings():
    """Four points worked by hand: mean (2, 0), both variances 2/3, no covariance; T2 = 4 * 4 / (2/3) = 24."""
    fitted = swing([3 + 0j, 1 + 0j, 2 + 1j, 2 - 1j], PERIOD)
    assert fitted.amplitude == 2 and fitted.lag == 0
    f = 24 * (4 - 2) / (2 * 3)
    assert fitted.p == pytest.approx((1 + 2 * f / 2) ** -1) == pytest.approx(1 / 9)
    assert not fitted.sure and "cannot" not in fitted.text() and "none that can be told (p = 0.11)" in fitted.text()
    half = 3.182 * math.sqrt(2 / 3) / 2
    assert fitted.lag_half == pytest.approx(math.atan2(half, 2) * PERIOD / (2 * math.pi))


@pytest.mark.parametrize("coefficient", [0.5, 0.9])
def test_noise_that_remembers_its_past_passes_for_a_swing_in_five_of_a_hundred_studies(coefficient):
    """The shift of best correlation gave a lag in 97 of them."""
    rng = random.Random(7)
    shared, sure, studies = caps(3), 0, 400
    for _ in range(studies):
        runs = []
        for _ in range(5):
            past, series = rng.gauss(0, 1) / math.sqrt(1 - coefficient**2), []
            for _ in shared:
                past = coefficient * past + rng.gauss(0, 1)
                series.append(past)
            runs.append(series)
        sure += swing_of_runs(shared, runs).sure
    assert 0.02 <= sure / studies <= 0.08


def test_a_swing_within_that_noise_is_seen_with_five_seeds():
    runs = [following(3, amplitude=2, lag=6, noise=0.5, seed=seed) for seed in range(5)]
    fitted = swing_of_runs(caps(3), runs)
    assert fitted.sure and fitted.count == 5
    assert fitted.lag == pytest.approx(6, abs=1.5) and fitted.amplitude == pytest.approx(2, rel=0.2)
    assert abs(fitted.lag - 6) < 2 * fitted.lag_half


def test_the_fall_from_the_bases_length_is_no_swing():
    """In the first cycle the length falls as the cap does, whatever it does later."""
    runs = []
    for seed in range(5):
        fall = [14 * math.exp(-step / 5) for step in range(3 * PERIOD)]
        noise = following(3, amplitude=0, lag=0, noise=0.5, seed=seed)
        runs.append([a + b for a, b in zip(fall, noise, strict=True)])
    assert not swing_of_runs(caps(3), runs).sure


def test_nothing_where_there_is_nothing_to_tell_it_from():
    assert cap_period([48] * 72) is None and cap_period([24] * 36 + [48] * 36) is None, "one stair is no cycle"
    assert cap_period([]) is None and cap_period(caps(3)) == PERIOD
    assert swing_of_run([48] * 72, [1.0] * 72) is None
    assert swing_of_run(caps(3), following(3, amplitude=4, lag=0)) is None, "two cycles after the first"
    assert swing_of_runs(caps(3), [following(3, amplitude=4, lag=0)] * 2) is None, "two seeds"
    gone = [None] * 30 + following(4, amplitude=4, lag=0)[30:]
    assert len(answers(caps(4), gone, PERIOD)) == 2, "a cycle with a hole is left out"
    flat = swing_of_run(caps(4), [30.0] * (4 * PERIOD))
    assert flat.p > 0.5 and not flat.sure
