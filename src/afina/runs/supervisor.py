"""The queue: starts the next run, adopts runs that others started, stops those asked to, explains those that died.

Any number of supervisors may live at once (a server and some commands). Each looks after all runs of the home, one look
at a time: a file lock makes a look exclusive, and holds nothing longer. A supervisor killed at any moment leaves
nothing behind that the next look, by whomever, does not put right.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from afina.core.errors import AfinaError
from afina.core.events import ACTIVE, Failed, Phase, Retry, Stopped
from afina.core.messages import N_, say
from afina.core.paths import Home
from afina.registry import runs as rows
from afina.registry.tables import RunRow
from afina.runs.digest import Digest
from afina.runs.exit import explain, killed_for_memory
from afina.runs.index import catch_up, fill, index, queue_lock
from afina.runs.launch import BUSY, WORKER, computing_lock, living, process_of, start_worker
from afina.runs.log import EventLog
from afina.runs.relief import may_be_relieved, relieve
from afina.runs.view import run_folder

logger = logging.getLogger(__name__)

STOP_GRACE = 60.0
"""Seconds without any event after which a run that was asked to stop gets a signal."""
KILL_GRACE = 20.0
"""Seconds between the polite signal and the one that cannot be refused."""
STOP_LIMIT = 900.0
"""Seconds after which a run that was asked to stop gets a signal although it still says something."""
START_GRACE = 30.0
"""Seconds a started worker has to write `process.json` when nobody saw it start."""

REAP_GRACE = 5.0
"""Seconds left to the parent of a dead worker, who alone can read its exit code, before someone else explains it."""


class Supervisor:
    """Looks after the runs of one home. Cheap to make; keeps only the exit codes of its own children to itself.

    worker: the module that is started for a run; tests have quicker ones. start: what starts it.
    """

    def __init__(
        self,
        home: Home,
        stop_grace: float = STOP_GRACE,
        worker: str = WORKER,
        start: Callable[[Path, int | None, str], subprocess.Popen[bytes]] = start_worker,
    ) -> None:
        self.home = home
        self._start_worker = start
        self.stop_grace = stop_grace
        self.worker = worker
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        self._unreaped: dict[str, float] = {}
        self._compared = False
        self._guard = threading.Lock()

    def run(self, stop: threading.Event, every: float = 0.5) -> None:
        """Look every so many seconds until `stop` is set. A busy or unreachable index is tried again at the next look."""
        while not stop.wait(every):
            try:
                self.tick()
            except (OSError, SQLAlchemyError, AfinaError) as error:
                logger.warning("The queue could not be looked at: %s", error)

    def tick(self) -> bool:
        """One look: settle what has ended, then start the next run when none computes. False: another one is looking."""
        return self._look(start=True)

    def settle(self) -> bool:
        """One look that starts nothing: what has died is explained, what was asked to stop is seen to."""
        return self._look(start=False)

    def settled(self, run_id: str) -> bool:
        """Look once; whether the run is over and its process gone."""
        self.settle()
        with index(self.home) as session:
            row = session.get(RunRow, run_id)
            return row is None or row.status not in ACTIVE

    def _look(self, start: bool) -> bool:
        lock = queue_lock(self.home)
        with self._guard:
            if not lock.acquire():
                return False
            try:
                with index(self.home) as session:
                    if not self._compared:
                        fill(self.home, session)
                        self._compared = True
                    active = [row for row in rows.with_status(session, ACTIVE) if self._look_at(session, row)]
                    if start and not active:
                        self._start_next(session)
            finally:
                lock.release()
        return True

    def _look_at(self, session: Session, row: RunRow) -> bool:
        """See to one active run; True while it keeps the others waiting."""
        folder = run_folder(self.home, row.id)
        if not folder.is_dir():
            rows.change(session, row.id, ACTIVE, status="failed", ended=time.time())
            return False
        process = self._process(row.id, folder)
        digest = Digest.load(row.digest)
        offset = catch_up(folder, digest, row.events_offset)
        if process is None and not self._may_still_come(row, folder):
            return self._conclude(session, row, folder)
        status = row.status
        if status == "starting" and digest.stretch is not None:
            status = "running"
        if offset != row.events_offset or status != row.status:
            rows.change(
                session,
                row.id,
                [row.status],
                status=status,
                digest=digest.as_json(),
                events_offset=offset,
                started=digest.started,
            )
        if process is not None:
            self._hurry(row, digest, process)
        return True

    def _process(self, run_id: str, folder: Path) -> psutil.Process | None:
        child = self._children.get(run_id)
        if child is not None and child.poll() is not None:
            return None
        return living(folder)

    def _may_still_come(self, row: RunRow, folder: Path) -> bool:
        """A worker that was started by someone who was killed at once has not written `process.json` yet.

        Also true for a moment while a dead worker waits for its own parent, who alone can read its exit code.
        """
        if row.id in self._children:
            return False
        record = process_of(folder)
        if record is None:
            return time.time() - (row.started or row.queued) < START_GRACE
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            process = psutil.Process(record["pid"])
            if process.status() == psutil.STATUS_ZOMBIE and process.ppid() not in (1, os.getpid()):
                seen = self._unreaped.setdefault(row.id, time.monotonic())
                return time.monotonic() - seen < REAP_GRACE
        return False

    def _conclude(self, session: Session, row: RunRow, folder: Path) -> bool:
        """The worker of an active run is gone: write down how it ended. True when it went back into the queue."""
        child = self._children.pop(row.id, None)
        self._unreaped.pop(row.id, None)
        exit_code = child.wait() if child is not None else None
        digest = Digest.load(row.digest)
        offset = catch_up(folder, digest, row.events_offset)
        never_began = digest.stretch is None and digest.status is None
        if exit_code == BUSY or (never_began and process_of(folder) is None):
            rows.change(session, row.id, ACTIVE, status="queued", started=None, stopping=None)
            return False
        if digest.status is None and row.stopping is None and _deserves_another(folder, exit_code):
            self._start_again(session, row, folder, digest, offset)
            return False
        if digest.status is None:
            self._last_word(folder, digest, exit_code, stopping=row.stopping is not None)
            offset = catch_up(folder, digest, offset)
        rows.change(
            session,
            row.id,
            ACTIVE,
            status=digest.status or "failed",
            digest=digest.as_json(),
            events_offset=offset,
            started=digest.started,
            ended=digest.ended or time.time(),
            stopping=None,
        )
        return False

    def _start_again(self, session: Session, row: RunRow, folder: Path, digest: Digest, offset: int) -> None:
        """Put a run that the system ended for lack of memory back to the head of the queue, with half the memory."""
        text = N_(
            "The machine ran out of memory at step {step}, and the training process was ended. The run goes on by itself from its last checkpoint, once, with half the memory."
        )
        log = EventLog(folder)
        log.append(Retry(digest.step, say(text, step=digest.step)))
        relieve(folder, digest.memory)
        log.append(Phase("queued"))
        (folder / "process.json").unlink(missing_ok=True)
        offset = catch_up(folder, digest, offset)
        values = {"digest": digest.as_json(), "events_offset": offset, "started": None, "stopping": None}
        rows.change(session, row.id, ACTIVE, status="queued", **values)

    def _last_word(self, folder: Path, digest: Digest, exit_code: int | None, stopping: bool) -> None:
        """Write the last event in the place of a worker that could not."""
        failed = explain(folder, exit_code, digest.step)
        ended = stopping and failed.code in ("killed", "vanished")
        stopped = Stopped(digest.step, "none", None, digest.train_loss, digest.validation_loss, digest.seconds or 0.0)
        EventLog(folder).append(stopped if ended else failed)

    def _hurry(self, row: RunRow, digest: Digest, process: psutil.Process) -> None:
        """Send signals to a worker that was asked to stop, or has said its last word, and does not end."""
        now = time.time()
        asked = row.stopping if digest.status is None else digest.ended
        if asked is None:
            return
        quiet_since = max(asked, digest.last or 0.0)
        late = min(now - quiet_since - self.stop_grace, now - asked - self.stop_grace)
        if now - asked > STOP_LIMIT:
            late = max(late, now - asked - STOP_LIMIT)
        if late > min(KILL_GRACE, self.stop_grace):
            _end(process, forcibly=True)
        elif late > 0:
            _end(process, forcibly=False)

    def _start_next(self, session: Session) -> None:
        """Start the run whose turn it is, unless a worker still computes."""
        row = rows.next_queued(session)
        if row is None:
            return
        lock = computing_lock(self.home)
        if not lock.acquire():
            return
        lock.release()
        folder = run_folder(self.home, row.id)
        (folder / "stop.json").unlink(missing_ok=True)
        if not rows.change(session, row.id, ["queued"], status="starting", started=time.time(), stopping=None):
            return
        try:
            self._children[row.id] = self._start_worker(folder, row.spec.get("threads"), self.worker)
        except OSError as error:
            self._could_not_start(session, row, folder, error)

    def _could_not_start(self, session: Session, row: RunRow, folder: Path, error: OSError) -> None:
        failed = Failed(
            "could_not_start",
            say(N_("The training process could not be started: {reason}."), reason=error.strerror or str(error)),
            say(N_("Look whether the disk has room and the home folder can be written to.")),
        )
        digest = Digest.load(row.digest)
        with suppress(OSError):
            EventLog(folder).append(failed)
        catch_up(folder, digest, row.events_offset)
        if digest.status is None:
            digest.fold({"time": time.time(), **failed.as_json()})
        rows.change(session, row.id, ACTIVE, status="failed", digest=digest.as_json(), ended=time.time())


def _deserves_another(folder: Path, exit_code: int | None) -> bool:
    return killed_for_memory(folder, exit_code) and may_be_relieved(folder)


def _end(process: psutil.Process, forcibly: bool) -> None:
    """End a worker and everything it started."""
    with suppress(psutil.NoSuchProcess, psutil.AccessDenied, ProcessLookupError, PermissionError):
        if sys.platform == "win32":
            for child in process.children(recursive=True):
                child.kill()
            process.kill()
        else:
            os.killpg(process.pid, signal.SIGKILL if forcibly else signal.SIGTERM)
