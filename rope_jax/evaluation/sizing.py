"""How many units of filler a prompt takes, and at which depths what it hides lies."""

from collections.abc import Callable
from functools import cache

GOLDEN = (5**0.5 - 1) / 2


@cache
def spread(strata: int) -> tuple[int, ...]:
    """The numbers below `strata`, in an order whose every beginning is spread evenly: multiples of the golden ratio."""
    # Four times as many points leave no stratum empty.
    return tuple(dict.fromkeys(int((0.5 + i * GOLDEN) % 1 * strata) for i in range(4 * strata)))


def largest_fit(count: Callable[[int], int], budget: int, least: int, most: int | None = None) -> int | None:
    """The largest n from `least` to `most` with `count(n) <= budget`; None if not even `least` fits.

    `count` gives the tokens of the prompt with n units and is nearly non-decreasing. Each step interpolates between the
    largest n known to fit and the smallest known not to, since tokens are nearly proportional to units, and every other
    step halves the interval, which bounds the number of steps.
    """
    low, low_tokens = least, count(least)
    if low_tokens > budget:
        return None
    step = 1
    while True:  # Until `high` does not fit.
        high = low + step if most is None else min(low + step, most)
        if high == low:
            return low
        high_tokens = count(high)
        if high_tokens > budget:
            break
        per_unit = max((high_tokens - low_tokens) / (high - low), 1e-3)
        low, low_tokens = high, high_tokens
        # Never more than 16 times as far, so that a first unit of few tokens does not lead far beyond.
        step = min(max(int((budget - low_tokens) / per_unit) + 1, step), 16 * step)
    halve = False
    while high - low > 1:
        middle = (low + high) // 2
        if not halve:
            share = (budget - low_tokens) / (high_tokens - low_tokens)
            middle = min(max(low + int(share * (high - low)), low + 1), high - 1)
        tokens = count(middle)
        if tokens <= budget:
            low, low_tokens = middle, tokens
        else:
            high, high_tokens = middle, tokens
        halve = not halve
    return low
