"""What Locust runs: `locust -f loadtest/locustfile.py --host http://127.0.0.1:8000 --headless -u 32 -r 8 -t 60s`.

Users hold conversations; with `--homing-trace` one user replays a trace instead, each request at its own time whatever
became of the others. All of a run is in one process. Equal seeds ask the same.
"""

import itertools
import sys
import time
from typing import Any

import gevent
from gevent.pool import Pool
from locust import User, events, task
from locust.exception import StopUser

from homing.loadtest.asks import Ask
from homing.loadtest.options import add_options, api_of, random_of, shape_of, texts_of, trace_of
from homing.loadtest.sessions import Session
from homing.loadtest.stats import Summary, timed
from homing.loadtest.trace import Timed, read_trace

LAG = "LAG"
"""How much later than it was due a request of a trace was sent: what the load itself could not keep up with."""
KEEP_UP_S = 30.0
"""How long a replay may wait at its end for the last answers."""


def _init(environment: Any, **_: Any) -> None:
    options = environment.parsed_options
    environment.user_classes[:] = [ReplayUser if options.homing_trace else SessionUser]
    environment.texts, environment.numbers = texts_of(options), itertools.count()
    summary = Summary()
    environment.events.request.add_listener(summary.heard)
    environment.events.quitting.add_listener(lambda **_: sys.stdout.write(summary.table() + "\n"))


events.init_command_line_parser.add_listener(add_options)  # type: ignore[no-untyped-call]
events.init.add_listener(_init)  # type: ignore[no-untyped-call]


class SessionUser(User):
    """Holds one conversation after another, and thinks between its turns."""

    def on_start(self) -> None:
        """A user is one connection."""
        self._options = self.environment.parsed_options
        self._shape = shape_of(self._options)
        self._api = api_of(self._options, self.host or "")
        self._begin()

    def on_stop(self) -> None:
        """Close it."""
        self._api.close()

    def wait_time(self) -> float:
        """Think: exponentially distributed."""
        return self._random.expovariate(1 / self._shape.think_s) if self._shape.think_s else 0.0

    @task
    def turn(self) -> None:
        """Ask the next question; a conversation that broke or is over is followed by another."""
        ask = self._session.next_ask()
        answer = timed(self._api, ask, self.environment.events.request.fire, time.perf_counter)
        if answer is not None:
            self._session.answered(ask, answer)
        if answer is None or self._session.is_over:
            self._begin()

    def _begin(self) -> None:
        number = next(self.environment.numbers)
        self._random = random_of(self._options, f"think-{number}")
        self._session = Session(self.environment.texts, self._shape, number)


class ReplayUser(User):
    """Replays a trace, then ends the run."""

    fixed_count = 1

    def on_start(self) -> None:
        """One pool of connections for all requests."""
        options = self.environment.parsed_options
        self._pool = Pool(options.homing_in_flight_max)
        self._api = api_of(options, self.host or "", connections_max=options.homing_in_flight_max)

    def on_stop(self) -> None:
        """Give up what is still in flight."""
        self._pool.kill()
        self._api.close()

    @task
    def replay(self) -> None:
        """Send each request when it is due."""
        options, began_s = self.environment.parsed_options, time.perf_counter()
        for timed_ask in read_trace(trace_of(options), self.environment.texts, random_of(options, "trace")):
            self._wait_for(timed_ask, began_s)
            self._pool.spawn(self._send, timed_ask.ask)
        self._pool.join(KEEP_UP_S)
        gevent.spawn(self.environment.runner.quit)
        raise StopUser

    def _wait_for(self, timed_ask: Timed, began_s: float) -> None:
        gevent.sleep(max(0.0, began_s + timed_ask.at_s - time.perf_counter()))
        self._pool.wait_available()
        late_s = time.perf_counter() - began_s - timed_ask.at_s
        self.environment.events.request.fire(
            request_type=LAG, name="trace", response_time=late_s * 1000.0, response_length=0, exception=None, context={}
        )

    def _send(self, ask: Ask) -> None:
        timed(self._api, ask, self.environment.events.request.fire, time.perf_counter)
