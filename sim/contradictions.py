"""What is well formed in a scenario and still cannot be meant: each by its path, the rule and what was found."""

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

from homing.router.core.errors import ConfigError

if TYPE_CHECKING:
    from .scenario import FaultSection, Scenario

FAULT_KEYS = {
    "crash": ("worker", "site"),
    "slow": ("worker", "site", "factor"),
    "link": ("source", "target", "factor"),
    "site": ("site",),
    "router": (),
}
"""What each kind of fault takes, beside when and for how long."""


def contradictions(scenario: "Scenario") -> Iterator[str]:
    """All that can be found, the most basic first; what comes later may rely on what came before."""
    yield from _lists(scenario)
    yield from _models(scenario)
    yield from _workers(scenario)
    yield from _links(scenario)
    yield from _router(scenario)
    for number, fault in enumerate(scenario.faults):
        yield from _fault(f"faults[{number}]", fault, scenario)
    if scenario.duration_s is not None and scenario.warmup_s >= scenario.duration_s:
        yield f"warmup_s: must end before duration_s, which is {scenario.duration_s}; found {scenario.warmup_s}"


def _lists(scenario: "Scenario") -> Iterator[str]:
    lists = {
        "models": [model.name for model in scenario.models],
        "sites": [site.name for site in scenario.sites],
        "workers": [worker.name for worker in scenario.workers],
    }
    for path, names in lists.items():
        if not names:
            yield f"{path}: at least one is needed"
        for name, count in Counter(names).items():
            if count > 1:
                yield f"{path}: {name!r} is listed {count} times; each is listed once"


def _models(scenario: "Scenario") -> Iterator[str]:
    for number, model in enumerate(scenario.models):
        serving = [worker for worker in scenario.workers if worker.model == model.name]
        if not any(worker.role != "prefill" for worker in serving):
            found = f"{len(serving)} groups, none of which decodes" if serving else "none"
            yield f"models[{number}]: some workers of a model decode, with the role both or decode; found {found}"


def _workers(scenario: "Scenario") -> Iterator[str]:
    sites, models = _sites(scenario), [model.name for model in scenario.models]
    block_tokens = scenario.workload.block_tokens
    for number, worker in enumerate(scenario.workers):
        if worker.site not in sites:
            yield f"workers[{number}].site: no site is named {worker.site!r}; known are {_list(sites)}"
        if worker.model not in models:
            yield f"workers[{number}].model: no model is named {worker.model!r}; known are {_list(models)}"
        if worker.kv_tokens < block_tokens:
            yield (
                f"workers[{number}].kv_tokens: at least one block of workload.block_tokens {block_tokens} must fit;"
                f" found {worker.kv_tokens}"
            )


def _links(scenario: "Scenario") -> Iterator[str]:
    sites, joined = _sites(scenario), dict[tuple[str, str], int]()
    for number, link in enumerate(scenario.links):
        for key in ("source", "target"):
            if getattr(link, key) not in sites:
                yield f"links[{number}].{key}: no site is named {getattr(link, key)!r}; known are {_list(sites)}"
        try:
            pairs = [(spec.source, spec.target) for spec in link.specs()]
        except ConfigError as error:
            yield f"links[{number}]: {error}"
            continue
        for pair in pairs:
            if pair in joined:
                yield (
                    f"links[{number}]: {pair[0]} to {pair[1]} is links[{joined[pair]}] already; list a direction once,"
                    " both_ways lists two"
                )
            joined[pair] = number
    for source in sites:
        for target in sites:
            if source != target and (source, target) not in joined:
                yield f"links: none leads from {source} to {target}; sites of one fleet reach each other"


def _router(scenario: "Scenario") -> Iterator[str]:
    router, sites = scenario.router, _sites(scenario)
    if router.site is not None and router.site not in sites:
        yield f"router.site: no site is named {router.site!r}; known are {_list(sites)}"
    if router.report_lag_s >= router.lost_after_s:
        yield (
            f"router.report_lag_s: must be less than lost_after_s, which is {router.lost_after_s}, or all workers count"
            f" as lost; found {router.report_lag_s}"
        )


def _fault(path: str, fault: "FaultSection", scenario: "Scenario") -> Iterator[str]:
    sites, taken = _sites(scenario), FAULT_KEYS[fault.kind]
    for key in ("worker", "site", "source", "target", "factor"):
        if getattr(fault, key) and key not in taken:
            yield f"{path}.{key}: a {fault.kind} fault takes {_list(taken) or 'none of these'}; leave it out"
    if fault.kind == "router" and fault.for_s is not None:
        yield f"{path}.for_s: a router begins anew at once; leave it out"
    if fault.kind == "link":
        yield from _link_fault(path, fault, scenario)
    if fault.kind == "site" and fault.site is None:
        yield f"{path}.site: a site fault names a site; known are {_list(sites)}"
    if fault.site is not None and not any(worker.site == fault.site for worker in scenario.workers):
        yield f"{path}.site: no worker stands in {fault.site!r}; known are {_list({w.site for w in scenario.workers})}"
    if fault.kind == "slow" and not fault.factor > 1:
        yield f"{path}.factor: a slow worker takes more than 1 times as long; found {fault.factor}"
    if fault.worker is not None:
        yield from _worker_of_a_fault(path, fault, scenario)


def _link_fault(path: str, fault: "FaultSection", scenario: "Scenario") -> Iterator[str]:
    listed = {(spec.source, spec.target) for link in scenario.links for spec in link.specs()}
    if (fault.source, fault.target) not in listed:
        yield f"{path}: a link fault names the source and target of a link; found {fault.source!r} and {fault.target!r}"


def _worker_of_a_fault(path: str, fault: "FaultSection", scenario: "Scenario") -> Iterator[str]:
    if fault.site is not None:
        yield f"{path}.site: worker {fault.worker!r} is named already; leave one of them out"
    named = {f"{group.name}-{number}" for group in scenario.workers for number in range(1, group.count + 1)}
    if fault.worker not in named:
        first, last = min(named), max(named)
        yield f"{path}.worker: none is named {fault.worker!r}; they are named after their group, from {first} to {last}"


def _sites(scenario: "Scenario") -> list[str]:
    return sorted(site.name for site in scenario.sites)


def _list(names: "list[str] | set[str] | tuple[str, ...]") -> str:
    return ", ".join(sorted(names))
