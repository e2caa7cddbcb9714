"""kill -9 of the whole node, again and again, at random moments: of each recording there is one object, never two."""

import random
import time
from collections.abc import Callable

import gevent
from faults import kill_node, start_node
from house import WAIT, House
from plan import consent, sale
from reading import Found, Reader, unsettled

_SETTLE = 120.0  # seconds for the last one
_CALLS = 5  # placed before each kill
_LONGEST = 4.5  # seconds from the first call to the kill


def kill_again_and_again(house: House, times: int, seed: int, say: Callable[[str], None]) -> Found:
    """Kill all roles and the switch `times` times, each time with calls in random phases; what was read back."""
    chance, calls, total = random.Random(seed), [], Found()
    for number in range(times):
        begun, mine = time.time(), []
        kill_at = chance.uniform(0.2, _LONGEST)
        for _ in range(_CALLS):
            at, talk = chance.uniform(0.0, max(0.1, kill_at - 1.0)), chance.uniform(0.5, 3.0)
            mine.append((at, chance.choice((sale, consent))("recording", 0.0, talk).script))
        for at, script in sorted(mine, key=lambda each: each[0]):
            gevent.sleep(max(0.0, begun + at - time.time()))
            calls.append(house.switch.place("recording", script))
        gevent.sleep(max(0.0, begun + kill_at - time.time()))
        kill_node(house)
        start_node(house)
        say(
            f"{number + 1} of {times}: killed after {kill_at:.1f} s, {sum(bool(c.recording) for c in calls)} recordings"
        )
    end = time.monotonic() + _SETTLE
    while (still := unsettled(house)) and time.monotonic() < end:
        gevent.sleep(0.2)
    if still:
        total.wrong.append(f"still under way: {still}")
    reader = Reader(house)
    for call in calls:
        total.add(reader.call(call, patience=WAIT + 2.0, withdrawn=False))
    total.wrong += [f"{each} was recorded by nobody" for each in reader.strangers(calls)]
    return total
