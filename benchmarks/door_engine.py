"""An engine that costs next to nothing, for measuring what stands before it: every answer is ready beforehand.

Whole answers come from nginx (`nginx_config`). Streams come from a small server here, one write for each event, since
nginx would send all events of a ready answer at once: `python benchmarks/door_engine.py --events 32`.
"""

import argparse
import asyncio
import json
import sys
from pathlib import Path

MODEL = "mock"
KV_BLOCKS = 131_072
"""Blocks of an engine's cache: all prompts of the benchmark fit."""
RUNNING = 64
"""Requests that each engine says it works on: more than are ever asked of it here. Homing learns how fast an engine
computes prompts from answers that had it for themselves, and must not learn from one that answers at once whatever it
has cached: it would conclude that caches are worth nothing there, and no more prefer the engine that holds a prompt."""
_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: %b\r\n%b\r\n\r\n"

ANSWERS = {
    "/health": "",
    "/v1/models": json.dumps(
        {
            "object": "list",
            "data": [
                {
                    "id": MODEL,
                    "object": "model",
                    "created": 1,
                    "owned_by": "vllm",
                    "root": MODEL,
                    "parent": None,
                    "max_model_len": 1_000_000,
                }
            ],
        }
    ),
    "/version": json.dumps({"version": "0.32.0"}),
    "/kv_event_sources": "{}",
    "/metrics": (
        f'vllm:cache_config_info{{block_size="16",engine="0",num_gpu_blocks="{KV_BLOCKS}"}} 1\n'
        f'vllm:num_requests_running{{engine="0"}} {RUNNING}\n'
        'vllm:num_requests_waiting{engine="0"} 0\n'
        'vllm:kv_cache_usage_perc{engine="0"} 0.5\n'
    ),
    "/v1/chat/completions": json.dumps(
        {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "created": 1,
            "model": MODEL,
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": "ok"},
                    "logprobs": None,
                    "finish_reason": "stop",
                }
            ],
            "usage": {"prompt_tokens": 100, "completion_tokens": 1, "total_tokens": 101},
        }
    ),
}
"""What an engine says, by path; anything else is an empty object."""
ABSENT = ("/tokenize", "/v1/chat/completions/render")
"""What it does not have: no answer that is ready beforehand could be right."""


def nginx_config(folder: Path, ports: list[int]) -> str:
    """An nginx with one server for each port, all in one process."""
    locations = "".join(f"location = {path} {{ return 200 '{body}'; }}\n" for path, body in ANSWERS.items())
    locations += "".join(f"location = {path} {{ return 404; }}\n" for path in ABSENT)
    listens = "".join(f"listen 127.0.0.1:{port} reuseport backlog=4096;\n" for port in ports)
    return f"""
daemon off; worker_processes 1; pid {folder}/nginx.pid; error_log {folder}/error.log warn;
events {{ worker_connections 8192; }}
http {{
  access_log off; default_type application/json;
  keepalive_requests 1000000000; keepalive_timeout 3600s;
  client_body_temp_path {folder}/body; client_body_buffer_size 1m; client_max_body_size 64m;
  proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
  server {{
    {listens}
    {locations}
    location / {{ return 200 '{{}}'; }}
  }}
}}
"""


def stream_chunks(events: int) -> list[bytes]:
    """The events of a stream, each as one chunk of HTTP."""
    chunks = []
    for number in range(events):
        choice = {"index": 0, "delta": {"content": f" word{number}"}, "logprobs": None, "finish_reason": None}
        head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": MODEL}
        chunks.append(b"data: " + json.dumps({**head, "choices": [choice]}).encode() + b"\n\n")
    chunks.append(b"data: [DONE]\n\n")
    return [b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks]


class Engine(asyncio.Protocol):
    """One connection; requests come one after another."""

    def __init__(self, chunks: list[bytes]) -> None:
        self._chunks = chunks
        self._loop = asyncio.get_running_loop()
        self._got = bytearray()
        self._need_bytes = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio.Protocol."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """A request is answered when all of it is there."""
        self._got += data
        if len(self._got) < self._need_bytes:
            return
        head_end = self._got.find(b"\r\n\r\n")
        if head_end < 0:
            return
        head = bytes(self._got[:head_end]).lower()
        _, _, after = head.partition(b"content-length:")
        self._need_bytes = head_end + 4 + (int(after.split(b"\r\n", 1)[0]) if after else 0)
        if len(self._got) < self._need_bytes:
            return
        path = bytes(self._got[:head_end]).split(b" ", 2)[1].decode()
        self._got.clear()
        self._need_bytes = 0
        self._answer(path)

    def _answer(self, path: str) -> None:
        if path in ABSENT:
            self._transport.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
        elif path == "/v1/chat/completions":
            kind = (b"text/event-stream", b"Transfer-Encoding: chunked")
            self._transport.write(_HEAD % kind)
            self._send(0)
        else:
            body = ANSWERS.get(path, "{}").encode()
            self._transport.write(_HEAD % (b"application/json", b"Content-Length: %d" % len(body)) + body)

    def _send(self, number: int) -> None:
        """One event in each turn of the loop: what reads must take them as they come."""
        if self._transport.is_closing():
            return
        if number < len(self._chunks):
            self._transport.write(self._chunks[number])
            self._loop.call_soon(self._send, number + 1)
        else:
            self._transport.write(b"0\r\n\r\n")


async def serve(events: int) -> None:
    """Answer until the process is ended."""
    chunks = stream_chunks(events)
    server = await asyncio.get_running_loop().create_server(lambda: Engine(chunks), "127.0.0.1", 0, backlog=4096)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--events", type=int, default=32)
    sys.exit(asyncio.run(serve(parser.parse_args().events)))
