"""Asking the hub: which names are its, and what its library raises as errors people can act on. Knows neither datasets nor models."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from afina.core.errors import AfinaError, Problem, from_system

PREFIX = "hub:"


def is_hub(name: str) -> bool:
    """Whether `name` is that of something on the hub."""
    return name.startswith(PREFIX)


@contextmanager
def asking(absent: Problem, away: Problem, closed: Problem | None = None) -> Iterator[None]:
    """Raise `absent` where the hub has no such repository or shows it to nobody without an account, `closed` where its terms
    have to be accepted first, `away` where the hub does not answer; `no_disk_space` or `cannot_write` where what came cannot be kept."""
    from httpx2 import HTTPError
    from huggingface_hub.errors import (
        FileMetadataError,
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
        RevisionResolutionError,
        XetDownloadError,
    )

    try:
        yield
    except GatedRepoError:
        raise AfinaError(closed or absent, "forbidden" if closed else "not_found") from None
    except (RepositoryNotFoundError, RevisionNotFoundError, HFValidationError):
        raise AfinaError(absent, "not_found") from None
    except (
        HTTPError,
        RevisionResolutionError,
        LocalEntryNotFoundError,
        FileMetadataError,
        XetDownloadError,
        ConnectionError,
        TimeoutError,
    ):
        raise AfinaError(away, "unavailable") from None
    except OSError as error:
        raise from_system(error) from error
