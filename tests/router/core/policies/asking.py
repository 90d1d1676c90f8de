"""Little fleets to ask a policy about, in one line each."""

from random import Random

from homing.router.core.commands import Dispatch
from homing.router.core.events import RequestArrived
from homing.router.core.ledger import Charge
from homing.router.core.policies import make_policy
from homing.router.core.types import RequestId, Role, WorkerId

from ..fleets import chain, request, scheduler, worker

KEYS = chain(("doc", 20))


def fleet(*names, policy=None, **facts):
    return scheduler(*(worker(name, **facts) for name in names), policy=policy)


def apart(prefill="pq", decode="de"):
    """A disaggregated fleet."""
    return scheduler(
        *(worker(name, role=Role.PREFILL) for name in prefill), *(worker(name, role=Role.DECODE) for name in decode)
    )


def choose(name, made, asked=None, seed=0, policy=None):
    asked = asked or request("r", KEYS)
    return (policy or make_policy(name)).choose(made.question(asked), Random(seed))


def chosen(name, made, asked=None, **how):
    (plan,) = choose(name, made, asked, **how)
    return plan.decode


def state(made, name):
    return made.fleet.get(WorkerId(name))


def occupy(made, name, count):
    """So many requests of this router run there and compute nothing."""
    for number in range(count):
        made.fleet.charge(RequestId(f"{name}{number}"), Charge(memory=((WorkerId(name), 1),)), 0.0)


def send(made, name, keys, now=0.0, **facts):
    """A request arrives; the plan by which it was sent, or None when it waits."""
    commands = made.handle(RequestArrived(request=request(name, keys, **facts)), now)
    plans = [command.decision.plan for command in commands if isinstance(command, Dispatch)]
    return plans[0] if plans else None
