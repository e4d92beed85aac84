"""Counting within a window of time: what is used is this window's count and a share of the last one's.

Two fixed windows weighted by time are nearly a sliding one, and need two numbers. A counter also knows what
this process alone has counted, and what of it the other replicas have not been told.
"""

import ipaddress
from typing import Final

SYNC_SHARE: Final = 20  # a replica tells the others at the latest after 1/20 of the limit


class WindowCounter:
    """One limit of one subject: so many per window.

    Attributes:
        name: Its key for all replicas, without the window's number.
        limit: How many per window.
        length_s: Of the window, in seconds.
        epoch: The number of the present window since 1970.
        base: Of all replicas in this window, when this one last heard of it.
        base_previous: Of all replicas in the window before.
        pending: Of this replica in this window, not told yet.
        pending_previous: Likewise, of the window before.
        own: Of this replica in this window.
        own_previous: Of this replica in the window before.
        step: How much may be pending.
        spare: How much may be counted before anything has to be decided again.
        ends_s: When the present window ends, seconds since 1970.
    """

    __slots__ = (
        "base",
        "base_previous",
        "ends_s",
        "epoch",
        "knows_previous",
        "length_s",
        "limit",
        "name",
        "own",
        "own_previous",
        "pending",
        "pending_previous",
        "spare",
        "step",
    )

    def __init__(self, name: str, limit: int, length_s: int) -> None:
        self.name = name
        self.limit = limit
        self.length_s = length_s
        self.step = max(1, limit // SYNC_SHARE)
        self.epoch = 0
        self.base = self.base_previous = 0
        self.pending = self.pending_previous = 0
        self.own = self.own_previous = 0
        self.knows_previous = False
        self.spare = 0
        self.ends_s = length_s

    def set_limit(self, limit: int) -> None:
        """Change the limit; what was counted stays."""
        self.limit = limit
        self.spare = 0
        self.step = max(1, limit // SYNC_SHARE)

    def advance(self, now_s: float) -> None:
        """Begin the window of this moment, if it is another one. A clock that goes back changes nothing."""
        epoch = int(now_s // self.length_s)
        if epoch <= self.epoch:
            return
        if epoch == self.epoch + 1:
            self.base_previous, self.pending_previous, self.own_previous = self.base, self.pending, self.own
        else:
            self.base_previous = self.pending_previous = self.own_previous = 0
        self.base = self.pending = self.own = 0
        self.epoch = epoch
        self.ends_s = (epoch + 1) * self.length_s
        self.knows_previous = False
        self.spare = 0

    def used(self, now_s: float, *, is_shared: bool) -> float:
        """Return what counts now.

        Args:
            now_s: Seconds since 1970, not before the last `advance`.
            is_shared: True = of all replicas, as far as known; False = of this one.
        """
        if is_shared:
            previous, current = self.base_previous + self.pending_previous, self.base + self.pending
        else:
            previous, current = self.own_previous, self.own
        if not previous:
            return current
        share = 1.0 - (now_s / self.length_s - self.epoch)
        return previous * (0.0 if share < 0.0 else min(share, 1.0)) + current

    def add(self, amount: int) -> None:
        """Count; a negative amount gives back."""
        own = self.own + amount
        self.own = own if own > 0 else 0
        self.pending += amount
        self.spare -= amount

    def correct(self, amount: int, epoch: int) -> None:
        """Correct what was counted in window `epoch`; windows that are over no longer matter."""
        if epoch == self.epoch:
            self.add(amount)
        elif epoch == self.epoch - 1:
            self.own_previous = max(0, self.own_previous + amount)
            self.pending_previous += amount

    def wait_s(self, amount: int, now_s: float, *, limit: int, is_shared: bool) -> float:
        """Return in how many seconds `amount` more will fit, if nothing else is counted meanwhile.

        1. it fits once enough of the last window is out of sight  → within this window
        2. it fits once enough of this window is out of sight      → within the next one
        """
        length_s = self.length_s
        previous = self.base_previous + self.pending_previous if is_shared else self.own_previous
        current = self.base + self.pending if is_shared else self.own
        passed_s = min(max(now_s - self.epoch * length_s, 0.0), float(length_s))
        if current + amount <= limit:  # 1
            share = (limit - current - amount) / previous if previous else 1.0
            return max(0.0, length_s * (1 - min(share, 1.0)) - passed_s)
        share = max(0, limit - amount) / current if current else 1.0  # 2
        return length_s - passed_s + length_s * (1 - min(share, 1.0))


class AttemptLimit:
    """So many attempts per minute for each of many subjects, such as logins per address; in this process.

    Args:
        limit: Attempts per minute.
        max_subjects: How many subjects are remembered; the oldest is forgotten first.
    """

    def __init__(self, limit: int, *, max_subjects: int = 20_000) -> None:
        self._limit = limit
        self._max_subjects = max_subjects
        self._counters: dict[str, WindowCounter] = {}

    def take(self, subject: str, now_s: float) -> float:
        """Count an attempt.

        Args:
            now_s: Seconds since 1970.

        Returns:
            0 = it is allowed; else in how many seconds the next one will be.
        """
        counter = self._counters.get(subject)
        if counter is None:
            if len(self._counters) >= self._max_subjects:
                del self._counters[next(iter(self._counters))]
            counter = self._counters[subject] = WindowCounter(subject, self._limit, 60)
        counter.advance(now_s)
        if counter.used(now_s, is_shared=False) + 1 > self._limit + 1e-6:
            return max(1.0, counter.wait_s(1, now_s, limit=self._limit, is_shared=False))
        counter.add(1)
        return 0.0


def subject_of_address(peer: str) -> str:
    """Return under which name attempts of an address are counted: IPv6 by its network of 64 bits."""
    try:
        address = ipaddress.ip_address(peer.partition("%")[0])
    except ValueError:
        return peer[:64]
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return str(address.ipv4_mapped)
        return str(ipaddress.IPv6Network((address, 64), strict=False))
    return str(address)
