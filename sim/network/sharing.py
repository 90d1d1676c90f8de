"""Who gets how much: max-min fair shares on virtual time, and a call when a flow has nothing left.

Rule 1: shares are max-min fair, by progressive filling (Bertsekas and Gallager, Data Networks, 2nd ed., section 6.5.2):
all rates rise together, and a flow stops where it meets its ceiling or a resource that is full.
Rule 2: a change recomputes its component alone: the bundles reached from it over resources that can bind, before or
after it. A resource with one user, or with more than all its users could take, couples nobody: the one costs O(1), the
other O(its users) sums.
Rule 3: one alarm per component that was computed together, in the kernel, at its first end. Each change moves every end
of a component, so an entry per flow would be stale before it is reached; one alarm is one entry. Bundles may leave for
another alarm; whoever is left is looked at when it rings.
Rule 4: order decides nothing but by numbers and insertion, never by addresses or hashes (I5).
"""

from collections.abc import Sequence
from functools import partial
from heapq import heapify, heappop, heapreplace
from math import inf
from operator import attrgetter

from ..kernel import Handle, Kernel
from .bundle import Bundle, Key, Stream
from .resource import Resource

_ceiling = attrgetter("ceiling")
_due = attrgetter("due_s")


class Alarm:
    """The next end among bundles that were computed together."""

    __slots__ = ("bundles", "handle", "members")

    def __init__(self, bundles: Sequence[Bundle]) -> None:
        self.bundles = bundles
        self.members = len(bundles)
        """How many of them have no other alarm since."""
        self.handle: Handle | None = None


