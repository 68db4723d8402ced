"""The service's own OpenAPI document: what is asked, what is answered, and which errors there are."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI

from workflows.serve.chat import ChatRequest

_REF = "#/components/schemas/{model}"
_ERRORS = {
    "400": "The request is wrong.",
    "401": "A key is missing or unknown.",
    "403": "The host or the origin is not let in.",
    "404": "There is no such model.",
    "408": "The body did not come in time.",
    "413": "The body or a picture is too large.",
    "415": "The body is not application/json.",
    "431": "The headers are too large.",
    "429": "Too many requests, or a budget that is spent; see Retry-After.",
    "500": "A bug of the service.",
    "503": "The agent failed, or none is there.",
}
ERROR = {
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
                "code": {"type": ["string", "null"]},
            },
        }
    },
}
CITATION = {
    "type": "object",
    "required": ["type", "url_citation"],
    "properties": {
        "type": {"const": "url_citation"},
        "url_citation": {
            "type": "object",
            "required": ["start_index", "end_index", "title", "url"],
            "properties": {
                "start_index": {"type": "integer", "minimum": 0, "description": "of the `[n]` in the content"},
                "end_index": {"type": "integer", "minimum": 0, "description": "exclusive"},
                "title": {"type": "string"},
                "url": {"type": "string"},
            },
        },
    },
}
CHOICE = {
    "type": "object",
    "required": ["index", "finish_reason", "message", "search_steps", "search_unavailable", "weights_version"],
    "properties": {
        "index": {"type": "integer", "minimum": 0},
        "finish_reason": {"enum": ["stop", "length", "max_turns", "max_tool_calls", "max_cost", "max_seconds"]},
        "message": {
            "type": "object",
            "required": ["role", "content", "annotations"],
            "properties": {
                "role": {"const": "assistant"},
                "content": {"type": "string"},
                "reasoning_content": {"type": "string"},
                "annotations": {"type": "array", "items": CITATION},
            },
        },
        "search_steps": {"type": "array", "items": {"type": "object", "required": ["type"]}},
        "search_unavailable": {"type": "boolean"},
        "weights_version": {"type": "integer"},
    },
}
COMPLETION = {
    "type": "object",
    "required": ["id", "object", "created", "model", "choices", "usage"],
    "properties": {
        "id": {"type": "string"},
        "object": {"const": "chat.completion"},
        "created": {"type": "integer"},
        "model": {"type": "string"},
        "choices": {"type": "array", "items": CHOICE},
        "usage": {
            "type": "object",
            "required": ["prompt_tokens", "completion_tokens", "total_tokens", "tool_calls", "cost_usd"],
            "properties": {
                **{
                    name: {"type": "integer", "minimum": 0}
                    for name in ("prompt_tokens", "completion_tokens", "total_tokens", "tool_calls")
                },
                "cost_usd": {"type": "number", "minimum": 0},
            },
        },
    },
}


def describe(app: FastAPI) -> None:
    """Give `app` a document that says what `POST /v1/chat/completions` takes, which reads its body by itself."""
    made = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _completed(made())
        return app.openapi_schema

    app.openapi = openapi  # FastAPI's own way to extend it


def _completed(document: dict[str, Any]) -> dict[str, Any]:
    request = ChatRequest.model_json_schema(ref_template=_REF)
    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    schemas |= request.pop("$defs", {}) | {"ChatRequest": request, "ChatCompletion": COMPLETION, "Error": ERROR}
    document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    chat = document["paths"]["/v1/chat/completions"]["post"]
    chat["requestBody"] = {"required": True, "content": {"application/json": {"schema": _ref("ChatRequest")}}}
    chat["security"] = [{}, {"key": []}]
    answer = {
        "application/json": {"schema": _ref("ChatCompletion")},
        "text/event-stream": {"schema": {"type": "string", "description": "chat.completion.chunk events"}},
    }
    chat["responses"] = {"200": {"description": "The answer.", "content": answer}} | _errors(_ERRORS)
    for path in ("/v1/models", "/metrics"):
        document["paths"][path]["get"]["responses"] |= _errors({code: _ERRORS[code] for code in ("401", "429", "503")})
    document["paths"]["/readyz"]["get"]["responses"]["503"] = {"description": "No agent is ready."}
    return document


def _errors(said: dict[str, str]) -> dict[str, Any]:
    content = {"content": {"application/json": {"schema": _ref("Error")}}}
    return {code: {"description": words, **content} for code, words in said.items()}


def _ref(name: str) -> dict[str, str]:
    return {"$ref": _REF.format(model=name)}
