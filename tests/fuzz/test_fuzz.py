"""Three seconds of what `make fuzz` does for a minute: a method that fails at odd messages shows at once."""

import asyncio

import pytest

from .fuzz_grpc import fuzz, methods


@pytest.mark.timeout(90)
def test_odd_messages_break_nothing() -> None:
    found = asyncio.run(fuzz(3.0, seed=1))
    assert not found.failures, "\n".join(found.failures[:10])
    assert set(found.calls) == {method.full_name for method in methods()}, "every method was called"
    assert found.codes["OK"] > 0, "some mutated messages are still good"
