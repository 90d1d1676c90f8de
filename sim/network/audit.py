"""What is true of the shares at every moment, asserted from the outside: no sum of the engine's is taken on trust."""

from collections import Counter
from collections.abc import Sequence
from math import inf

from .bundle import Bundle
from .resource import Resource
from .sharing import Sharing

SLACK = 1e-9
"""Relative: some thousand roundings of a double."""


def check(sharing: Sharing, resources: Sequence[Resource]) -> None:
    """Assert I9, max-min fairness, the components and the books; O(flows x path)."""
    now = sharing.kernel.now
    running = [bundle for bundle in sharing.bundles.values() if bundle.flowing]
    for bundle in sharing.bundles.values():
        assert bundle.streams > 0, f"{bundle.key}: kept without a flow"
        bundle.check(now)
    used = {resource.number: _used(resource, running) for resource in resources}
    for resource in resources:
        assert used[resource.number] <= resource.capacity * (1 + SLACK), f"{resource.name}: above its capacity"
        assert resource.is_tight == resource.is_overbooked(), f"{resource.name}: who it couples is out of date"
        books = resource.usage(now)
        assert books.flows == sum(bundle.flowing for bundle in resource.bundles), f"{resource.name}: count of flows"
        assert books.bytes <= books.offered_bytes * (1 + SLACK) + 1e-6, f"{resource.name}: I9"
    for bundle in running:
        assert _is_bottlenecked(bundle, used), (
            f"{bundle.key}: above its cap, or could have more without taking it from one who has less"
        )
    _check_alarms(running)


def _used(resource: Resource, running: Sequence[Bundle]) -> float:
    users = [bundle for bundle in running if resource in bundle.path]
    assert set(users) == set(resource.bundles), f"{resource.name}: its users"
    return sum(bundle.rate * bundle.flowing for bundle in users)


def _is_bottlenecked(bundle: Bundle, used: dict[int, float]) -> bool:
    """At its own cap, or on a full resource where nobody is faster (Bertsekas and Gallager, section 6.5.2)."""
    if bundle.rate >= bundle.cap * (1 - SLACK):
        return bundle.rate <= bundle.cap
    return any(
        used[resource.number] >= resource.capacity * (1 - SLACK)
        and all(other.rate <= bundle.rate * (1 + SLACK) for other in resource.bundles)
        for resource in bundle.path
    )


def _check_alarms(running: Sequence[Bundle]) -> None:
    """Whoever ends some day is waited for, not too late, by an alarm that knows how many it waits for."""
    members = Counter(id(bundle.alarm) for bundle in running if bundle.alarm is not None)
    for bundle in running:
        alarm = bundle.alarm
        if alarm is None:
            assert bundle.due_s == inf, f"{bundle.key}: nobody waits for its end"
            continue
        assert alarm.handle is not None and alarm.handle.is_pending, f"{bundle.key}: its alarm rang"
        assert alarm.handle.due_s <= bundle.due_s, f"{bundle.key}: its alarm is late"
        assert alarm.members == members[id(alarm)], f"{bundle.key}: its alarm waits for others"
