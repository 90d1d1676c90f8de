"""The load test's own options on Locust's command line, and what they mean."""

from argparse import ArgumentParser, Namespace
from pathlib import Path
from random import Random
from typing import Any

from .asks import Api
from .prompts import Texts
from .sessions import SessionShape
from .trace import TraceSettings

_SHAPE = SessionShape()
_INTEGERS = ("system_prompts", "system_tokens", "turns", "turn_tokens", "output_tokens")


def add_options(parser: ArgumentParser | Any) -> None:
    """Tell Locust's parser of them; each is also an environment variable, as HOMING_MODEL."""
    add = parser.add_argument
    add("--homing-api", default="openai", choices=["openai", "grpc"], env_var="HOMING_API", help="what --host speaks")
    add("--homing-model", default="echo", env_var="HOMING_MODEL", help="the model that is asked for")
    add("--homing-seed", type=int, default=0, env_var="HOMING_SEED", help="equal seeds, equal prompts")
    add("--homing-timeout-s", type=float, default=120.0, help="for a piece (openai) or an answer (grpc)")
    add("--homing-chars-per-token", type=float, default=4.0, help="1 for a tokenizer of bytes")
    for name in _INTEGERS:
        add(f"--homing-{name.replace('_', '-')}", type=int, default=getattr(_SHAPE, name), help="of a conversation")
    add("--homing-think-s", type=float, default=_SHAPE.think_s, help="mean time before the next turn")
    add("--homing-trace", default="", env_var="HOMING_TRACE", help="replay this trace in Mooncake's format instead")
    add("--homing-time-scale", type=float, default=1.0, help="2: the trace lasts twice as long")
    add("--homing-length-scale", type=float, default=1.0, help="0.1: a tenth of the trace's tokens")
    add("--homing-grid-s", type=float, default=0.0, help="spread what the trace rounded to this grid")
    add("--homing-requests-max", type=int, default=0, help="of the trace; 0: all")
    add("--homing-in-flight-max", type=int, default=1024, help="of a replay; more of them wait")


def texts_of(options: Namespace) -> Texts:
    """The run's texts."""
    return Texts(options.homing_seed, chars_per_token=options.homing_chars_per_token)


def shape_of(options: Namespace) -> SessionShape:
    """How its conversations look."""
    sizes = {name: getattr(options, f"homing_{name}") for name in _INTEGERS}
    return SessionShape(**sizes, think_s=options.homing_think_s)


def trace_of(options: Namespace) -> TraceSettings:
    """The trace that it replays."""
    return TraceSettings(
        path=Path(options.homing_trace),
        time_scale=options.homing_time_scale,
        length_scale=options.homing_length_scale,
        grid_s=options.homing_grid_s,
        requests_max=options.homing_requests_max or None,
    )


def random_of(options: Namespace, name: str) -> Random:
    """A stream of random numbers of its own for each purpose."""
    return Random(f"{options.homing_seed}/{name}")  # noqa: S311 - a load, no secret


def api_of(options: Namespace, host: str, *, connections_max: int = 1) -> Api:
    """The way to the router. `host` is a URL, or `host:port` for gRPC."""
    if options.homing_api == "grpc":
        from .grpc_api import GrpcApi  # noqa: PLC0415 - importing it changes how gRPC waits

        return GrpcApi(host.removeprefix("http://"), options.homing_model, timeout_s=options.homing_timeout_s)
    from .openai_api import OpenAiApi  # noqa: PLC0415 - the other one needs no HTTP client

    return OpenAiApi(host, options.homing_model, timeout_s=options.homing_timeout_s, connections_max=connections_max)
