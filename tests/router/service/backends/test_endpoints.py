"""Names and addresses of engines: what a name stands for, whoever comes and goes."""

from hypothesis import given
from hypothesis import strategies as st

from homing.router.core.types import ModelName, Site, WorkerId
from homing.router.service.backends.endpoint import Alias, Endpoint, Endpoints

BASE = ModelName("base")


def endpoint(backend):
    return Endpoint(
        worker=WorkerId(f"{backend}/0"),
        backend=backend,
        url=f"http://{backend}",
        site=Site("home"),
        model=BASE,
        adapter=None,
        upstream=None,
    )


STEPS = st.lists(st.tuples(st.sampled_from("abc"), st.sets(st.sampled_from(["base", "x", "y"]))), max_size=12)


@given(steps=STEPS)
def test_a_name_stands_for_what_those_who_are_there_serve(steps):
    endpoints, there, ever = Endpoints(), {}, set()
    for backend, names in steps:
        if backend in there:
            endpoints.remove(WorkerId(f"{backend}/0"))
            endpoints.name(backend, {})
            del there[backend]
        if names:
            endpoints.add(endpoint(backend))
            endpoints.name(backend, {name: Alias(BASE, "" if name == "base" else name) for name in names})
            there[backend] = names
            ever |= names
        assert endpoints.names() == sorted(set().union(*there.values()))
        for name in ("base", "x", "y"):
            having = frozenset(WorkerId(f"{backend}/0") for backend, names in there.items() if name in names)
            alias = endpoints.alias(name)
            assert endpoints.knew(name) == (name in ever)
            if not having:
                assert alias is None
            elif name == "base":
                assert alias == Alias(BASE)
            else:
                assert alias == Alias(BASE, name, having)
        assert {each.backend for each in endpoints} == set(there)
        assert set(endpoints.peers()) == {WorkerId(f"{backend}/0") for backend in there}