class Sharing:
    """All bundles with open flows, and their rates. A change costs O(m log m) for m bundles in its component, and
    O(log k) for one of k flows on the same path.
    """

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.bundles: dict[Key, Bundle] = {}
        self.rated = 0
        """How many bundles were given a rate since the start: the work done."""
        self._visit = 0

    def join(self, key: Key, path: tuple[Resource, ...], cap: float) -> Bundle:
        """The bundle of a path that has none."""
        assert key not in self.bundles, f"{key} has a bundle"
        bundle = self.bundles[key] = Bundle(key, path, cap)
        return bundle

    def leave(self, bundle: Bundle) -> None:
        """One of its streams is over; a bundle without streams is forgotten."""
        bundle.streams -= 1
        if not bundle.streams:
            del self.bundles[bundle.key]

    def add(self, stream: Stream, size_bytes: float) -> None:
        """More to send."""
        now, bundle = self.kernel.now, stream.bundle
        stream.added_bytes += size_bytes
        if stream.is_flowing:
            bundle.extend(stream, size_bytes, now)
            return
        bundle.push(stream, now)
        for resource in bundle.path:
            resource.count(1, now)
            resource.bundles[bundle] = None
        bundle.limit()
        self._share((bundle,), now)

    def stop(self, stream: Stream) -> None:
        """A stream that has something left will not send it."""
        now, bundle = self.kernel.now, stream.bundle
        bundle.drop(stream, now)
        self._retire(bundle, 1, now)
        self._share((bundle,), now)

    def set_capacity(self, resource: Resource, bytes_per_s: float) -> None:
        """A resource carries more or less from now on."""
        now = self.kernel.now
        resource.settle(now)
        resource.capacity = bytes_per_s
        users = tuple(resource.bundles)
        for bundle in users:
            bundle.limit()
        self._share(users, now)

    def _share(self, changed: Sequence[Bundle], now: float) -> None:
        """New rates and alarms for all whom a change concerns."""
        bundles, resources = self._component(changed)
        self.rated += len(bundles)
        fill(bundles, resources)
        for bundle in bundles:
            bundle.run(bundle.next_rate, now)
        self._watch(bundles)

    def _component(self, changed: Sequence[Bundle]) -> tuple[list[Bundle], list[Resource]]:
        """The bundles that a change concerns, and the resources that can bind among them."""
        self._visit = visit = self._visit + 1
        coupling = self._coupling(changed)
        bundles = [bundle for bundle in changed if bundle.flowing]
        for bundle in changed:
            bundle.seen = visit
        for resource in coupling:  # grows while it is walked
            for bundle in resource.bundles:
                if bundle.seen != visit:
                    bundle.seen = visit
                    bundles.append(bundle)
                    for other in bundle.path:
                        if other.is_tight and other.seen != visit:
                            other.seen = visit
                            coupling.append(other)
        return bundles, [resource for resource in coupling if resource.is_tight]

    def _coupling(self, changed: Sequence[Bundle]) -> list[Resource]:
        """Resources on the changed paths that could bind, or can. Whether one can hangs on its own users, so that no
        other has to be asked anew.
        """
        coupling = []
        for bundle in changed:
            for resource in bundle.path:
                if resource.seen != self._visit:
                    resource.seen = self._visit
                    was_tight, resource.is_tight = resource.is_tight, resource.is_overbooked()
                    if was_tight or resource.is_tight:
                        coupling.append(resource)
        return coupling

    def _retire(self, bundle: Bundle, stopped: int, now: float) -> None:
        """So many of its flows have nothing to send any more."""
        for resource in bundle.path:
            resource.count(-stopped, now)
        if bundle.flowing:
            bundle.limit()
            return
        carried = bundle.rest()
        for resource in bundle.path:
            resource.carried_bytes += carried
            del resource.bundles[bundle]
        self._unwatch(bundle)

    def _watch(self, bundles: list[Bundle]) -> None:
        """One alarm for all of them, at the first end; none while nothing moves."""
        for bundle in bundles:
            if bundle.alarm is not None:
                self._unwatch(bundle)
        due_s = min(map(_due, bundles), default=inf)
        if due_s == inf:
            return
        alarm = Alarm(bundles)
        for bundle in bundles:
            bundle.alarm = alarm
        alarm.handle = self.kernel.at(due_s, partial(self._ring, alarm))

    def _unwatch(self, bundle: Bundle) -> None:
        alarm, bundle.alarm = bundle.alarm, None
        if alarm is not None:
            alarm.members -= 1
            if not alarm.members and alarm.handle is not None:
                alarm.handle.cancel()

    def _ring(self, alarm: Alarm) -> None:
        """End what is due. A flow that was given more, or a bundle that moved on, makes a ring in vain now and then."""
        now = self.kernel.now
        due = [bundle for bundle in alarm.bundles if bundle.due_s <= now and bundle.alarm is alarm]
        through: list[Stream] = []
        for bundle in due:
            ended = bundle.pop_due(now)
            self._retire(bundle, len(ended), now)
            through += ended
        self._share(due, now)
        if alarm.members:
            self._watch([bundle for bundle in alarm.bundles if bundle.alarm is alarm])
        for stream in through:
            stream.ran_dry(now)


def fill(bundles: Sequence[Bundle], resources: Sequence[Resource]) -> None:
    """Progressive filling: sets `next_rate` of every bundle, given the resources that can bind among them.

    Levels of resources only rise while others stop below them, so that one that was looked up too low is put back.
    """
    for resource in resources:
        resource.left = resource.capacity
        resource.weight = sum(bundle.flowing for bundle in resource.bundles)
    levels = [(resource.left / resource.weight, resource.number, resource) for resource in resources]
    heapify(levels)
    for bundle in bundles:
        bundle.next_rate = -1.0
    for bundle in sorted(bundles, key=_ceiling) if levels else bundles:
        while levels and bundle.next_rate < 0 and levels[0][0] < bundle.ceiling:
            level, number, resource = levels[0]
            if not resource.weight:
                heappop(levels)
            elif (risen := max(0.0, resource.left / resource.weight)) > level:
                heapreplace(levels, (risen, number, resource))
            else:
                heappop(levels)
                for user in resource.bundles:
                    if user.next_rate < 0:
                        _stop(user, level)
        if bundle.next_rate < 0:
            _stop(bundle, bundle.ceiling)


def _stop(bundle: Bundle, rate: float) -> None:
    bundle.next_rate = rate
    for resource in bundle.path:
        resource.left -= rate * bundle.flowing
        resource.weight -= bundle.flowing
