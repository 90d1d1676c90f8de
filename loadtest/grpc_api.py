"""Homing's own API, `Router.Generate`, for greenlets.

Rule 1: `grpc.experimental.gevent` must be told before the first channel; it is told when this is imported.
"""

from collections.abc import Iterator

import grpc
from grpc.experimental import gevent as grpc_gevent

from homing.protos import common_pb2, router_pb2, router_pb2_grpc

from .asks import Ask, AskError

grpc_gevent.init_gevent()


class GrpcApi:
    """`address` is the router's, as `host:port`."""

    kind = "gRPC"

    def __init__(self, address: str, model: str, *, timeout_s: float) -> None:
        self._model = model
        self._timeout_s = timeout_s
        # A user is somebody else than his neighbour: without this they would share a connection.
        self._channel = grpc.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)])
        self._stub = router_pb2_grpc.RouterStub(self._channel)

    def stream(self, ask: Ask) -> Iterator[str]:
        """See `Api.stream`."""
        messages = [common_pb2.ChatMessage(role=m["role"], content=m["content"]) for m in ask.messages]
        request = router_pb2.GenerateRequest(
            request=router_pb2.RouteRequest(
                model=self._model,
                prompt=common_pb2.Prompt(chat=common_pb2.Chat(messages=messages)),
                max_output_tokens=ask.output_tokens,
                session=ask.session,
            ),
            ignore_eos=ask.exact,
        )
        whole = False
        call = self._stub.Generate(request, timeout=self._timeout_s)
        try:
            for reply in call:
                if reply.WhichOneof("part") == "tokens":
                    yield reply.tokens.text
                whole = whole or reply.HasField("summary")
        except grpc.RpcError as error:
            raise AskError(f"{error.code().name}: {error.details()}") from error
        finally:
            call.cancel()
        if not whole:
            raise AskError("the stream ended without a summary")

    def close(self) -> None:
        """See `Api.close`."""
        self._channel.close()
