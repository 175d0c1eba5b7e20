"""The compiled kernels of this machine: made once by its C compiler, then loaded in a millisecond.

Without a compiler (or with `AFINA_KERNELS=torch`) there are none, and PyTorch's own operators do the same work more
slowly. What is made is kept in the cache under the hash of its source and of the processor. Not on macOS: Apple's compiler
has no OpenMP (without its tools, `cc` opens a window), and a second libomp beside PyTorch's ends the process. Knows nothing
of tensors.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path

from afina.core.cache import cache_folder

SOURCES = (
    "kernels.c",
    "rows.h",
    "tiles.h",
    "adamw.h",
    "vectors.h",
    "speak.h",
    "scratch.h",
    "pieces.h",
    "blocks.h",
    "units.h",
    "thin.h",
    "large.h",
    "learned.h",
    "weights.h",
    "words.h",
    "halves.h",
    "attention.h",
    "attention_back.h",
)
COMPILERS = ("cc", "gcc", "clang")
FLAGS = ("-O3", "-std=gnu11", "-fPIC", "-shared", "-fopenmp", "-fno-math-errno", "-fno-trapping-math")
TUNED = (("-march=native", "-mprefer-vector-width=512"), ("-march=native",), ("-mcpu=native",))
SECONDS = 120


@cache
def library() -> ctypes.CDLL | None:
    """The kernels, compiled if they were not; None where they cannot be."""
    if os.environ.get("AFINA_KERNELS", "auto") == "torch" or sys.platform in ("win32", "darwin"):
        return None
    try:
        path = cache_folder() / "kernels" / f"{_fingerprint()}.so"
        if not path.is_file():
            _compile(path)
        return _load(path) if _trusted(path) else None
    except OSError:
        return None


def _load(path: Path) -> ctypes.CDLL:
    """GCC's threads are PyTorch's own. Clang brings others (libomp), which go on spinning for 0.2 s after each kernel; beside
    PyTorch's they would make a step take twice as long, so they sleep at once."""
    loaded = ctypes.CDLL(str(path))
    if hasattr(loaded, "kmp_set_defaults"):
        loaded.kmp_set_defaults(b"KMP_BLOCKTIME=0")
    return loaded


def _fingerprint() -> str:
    digest = hashlib.sha256(" ".join((*FLAGS, platform.platform(), platform.machine(), _processor())).encode())
    for name in SOURCES:
        digest.update(Path(__file__).with_name(name).read_bytes())
    return digest.hexdigest()[:24]


def _processor() -> str:
    """Model and features, so that a cache shared between machines never gives one the other's instructions."""
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        return " ".join(dict.fromkeys(line for line in lines if line.startswith(("model name", "flags", "Features"))))
    return platform.processor()


def _compile(path: Path) -> None:
    """Write the library to `path`, whole or not at all. Raises OSError where no compiler can."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        made = Path(folder) / path.name
        for compiler in compilers():
            for tuned in TUNED:
                if _made([compiler, *tuned, *FLAGS, str(Path(__file__).with_name(SOURCES[0])), "-lm"], made):
                    made.chmod(0o700)
                    made.replace(path)
                    return
    raise OSError("no C compiler with OpenMP")


def compilers() -> Iterator[str]:
    """Those that are here and have OpenMP. Asked with an empty file: without it one says so after seconds of work, and this is
    tried at every start, so that a compiler installed meanwhile is used."""
    names = dict.fromkeys((*os.environ.get("CC", "").split()[:1], *COMPILERS))
    with tempfile.TemporaryDirectory() as folder:
        for compiler in filter(None, map(shutil.which, names)):
            if _made([compiler, "-fopenmp", "-shared", "-fPIC", "-x", "c", os.devnull], Path(folder) / "empty"):
                yield compiler


def _made(command: list[str], file: Path) -> bool:
    with suppress(subprocess.TimeoutExpired):
        return subprocess.run([*command, "-o", str(file)], capture_output=True, timeout=SECONDS).returncode == 0
    return False


def _trusted(path: Path) -> bool:
    """Whether nobody else can have written what is about to be run."""
    own = os.getuid()
    facts = [path.stat(), path.parent.stat()]
    return all(each.st_uid in (own, 0) and not each.st_mode & 0o022 for each in facts)
