"""`/api/v1/models`: base models and fine-tuned ones."""

from __future__ import annotations

from fastapi import APIRouter, Request

from afina import actions
from afina.registry.records import ModelInfo
from afina.web.api.records import AddModel, Deleted
from afina.web.language import speaker

router = APIRouter(prefix="/models", tags=["models"])


@router.get("")
def list_models(request: Request) -> list[ModelInfo]:
    """All models: base models first, each result with the model it came from as its parent."""
    write = speaker(request).write
    return [model.in_words(write) for model in actions.list_models(request.app.state.home)]


@router.post("", status_code=202)
def add(request: Request, body: AddModel) -> ModelInfo:
    """Begin to add a model; it is listed as "adding", with its progress, until it is ready or broken. A model of the hub is
    looked up first, and pinned to its commit."""
    return actions.add_model(request.app.state.home, body.source, body.name).in_words(speaker(request).write)


@router.get("/{ref}")
def get(request: Request, ref: str) -> ModelInfo:
    """One model, by id, name or alias."""
    return actions.get_model(request.app.state.home, ref).in_words(speaker(request).write)


@router.delete("/{ref}")
def delete(request: Request, ref: str) -> Deleted:
    """Delete a base model. Refused while runs need it."""
    home = request.app.state.home
    request.app.state.chat.unload(home.models / actions.get_model(home, ref).id)
    actions.delete_model(home, ref)
    return Deleted(deleted=ref)
