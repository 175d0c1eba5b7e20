"""The tables of the index. Knows nothing of files; `database.py` opens them, `migrations/` makes them."""

from __future__ import annotations

from typing import Any

from sqlalchemy import JSON, Float, Index, Integer, String
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class Base(DeclarativeBase):
    """Base of all tables."""

    type_annotation_map = {dict[str, Any]: JSON, list[Any]: JSON}


class RunRow(Base):
    """A run. `digest` is what its events say so far, up to the byte `events_offset` of `events.jsonl`."""

    __tablename__ = "runs"
    __table_args__ = (Index("ix_runs_status", "status", "queued"), Index("ix_runs_name", "name"))

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    name: Mapped[str] = mapped_column(String(200))
    status: Mapped[str] = mapped_column(String(16))
    created: Mapped[float] = mapped_column(Float)
    queued: Mapped[float] = mapped_column(Float)
    """When it entered the queue; the order of the queue."""
    started: Mapped[float | None] = mapped_column(Float)
    ended: Mapped[float | None] = mapped_column(Float)
    stopping: Mapped[float | None] = mapped_column(Float)
    """When stopping was asked for."""
    model: Mapped[str] = mapped_column(String(1000))
    method: Mapped[str] = mapped_column(String(16))
    dataset: Mapped[list[Any]]
    spec: Mapped[dict[str, Any]]
    ancestors: Mapped[list[Any]]
    """Ids of the runs whose results this run was trained from, oldest first."""
    digest: Mapped[dict[str, Any]]
    events_offset: Mapped[int] = mapped_column(Integer, default=0)


class ModelRow(Base):
    """What is known of a base model's folder while its `fingerprint` (sizes and times of its files) stays the same."""

    __tablename__ = "models"

    id: Mapped[str] = mapped_column(String(255), primary_key=True)
    fingerprint: Mapped[str] = mapped_column(String(64))
    info: Mapped[dict[str, Any]]


class DatasetRow(Base):
    """The report on a dataset file, valid while its `fingerprint` (size, time, counting tokenizer) stays the same."""

    __tablename__ = "datasets"

    name: Mapped[str] = mapped_column(String(255), primary_key=True)
    fingerprint: Mapped[str] = mapped_column(String(64))
    report: Mapped[dict[str, Any]]
