"""When a destination that did not take a result is asked again: after a delay that doubles, until it is given up."""

from collections.abc import Collection, Hashable
from dataclasses import dataclass, field

FIRST, LONGEST = 2.0, 900.0  # seconds


def delay(failures: int) -> float:
    """Seconds to wait after so many failures one after another: FIRST, then twice as long each time, to LONGEST."""
    return min(LONGEST, FIRST * 2.0 ** min(failures - 1, 60))


@dataclass
class Schedule:
    """Which things may be tried now. Times are in seconds, of any clock.

    Attributes:
      failures: of each thing since its last success.
      due: when each thing that failed may be tried again.
      since: when each thing failed first since its last success, or was first held up by another that failed.
    """

    failures: dict[Hashable, int] = field(default_factory=dict)
    due: dict[Hashable, float] = field(default_factory=dict)
    since: dict[Hashable, float] = field(default_factory=dict)

    def may_try(self, thing: Hashable, now: float) -> bool:
        """Whether a thing has not failed, or has waited long enough."""
        return self.due.get(thing, now) <= now

    def failed(self, thing: Hashable, now: float) -> float:
        """Notes a failure; returns the seconds until the next try."""
        self.failures[thing] = self.failures.get(thing, 0) + 1
        seconds = delay(self.failures[thing])
        self.due[thing] = now + seconds
        self.held_up(thing, now)
        return seconds

    def held_up(self, thing: Hashable, now: float) -> None:
        """Notes that a thing could not be done. When it may be tried stays as it is."""
        self.since.setdefault(thing, now)

    def seconds(self, thing: Hashable, now: float) -> float:
        """For how long a thing has failed or was held up."""
        return now - self.since.get(thing, now)

    def succeeded(self, thing: Hashable) -> None:
        """Forgets the failures of a thing."""
        self.failures.pop(thing, None)
        self.due.pop(thing, None)
        self.since.pop(thing, None)

    def keep(self, things: Collection[Hashable]) -> None:
        """Forgets all other things."""
        for thing in self.since.keys() - set(things):
            self.succeeded(thing)
