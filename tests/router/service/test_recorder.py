import asyncio
import logging
from pathlib import Path
from random import Random

import msgspec
import pytest

from homing.router.core.errors import ConfigError
from homing.router.core.events import RequestArrived, TimerFired, WorkerJoined, WorkerLost
from homing.router.core.journal import Header
from homing.router.core.types import ModelName, ModelProfile, Request, RequestId, Role, Site, Worker, WorkerId
from homing.router.service.config import parse_config
from homing.router.service.driver import Driver
from homing.router.service.process import RouterProcess
from homing.router.service.recorder import Recorder
from homing.sim.experiments.replay import replay

MODEL = ModelProfile(name=ModelName("m"), block_tokens=16, bytes_per_token=1000)


def made(*models):
    header = Header(
        models=models, links=(), site=Site("home"), policy="power-of-two", random_state=Random(3).getstate()
    )
    return header, header.scheduler(Random(3))


def joined(name):
    return WorkerJoined(
        worker=Worker(
            id=WorkerId(name), model=MODEL.name, role=Role.BOTH, site=Site("home"), block_tokens=16, kv_blocks_max=900
        )
    )


def arrived(number):
    return RequestArrived(
        request=Request(
            id=RequestId(f"r{number}"),
            model=MODEL.name,
            block_keys=(number, (1 << 63) + number),
            prompt_tokens=40,
            max_output_tokens=5,
            arrived_s=0.1,
        )
    )


def play(driver, requests=20):
    """A driver on the real clock, workers that bring their model, requests, a loss."""
    for name in ("w1", "w2", "w3"):
        driver.scheduler.models.setdefault(MODEL.name, MODEL)
        driver.feed(joined(name))
    for number in range(requests):
        driver.feed(arrived(number))
        driver.feed(TimerFired())
    driver.feed(WorkerLost(worker_id=WorkerId("w1"), reason="gone"))


def recorded(path, *models, **more):
    async def run():
        header, scheduler = made(*models)
        driver = Driver(scheduler)
        recorder = Recorder(path, header, scheduler, **more)
        driver.observe(recorder)
        play(driver)
        driver.stop()
        recorder.close()
        recorder.close()

    asyncio.run(run())
    return path


@pytest.mark.parametrize("models", [(), (MODEL,)], ids=["told by a worker", "configured"])
def test_what_the_driver_fed_replays_to_the_same_commands(tmp_path, models):
    found = replay(recorded(tmp_path / "j.jsonl", *models))
    assert (found.events, found.difference) == (3 + 40 + 1, None)


def test_a_model_that_a_worker_told_of_is_recorded_once_before_the_worker(tmp_path):
    lines = [msgspec.json.decode(line) for line in recorded(tmp_path / "j.jsonl").read_bytes().splitlines()]
    assert [next(iter(line)) for line in lines[:3]] == ["header", "model", "at"]
    assert sum("model" in line for line in lines) == 1


def test_a_full_journal_stops_says_so_and_replays(tmp_path, caplog):
    whole = recorded(tmp_path / "whole.jsonl").read_bytes()
    with caplog.at_level(logging.WARNING):
        path = recorded(tmp_path / "j.jsonl", bytes_max=len(whole) * 3 // 4)
    data = path.read_bytes()
    assert len(data) <= len(whole) * 3 // 4 + 40
    assert all(msgspec.json.decode(line) for line in data.splitlines()), "no line is torn"
    assert data.endswith(b'}\n{"stopped":"it is full"}\n')
    assert [record.message for record in caplog.records] == [f"the journal {path} is full: nothing more is recorded"]
    found = replay(path)
    assert found.stopped == "it is full" and found.difference is None and 0 < found.events < 44


def test_a_disk_that_fails_does_not_stop_the_router(caplog):
    header, scheduler = made(MODEL)
    with caplog.at_level(logging.WARNING):
        recorder = Recorder(Path("/dev/full"), header, scheduler)
        for number in range(3):
            recorder(TimerFired(), [], float(number), 0.0)
        recorder.close()
    assert "cannot be written: [Errno 28]" in caplog.text


def test_a_journal_that_cannot_be_made_is_the_operators(tmp_path):
    header, scheduler = made(MODEL)
    with pytest.raises(ConfigError, match=r"router\.journal: cannot write .*: No such file or directory"):
        Recorder(tmp_path / "none" / "j.jsonl", header, scheduler)


def test_a_router_process_records_what_its_file_says(tmp_path):
    path = tmp_path / "j.jsonl"
    config = parse_config(
        f"""
router: {{journal: {path}, queue_max: 7}}
links: [{{source: a, target: b, bytes_per_s: 1000, rtt_s: 0.1}}]
models: [{{name: m, bytes_per_token: 1000}}]
policy: {{name: gorgo, seed: 5, options: {{rtt_weight: 0.5}}, dollars_per_s: 0.01}}
"""
    )

    async def run():
        process = RouterProcess(config, lambda model: None)
        play(process.driver)
        process.driver.stop()
        await process.close()

    asyncio.run(run())
    header = msgspec.json.decode(path.read_bytes().splitlines()[0])["header"]
    assert (header["policy"], header["options"], header["dollars_per_s"]) == ("gorgo", {"rtt_weight": 0.5}, 0.01)
    assert header["limits"] == {"queue_max": 7} and len(header["links"]) == 2
    assert replay(path).difference is None
