"""One large file of the hub into the library's cache, going on where an earlier download was stopped.

huggingface_hub itself goes on within one process only: a file whose download was ended by force begins anew there. Knows
nothing of models.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

from afina.core.locks import FileLock

LARGE = 10 << 20
"""Bytes from which on going on is worth it; the library writes as many at a time."""

_DIGEST = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
"""What the hub calls a file's contents; anything else is no name for a file here."""


def bring(repo: str, commit: str, name: str, bar: type[Any]) -> None:
    """Put a file where `snapshot_download` looks for it before it asks the hub. Raises what the library raises."""
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url
    from huggingface_hub.file_download import http_get, repo_folder_name
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]  # documented, but not in its __all__

    address, headers = hf_hub_url(repo, name, revision=commit), build_hf_headers()
    plain = {**headers, "Accept-Encoding": "identity"}  # bytes of a packed answer could not be counted from
    told = get_hf_file_metadata(address, headers=headers)
    digest = told.etag or ""
    if not _DIGEST.fullmatch(digest) or not told.size or told.size > constants.MAX_HTTP_DOWNLOAD_SIZE:
        return  # left to the library
    blobs = Path(constants.HF_HUB_CACHE, repo_folder_name(repo_id=repo, repo_type="model"), "blobs")
    blobs.mkdir(parents=True, exist_ok=True)
    blob, part = blobs / digest, blobs / f"{digest}.afina"
    lock = FileLock(blobs / f"{digest}.afina.lock")
    if blob.exists() or not lock.acquire():
        return
    try:
        with part.open("ab") as file:
            if file.tell() > told.size:
                file.truncate(0)
            http_get(address, file, resume_size=file.tell(), headers=plain, expected_size=told.size, tqdm_class=bar)
        if len(digest) == 64 and _sha256(part) != digest:
            part.unlink()
            raise ConnectionError(f"{name} came damaged")
        part.replace(blob)
    finally:
        lock.release()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
