"""An echo worker as an HTTP server that speaks as vLLM does: OpenAI's API, its own routes, its KV events.

Rule 1: a connection that closes gives its request up, and its blocks are free again.
Rule 2: the first chunk of a stream goes out with the first token, not before: its time is the TTFT.
"""

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator
from typing import Any

from aiohttp import web

from homing.workers.model.tokenizer import StreamDecoder

from .engine import EchoEngine, Job, Token
from .kv_events import EventWriter, KvPublisher
from .prompts import TOKENIZER, Ask, BadRequestError, check_model, read_ask, read_prompt
from .replies import VERSION, Reply, detokenized, metrics_of, models_of, tokenized, usage_of
from .settings import EchoSettings
from .stored import Changes

BODY_BYTES_MAX = 64 * 1024 * 1024
SHUTDOWN_S = 0.2


class EchoServer:
    """Start with `start`, stop with `close`; `url` is where it listens."""

    def __init__(self, settings: EchoSettings) -> None:
        self.settings = settings
        self.engine = EchoEngine(settings)
        self.publisher = None if settings.kv_events is None else KvPublisher(settings.kv_events)
        self.url = ""
        self._writer = EventWriter(settings.block_tokens)
        self._created_s = int(time.time())
        self._runner: web.AppRunner | None = None

    async def start(self) -> None:
        """Listen. Raises OSError for an address that cannot be had; then nothing is left open."""
        try:
            if self.publisher is not None:
                self.publisher.start()
                self.engine.on_changes = self._publish
            self.engine.start()
            self._runner = web.AppRunner(
                self._app(), access_log=None, handler_cancellation=True, shutdown_timeout=SHUTDOWN_S
            )
            await self._runner.setup()
            site = web.TCPSite(self._runner, self.settings.host, self.settings.port)
            await site.start()
        except BaseException:
            await self.close()
            raise
        host, port = self._runner.addresses[0][:2]
        self.url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    async def close(self) -> None:
        """Stop everything. Idempotent."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None
        await self.engine.close()
        if self.publisher is not None:
            await self.publisher.close()

    def _app(self) -> web.Application:
        app = web.Application(client_max_size=BODY_BYTES_MAX, middlewares=[_errors])
        app.add_routes(
            [
                web.post("/v1/chat/completions", self._chat),
                web.post("/v1/completions", self._completion),
                web.post("/tokenize", self._tokenize),
                web.post("/detokenize", self._detokenize),
                web.post("/v1/chat/completions/render", self._render),
                web.post("/v1/completions/render", self._render),
                web.post("/reset_prefix_cache", self._reset),
                web.get("/v1/models", self._models),
                web.get("/health", self._health),
                web.get("/ping", self._health),
                web.get("/version", self._version),
                web.get("/load", self._load),
                web.get("/metrics", self._metrics),
                web.get("/kv_event_sources", self._sources),
            ]
        )
        return app

    def _publish(self, changes: Changes) -> None:
        assert self.publisher is not None
        self.publisher.publish(self._writer.events(changes))

    # -- answers -------------------------------------------------------------------------------------------------

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        return await self._answer(request, chat=True)

    async def _completion(self, request: web.Request) -> web.StreamResponse:
        return await self._answer(request, chat=False)

    async def _answer(self, request: web.Request, *, chat: bool) -> web.StreamResponse:
        ask = read_ask(await _json(request), self.settings, chat=chat)
        named = request.headers.get("x-request-id") or uuid.uuid4().hex
        reply = Reply(
            id=f"{'chatcmpl' if chat else 'cmpl'}-{named}", model=ask.model, created_s=int(time.time()), chat=chat
        )
        job = self._submitted(reply.id, ask)
        try:
            if ask.streams:
                return await self._stream(request, job, ask, reply)
            tokens = [token async for token in self._tokens(job)]
            text = TOKENIZER.decode((token.id for token in tokens), skip_special=True)
            return web.json_response(reply.whole(text, tokens[-1].finish_reason, _usage(job)))
        finally:
            self.engine.cancel(job)

    def _submitted(self, request_id: str, ask: Ask) -> Job:
        try:
            return self.engine.submit(
                # A sender may name two requests alike; the engine must tell them apart.
                f"{request_id}-{uuid.uuid4().hex[:8]}",
                ask.tokens,
                echo=ask.echo,
                max_output_tokens=ask.max_output_tokens,
                repeats=ask.repeats,
                lora=ask.lora,
                salt=ask.salt,
            )
        except ValueError as error:
            raise BadRequestError("prompt", str(error)) from error

    async def _tokens(self, job: Job) -> AsyncIterator[Token]:
        seen, pause_after = 0, self.settings.pause_after_tokens
        while True:
            token = await job.outputs.get()
            yield token
            seen += 1
            if token.finish_reason is not None:
                return
            if seen == pause_after:
                await asyncio.sleep(self.settings.pause_s)

    async def _stream(self, request: web.Request, job: Job, ask: Ask, reply: Reply) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
        decoder, begun, seen = StreamDecoder(TOKENIZER), False, 0
        async for token in self._tokens(job):
            seen += 1
            if not begun:
                begun = True
                await response.prepare(request)
                if reply.chat:
                    await response.write(_event(reply.opening()))
            text = decoder.push([token.id])
            if token.finish_reason is not None:
                text += decoder.finish()
            if text or token.finish_reason is not None:
                chunk = reply.chunk(text, token.finish_reason)
                if ask.usage_all_along:
                    chunk["usage"] = _usage(job, seen)
                await response.write(_event(chunk))
        if ask.with_usage:
            await response.write(_event(reply.last(_usage(job))))
        await response.write(b"data: [DONE]\n\n")
        await response.write_eof()
        return response

    # -- what it says of itself ------------------------------------------------------------------------------------

    async def _tokenize(self, request: web.Request) -> web.Response:
        body = await _json(request)
        check_model(body, self.settings)
        tokens, _ = read_prompt(body, chat="messages" in body)
        return web.json_response(tokenized(list(tokens), self.settings))

    async def _render(self, _: web.Request) -> web.Response:
        message = "Scale-out endpoints are disabled. Restart vllm serve with --enable-scale-out to enable them."
        raise BadRequestError(None, message, code=403, kind="PermissionDeniedError")

    async def _detokenize(self, request: web.Request) -> web.Response:
        return web.json_response(detokenized((await _json(request)).get("tokens", [])))

    async def _reset(self, _: web.Request) -> web.Response:
        self.engine.clear_cache()
        return web.Response()

    async def _models(self, _: web.Request) -> web.Response:
        return web.json_response(models_of(self.settings, self._created_s))

    async def _health(self, _: web.Request) -> web.Response:
        return web.Response(status=200 if self.engine.is_alive else 503)

    async def _version(self, _: web.Request) -> web.Response:
        return web.json_response({"version": VERSION})

    async def _load(self, _: web.Request) -> web.Response:
        return web.json_response({"server_load": self.engine.running + self.engine.waiting})

    async def _metrics(self, _: web.Request) -> web.Response:
        return web.Response(text=metrics_of(self.engine), content_type="text/plain")

    async def _sources(self, _: web.Request) -> web.Response:
        return web.json_response({} if self.publisher is None else {"0": self.publisher.source})


def _usage(job: Job, output_tokens: int | None = None) -> dict[str, Any]:
    sequence = job.sequence
    generated = sequence.generated if output_tokens is None else output_tokens
    return usage_of(sequence.prompt_tokens, generated, sequence.hit_tokens)


def _event(data: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(data, separators=(",", ":")).encode() + b"\n\n"


async def _json(request: web.Request) -> Any:
    try:
        body = await request.json()
    except ValueError as error:
        raise BadRequestError(None, f"body: expected JSON: {error}") from error
    if not isinstance(body, dict):
        raise BadRequestError(None, "body: expected a JSON object")
    return body


@web.middleware
async def _errors(request: web.Request, handler: Any) -> web.StreamResponse:
    try:
        answer: web.StreamResponse = await handler(request)
    except BadRequestError as error:
        return web.json_response(error.body(), status=error.code)
    return answer
