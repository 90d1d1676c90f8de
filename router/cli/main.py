"""The command `homing`: each command parses, builds and runs; the work is done elsewhere."""

from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from homing.router.core.errors import ConfigError

from .sim.app import calibrate, sim

app = typer.Typer(
    name="homing",
    help="Route LLM requests to where their KV cache is, over clusters and datacentres.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(sim, name="sim")
app.add_typer(calibrate, name="calibrate")
errors = Console(stderr=True)

ConfigFile = Annotated[Path | None, typer.Option("--config", "-c", help="YAML file; see examples/.", dir_okay=False)]
Router = Annotated[str, typer.Option("--router", "-r", help="gRPC address of the router.", envvar="HOMING_ROUTER")]
ROUTER = "127.0.0.1:7070"


def main() -> None:
    """Run the command line; expected errors are one line on stderr and exit code 2."""
    try:
        app()
    except ConfigError as error:
        errors.print(f"[red]error:[/red] {escape(str(error))}", highlight=False, soft_wrap=True)
        raise SystemExit(2) from None


def _version(wanted: bool) -> None:
    if wanted:
        Console().print(f"homing {version('homing')}", highlight=False)
        raise typer.Exit


@app.callback()
def _homing(
    _: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


@app.command()
def serve(
    config: ConfigFile = None,
    listen: Annotated[str | None, typer.Option(help="gRPC address to listen on.")] = None,
    http: Annotated[
        str | None, typer.Option(help="The operator's address: /metrics, /health, /ready, /fleet, /workers.")
    ] = None,
    door: Annotated[
        str | None, typer.Option(help="Address of the OpenAI-compatible door; with --backend 127.0.0.1:8080.")
    ] = None,
    backend: Annotated[
        list[str] | None, typer.Option("--backend", "-b", help="URL of an engine to stand in front of; repeatable.")
    ] = None,
    ext_proc: Annotated[
        str | None, typer.Option(help="Address for an Envoy that asks for endpoints (ext_proc).")
    ] = None,
    site: Annotated[str | None, typer.Option(help="The site in which this router stands.")] = None,
    journal: Annotated[
        str | None, typer.Option(help="Record what the core is told and answers, for `homing sim replay`.")
    ] = None,
    log: Annotated[str | None, typer.Option(help="console or json.")] = None,
) -> None:
    """Run a router."""
    from .serve import run_router

    given = {
        "listen": listen,
        "http": http,
        "door": door,
        "ext_proc": ext_proc,
        "site": site,
        "journal": journal,
        "log": log,
    }
    run_router(config, given, backend or [])


@app.command()
def worker(
    config: ConfigFile = None,
    id: Annotated[str, typer.Option("--id", help="Name of this worker; with --config, its entry.")] = "worker-1",  # noqa: A002
    model: Annotated[str | None, typer.Option(help="Name under which requests ask for the model.")] = None,
    source: Annotated[
        str | None, typer.Option(help="Hugging Face directory, .gguf file, smollm2, tiny or tiny:SEED.")
    ] = None,
    site: Annotated[str | None, typer.Option(help="The site in which this worker stands.")] = None,
    role: Annotated[str | None, typer.Option(help="prefill, decode or both.")] = None,
    listen: Annotated[str | None, typer.Option(help="gRPC address to listen on; port 0 chooses one.")] = None,
    router: Annotated[list[str] | None, typer.Option("--router", "-r", help="Router to join; repeatable.")] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads for the model.")] = None,
    kv_blocks: Annotated[int | None, typer.Option(help="KV cache size in blocks.")] = None,
    log: Annotated[str, typer.Option(help="console or json.")] = "console",
) -> None:
    """Run a worker: a model, its KV cache, and the moves of blocks to and from others."""
    from .worker import run_worker

    given = {
        "model": model,
        "source": source,
        "site": site,
        "role": role,
        "listen": listen,
        "routers": router,
        "threads": threads,
        "kv_blocks_max": kv_blocks,
    }
    run_worker(config, id, given, log)


@app.command()
def send(
    prompt: Annotated[str, typer.Argument(help="The prompt; - reads it from standard input.")],
    model: Annotated[str, typer.Option("--model", "-m", help="The model to ask.")],
    router: Router = ROUTER,
    chat: Annotated[bool, typer.Option(help="Send as a user's turn of a chat, not as bare text.")] = True,
    max_tokens: Annotated[int, typer.Option(min=1, help="The most tokens to generate.")] = 64,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 is greedy.")] = 0.0,
    seed: Annotated[int, typer.Option(min=0, help="Seed for temperatures above 0.")] = 0,
    session: Annotated[str, typer.Option(help="Session of the request.")] = "",
    why: Annotated[bool, typer.Option(help="Tell the decision and the times, on standard error.")] = True,
) -> None:
    """Send a prompt through a router and stream the answer."""
    from .client import SendOptions, run_send

    options = SendOptions(
        model=model,
        chat=chat,
        max_output_tokens=max_tokens,
        temperature=temperature,
        seed=seed,
        session=session,
        why=why,
    )
    run_send(router, prompt, options)


@app.command()
def explain(
    request_id: Annotated[str, typer.Argument(help="The request's id, as `send` prints it.")],
    router: Router = ROUTER,
) -> None:
    """Tell why a recent request went where it went, term by term."""
    from .client import run_explain

    run_explain(router, request_id)


@app.command()
def fleet(router: Router = ROUTER) -> None:
    """Show workers and links, and what the router believes of them."""
    from .client import run_fleet

    run_fleet(router)


@app.command("envoy-config")
def envoy_config(
    ext_proc: Annotated[str | None, typer.Option(help="HOST:PORT of the router's ext_proc (serve --ext-proc).")] = None,
    endpoint: Annotated[
        list[str] | None, typer.Option("--endpoint", "-e", help="IP:PORT of an engine; repeatable.")
    ] = None,
    endpoints_file: Annotated[
        str | None, typer.Option(help="A file that holds the engines, for those that come and go; see --for-file.")
    ] = None,
    listen: Annotated[str, typer.Option(help="Where Envoy takes requests.")] = "127.0.0.1:8080",
    admin: Annotated[str, typer.Option(help="Where Envoy's admin interface is.")] = "127.0.0.1:9901",
    body_mode: Annotated[str, typer.Option(help="How request bodies come to the router: streamed or buffered.")] = (
        "streamed"
    ),
    for_file: Annotated[bool, typer.Option("--for-file", help="Print what an endpoints file holds instead.")] = False,
    format: Annotated[str, typer.Option("--format", help="yaml or json.")] = "yaml",  # noqa: A002
) -> None:
    """Print a bootstrap for an Envoy that asks a router where every request goes."""
    from .envoy import GatewayFlags, print_gateway

    print_gateway(
        GatewayFlags(
            ext_proc=ext_proc,
            endpoints=endpoint or [],
            endpoints_file=endpoints_file,
            listen=listen,
            admin=admin,
            body_mode=body_mode,
            for_file=for_file,
            format=format,
        )
    )


@app.command()
def demo(
    model: Annotated[str, typer.Option(help="smollm2, tiny, a Hugging Face directory or a .gguf file.")] = "smollm2",
    out: Annotated[Path | None, typer.Option(help="Write what happened as JSON.", dir_okay=False)] = None,
    verbose: Annotated[bool, typer.Option(help="Show the logs of all processes.")] = False,
) -> None:
    """Run a small global fleet on this machine: three sites, real workers, real KV moved over an emulated WAN."""
    from .demo.run import run_demo

    run_demo(model, out, verbose=verbose)


if __name__ == "__main__":
    main()
