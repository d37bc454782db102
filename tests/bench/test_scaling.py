"""Exponents of costs."""

import pytest


def test_the_exponent_of_a_power_is_found_and_a_constant_part_shows_in_the_last_step():
    import scaling

    power = scaling.fitted("ms", {size: [3 * size**1.5] for size in (10, 100, 1000)})
    assert power["exponent"] == pytest.approx(1.5)
    assert power["exponent_of_last_step"] == pytest.approx(1.5)
    both = scaling.fitted("ms", {size: [1000 + size] for size in (10, 100, 1000, 10_000, 100_000)})
    assert both["exponent"] < 0.6 < 0.9 < both["exponent_of_last_step"] < 1
