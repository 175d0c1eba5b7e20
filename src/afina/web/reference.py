"""The API's own page, `/api/v1/docs`: drawn from the OpenAPI description, with nothing from elsewhere."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import RedirectResponse, Response

from afina.core.messages import N_
from afina.web.show import show

router = APIRouter(include_in_schema=False)
TITLES = {
    "machine": N_("Server and machine"),
    "datasets": N_("Datasets"),
    "models": N_("Models"),
    "runs": N_("Runs"),
    "chat": N_("Chat"),
    "openai": N_("OpenAI's shape"),
}
METHODS = ("get", "post", "put", "delete")


@router.get("/docs")
@router.get("/openapi.json")
def usual(request: Request) -> Response:
    """Where programs and people look for them first."""
    return RedirectResponse(f"/api/v1{request.url.path}")


@router.get("/api/v1/docs")
def docs(request: Request) -> Response:
    """Every address, what it takes and what it gives."""
    return show(request, "api.html", groups=groups(request.app.openapi()), titles=TITLES)


def groups(description: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """The operations of an OpenAPI description by their tag, their references resolved into rows to draw."""
    schemas = description["components"]["schemas"]
    found: dict[str, list[dict[str, Any]]] = {tag: [] for tag in TITLES}
    for path, item in description["paths"].items():
        for method in METHODS:
            if method in item:
                operation = item[method]
                found[operation["tags"][0]].append(_operation(path, method, operation, schemas))
    return {tag: operations for tag, operations in found.items() if operations}


def _operation(path: str, method: str, operation: dict[str, Any], schemas: dict[str, Any]) -> dict[str, Any]:
    parameters = [
        {
            "name": parameter["name"],
            "where": parameter["in"],
            "type": _type(parameter["schema"]),
            "required": parameter.get("required", False),
            "about": parameter.get("description") or _limits(parameter["schema"]),
        }
        for parameter in operation.get("parameters", [])
    ]
    body = _content(operation.get("requestBody", {}))
    success: dict[str, Any] = next(
        (answer for status, answer in operation["responses"].items() if status.startswith("2")), {}
    )
    answer = _content(success)
    return {
        "id": operation["operationId"],
        "method": method.upper(),
        "path": path,
        "about": operation.get("description", ""),
        "parameters": parameters,
        "body": _fields(body, schemas),
        "answer_type": _type(answer) if answer else None,
        "answer": _fields(answer.get("items", answer), schemas),
    }


def _content(part: dict[str, Any]) -> dict[str, Any]:
    schema: dict[str, Any] = next((kind.get("schema", {}) for kind in part.get("content", {}).values()), {})
    return schema


def _fields(schema: dict[str, Any], schemas: dict[str, Any]) -> list[dict[str, Any]]:
    options = [option for option in schema.get("anyOf", []) if "$ref" in option]
    reference = schema.get("$ref") or (options[0]["$ref"] if options else None)
    whole = schemas[_name(reference)] if reference else schema
    required = whole.get("required", [])
    return [
        {
            "name": name,
            "type": _type(field),
            "required": name in required,
            "default": field.get("default"),
            "about": field.get("description") or _limits(field),
        }
        for name, field in whole.get("properties", {}).items()
    ]


def _type(schema: dict[str, Any]) -> str:
    if "$ref" in schema:
        return _name(schema["$ref"])
    if "const" in schema:
        return f'"{schema["const"]}"'
    if "enum" in schema:
        return " | ".join(f'"{value}"' for value in schema["enum"])
    if "anyOf" in schema:
        return " | ".join(_type(option) for option in schema["anyOf"])
    if schema.get("type") == "array":
        return f"[{_type(schema.get('items', {}))}]"
    return str(schema.get("type", "any"))


def _name(reference: str) -> str:
    return reference.rsplit("/", 1)[-1]


def _limits(schema: dict[str, Any]) -> str:
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    parts = [schema, *schema.get("anyOf", [])]
    return ", ".join(f"{sign} {part[key]:g}" for part in parts for key, sign in signs.items() if key in part)
