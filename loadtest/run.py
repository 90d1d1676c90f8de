"""Bring a router and its workers up on this machine and load them: `python -m homing.loadtest.run --seconds 20`.

Options that it does not know go to Locust. It ends with an error when any request failed, or none was answered.
"""

import argparse
import contextlib
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from .processes import Process, StartError, echo_command, router_command, started

LOCUSTFILE = Path(__file__).with_name("locustfile.py")
STOP_S = 20
"""How long requests in flight may take to end when the time is over."""
NATIVE = """\
router: {listen: "127.0.0.1:0", http: "127.0.0.1:0"}
models: [{name: echo, tokenizer: tiny}]
"""
"""The tiny model and the echo workers read bytes alike."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; the exit code of Locust."""
    options, further = _parser().parse_known_args(arguments)
    try:
        with contextlib.ExitStack() as stack:
            if options.url:
                host, model = options.url, options.model
            elif options.api == "grpc":
                host, model = native(stack, options.workers), "echo"
            else:
                host, model = engines(stack, options.workers, direct=options.direct), "echo"
            return subprocess.call(_locust(options, host, model, further))  # noqa: S603 - our own command
    except StartError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1


def engines(stack: contextlib.ExitStack, count: int, *, direct: bool) -> str:
    """Echo workers behind a router's door; its URL. `direct`: that of the first worker, without a router."""
    workers = [stack.enter_context(started(echo_command("--kv-events"))) for _ in range(count)]
    urls = [worker.http_url() for worker in workers]
    return urls[0] if direct else stack.enter_context(started(router_command(urls))).http_url()


def native(stack: contextlib.ExitStack, count: int) -> str:
    """A router and echo workers of Homing's own kind that join it; its gRPC address."""
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    config = folder / "router.yaml"
    config.write_text(NATIVE)
    homing = str(Path(sys.executable).parent / "homing")
    router = stack.enter_context(started([homing, "serve", "--config", str(config)]))
    address = f"127.0.0.1:{router.other_port('/health')}"
    for number in range(count):
        stack.enter_context(started(echo_command("--router", address, "--id", f"worker-{number}")))
    _wait_for_workers(router)
    return address


def _wait_for_workers(router: Process) -> None:
    """A router is ready when a worker has joined."""
    router.http_url("/ready", "")


def _locust(options: argparse.Namespace, host: str, model: str, further: Sequence[str]) -> list[str]:
    command = [sys.executable, "-m", "locust", "--locustfile", str(LOCUSTFILE), "--host", host, "--headless"]
    command += ["--users", str(options.users), "--spawn-rate", str(options.users)]
    command += ["--run-time", f"{options.seconds}s", "--stop-timeout", str(STOP_S), "--only-summary"]
    command += ["--homing-api", options.api, "--homing-model", model]
    if model == "echo":
        # Its tokens are bytes.
        command += ["--homing-chars-per-token", "1"]
    if options.report is not None:
        options.report.mkdir(parents=True, exist_ok=True)
        command += ["--csv", str(options.report / "load"), "--html", str(options.report / "load.html")]
    return command + list(further)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="loadtest", description="Load a router; other options go to Locust.")
    add = parser.add_argument
    add("--url", help="a router that runs already; host:port for gRPC")
    add("--api", default="openai", choices=["openai", "grpc"])
    add("--model", default="echo", help="what to ask for behind --url")
    add("--workers", type=int, default=3)
    add("--direct", action="store_true", help="ask a worker, without a router: what the load itself costs")
    add("--users", type=int, default=16)
    add("--seconds", type=int, default=15)
    add("--report", type=Path, help="a folder for Locust's CSV files and its page")
    return parser


if __name__ == "__main__":
    sys.exit(main())
