"""What the core was told and what it answered, as plain data: enough to build it anew and to feed it the same again.

    {"header": {...}}                                        how the scheduler was made
    {"model": {...}}                                         a model that a worker told of, before it joined
    {"at": 1.5, "event": "RequestArrived", "of": {...}, "out": ["dispatch ..."], "digest": "..."}
    {"restart": true}                                        a new scheduler, which knows nothing, takes over
    {"stopped": "..."}                                       nothing was recorded from here on

Rule 1: this is text in memory; who writes and reads files is elsewhere.
Rule 2: the codec is generic over the frozen dataclasses of this package. Fields at their default are left out; numbers
come back as they were, so that a digest over commands is one over their bits (I5).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from enum import Enum
from functools import cache
from math import isfinite
from random import Random
from types import NoneType, UnionType
from typing import Any, NewType, Union, get_args, get_origin, get_type_hints

from xxhash import xxh3_64_hexdigest

from .assembly import make_scheduler
from .commands import Abandon, Cancel, ChangeRole, Command, Dispatch, Forget, Reject, Resync
from .events import Event
from .limits import Limits
from .scheduler import Scheduler
from .types import Link, ModelProfile, Site

FORMAT = 1
Plain = dict[str, Any]
Decode = Callable[[Any, str], Any]
EVENTS: Mapping[str, type[Any]] = {kind.__name__: kind for kind in get_args(Event)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """How a scheduler was made. `random_state` is that of its dice (`Random.getstate`), before the first throw."""

    format: int = FORMAT
    models: tuple[ModelProfile, ...]
    links: tuple[Link, ...]
    site: Site
    policy: str
    options: dict[str, Any] = field(default_factory=dict)
    limits: Limits = field(default_factory=Limits)
    dollars_per_s: float = 0.0
    random_state: tuple[Any, ...]

    def scheduler(self, random: Random) -> Scheduler:
        """A new one, made the same way; ConfigError for a policy that this version does not have."""
        return make_scheduler(
            models=self.models,
            links=self.links,
            site=self.site,
            policy=self.policy,
            options=self.options,
            random=random,
            limits=self.limits,
            dollars_per_s=self.dollars_per_s,
        )

    def restore(self, random: Random) -> None:
        """Set dice as they were."""
        version, numbers, spare = self.random_state
        random.setstate((version, tuple(numbers), spare))


def entry(event: Event, commands: Sequence[Command], now: float) -> Plain:
    """An event, its time, and what came of it."""
    line: Plain = {"at": now, "event": type(event).__name__, "of": to_plain(event)}
    if commands:
        line |= {"out": [told(command) for command in commands], "digest": digest(commands)}
    return line


def event_of(line: Plain) -> Event:
    """The event of an entry; ValueError that names the field for what is none."""
    kind = EVENTS.get(line.get("event", ""))
    if kind is None:
        raise ValueError(f"event: expected one of {', '.join(EVENTS)}, got {line.get('event')!r}")
    found: Event = from_plain(line.get("of"), kind)
    return found


def told(command: Command) -> str:
    """A command in a few words."""
    match command:
        case Dispatch(decision=decision):
            plan = decision.plan
            return f"dispatch {decision.request.id}: {plan.kind.value} {' -> '.join(plan.workers)}"
        case Reject(request_id=request, reason=reason):
            return f"reject {request}: {reason.value}"
        case Cancel(request_id=request):
            return f"cancel {request}"
        case Abandon(request_id=request, worker_id=worker):
            return f"abandon {request}: {worker}"
        case Forget(worker_id=worker):
            return f"forget {worker}"
        case Resync(worker_id=worker):
            return f"resync {worker}"
        case ChangeRole(worker_id=worker, role=role):
            return f"change role of {worker}: {role.value}"


def digest(commands: Sequence[Command]) -> str:
    """Equal for commands that are equal to the last bit of their prices; 16 hexadecimal digits."""
    return xxh3_64_hexdigest("\n".join(repr(_essence(command)) for command in commands).encode())


def _essence(command: Command) -> object:
    """A decision without its request, which is long, and stands in the journal where it arrived."""
    if not isinstance(command, Dispatch):
        return command
    made = command.decision
    named = (made.request.id, made.request.prompt_tokens, made.policy, made.decided_s, made.attempt, made.plans_priced)
    return named, made.plan, made.runners_up


def to_plain(value: Any) -> Any:
    """A dataclass as a dictionary, an enum as its value, a tuple as a list, a set as a sorted one; the rest as it is.

    >>> from .events import WorkerLost
    >>> to_plain(WorkerLost(worker_id="w", reason="gone"))
    {'worker_id': 'w', 'reason': 'gone'}
    """
    if is_dataclass(value):
        return {
            each.name: to_plain(held)
            for each in fields(value)
            if not _is_same(held := getattr(value, each.name), each.default)
        }
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, tuple | list):
        return [to_plain(each) for each in value]
    if isinstance(value, frozenset):
        return sorted(to_plain(each) for each in value)
    return str(value) if isinstance(value, float) and not isfinite(value) else value


def _is_same(held: Any, default: Any) -> bool:
    """Whether a field may be left out; 0 and 0.0 are equal and not the same."""
    return default is not MISSING and type(held) is type(default) and bool(held == default)


def from_plain(plain: Any, kind: Any) -> Any:
    """What `to_plain` made of a value of a type; ValueError that names the field for what cannot be one."""
    return _decoder(kind)(plain, "")


@cache
def _decoder(kind: Any) -> Decode:
    if isinstance(kind, NewType):
        return _decoder(kind.__supertype__)
    origin, inside = get_origin(kind), get_args(kind)
    if origin in {Union, UnionType}:
        (inner,) = (each for each in inside if each is not NoneType)
        return _optional(_decoder(inner))
    if origin is tuple:
        return _sequence(_decoder(inside[0]))
    if origin is frozenset:
        members = _sequence(_decoder(inside[0]))
        return lambda plain, path: frozenset(members(plain, path))
    if origin is dict or kind is Any:
        return lambda plain, path: plain
    if is_dataclass(kind):
        return _record(kind)
    if issubclass(kind, Enum):
        return _of_enum(kind)
    return _of_type(kind)


def _optional(decode: Decode) -> Decode:
    return lambda plain, path: None if plain is None else decode(plain, path)


def _sequence(decode: Decode) -> Decode:
    def decoded(plain: Any, path: str) -> Any:
        if not isinstance(plain, list | tuple):
            raise ValueError(f"{path}: expected a list, got {plain!r:.60}")  # noqa: TRY004 - the value of a file
        return tuple(decode(each, f"{path}[{place}]") for place, each in enumerate(plain))

    return decoded


def _record(kind: Any) -> Decode:
    hints = get_type_hints(kind)
    decoders = {each.name: _decoder(hints[each.name]) for each in fields(kind)}

    def decoded(plain: Any, path: str) -> Any:
        if not isinstance(plain, dict) or plain.keys() - decoders.keys():
            raise ValueError(f"{path or kind.__name__}: expected fields of {kind.__name__}, got {plain!r:.60}")
        try:
            return kind(**{name: decoders[name](held, f"{path}.{name}".lstrip(".")) for name, held in plain.items()})
        except (TypeError, AssertionError) as error:
            raise ValueError(f"{path or kind.__name__}: is no {kind.__name__}: {error}") from error

    return decoded


def _of_enum(kind: type[Enum]) -> Decode:
    def decoded(plain: Any, path: str) -> Any:
        try:
            return kind(plain)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    return decoded


def _of_type(kind: type[Any]) -> Decode:
    allowed: tuple[type[Any], ...] = (int, float) if kind is float else (kind,)

    def decoded(plain: Any, path: str) -> Any:
        if kind is float and plain in {"inf", "-inf", "nan"}:
            return float(plain)
        if not isinstance(plain, allowed) or (isinstance(plain, bool) and kind is not bool):
            raise ValueError(f"{path}: expected {kind.__name__}, got {plain!r:.60}")
        return plain

    return decoded
