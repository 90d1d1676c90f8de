"""The door's interface, for tools that read OpenAPI. Requests are passed on whole: engines know more fields."""

from typing import Any, Final

import msgspec

_MODEL: Final = {"type": "string", "minLength": 1, "description": "The model that is to answer."}
_STREAM: Final = {"type": "boolean", "default": False}
_MESSAGES: Final = {
    "type": "array",
    "minItems": 1,
    "items": {
        "type": "object",
        "required": ["role"],
        "properties": {"role": {"type": "string"}, "content": {"type": ["string", "array", "null"]}},
    },
}
_LIMIT: Final = {"type": "integer", "minimum": 1}


def _body(properties: dict[str, Any], *required: str) -> dict[str, Any]:
    schema = {"type": "object", "required": ["model", *required], "properties": {"model": _MODEL, **properties}}
    return {"required": True, "content": {"application/json": {"schema": schema}}}


_ERROR: Final = {
    "description": "Told as OpenAI's API tells errors.",
    "content": {
        "application/json": {
            "schema": {
                "type": "object",
                "required": ["error"],
                "properties": {
                    "error": {
                        "type": "object",
                        "required": ["message", "type", "param", "code"],
                        "properties": {
                            "message": {"type": "string"},
                            "type": {"type": "string"},
                            "param": {"type": ["string", "null"]},
                            "code": {"type": ["string", "integer", "null"]},
                        },
                    }
                },
            }
        }
    },
}
_ANSWER: Final = {"description": "The engine's answer, as JSON or as server-sent events."}
_ANSWERS: Final = {"200": _ANSWER, "4XX": _ERROR, "5XX": _ERROR}


def _post(summary: str, body: dict[str, Any]) -> dict[str, Any]:
    return {"post": {"summary": summary, "requestBody": body, "responses": _ANSWERS}}


def _get(summary: str) -> dict[str, Any]:
    return {"get": {"summary": summary, "responses": _ANSWERS}}


_CHAT: Final = _body({"messages": _MESSAGES, "stream": _STREAM, "max_tokens": _LIMIT}, "messages")
_COMPLETION: Final = _body({"prompt": {"type": ["string", "array"]}, "stream": _STREAM, "max_tokens": _LIMIT}, "prompt")
_INPUT: Final = _body({"input": {"type": ["string", "array"]}, "stream": _STREAM}, "input")

OPENAPI: Final[bytes] = msgspec.json.encode(
    {
        "openapi": "3.1.0",
        "info": {"title": "Homing", "version": "1"},
        "paths": {
            "/v1/chat/completions": _post("Answer a conversation.", _CHAT),
            "/v1/completions": _post("Go on with a text.", _COMPLETION),
            "/v1/messages": _post("Answer a conversation, Anthropic's way.", _CHAT),
            "/v1/responses": _post("Answer, OpenAI's newer way.", _INPUT),
            "/v1/embeddings": _post("Embed texts.", _INPUT),
            "/v1/route": _post("Decide on a request without sending it.", _body({"messages": _MESSAGES})),
            "/v1/models": _get("The models that can be asked for."),
            "/health": _get("Whether the process lives."),
            "/ready": _get("Whether it can answer."),
        },
    }
)
