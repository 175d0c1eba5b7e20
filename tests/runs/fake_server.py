"""A process that looks after a home like a server does, to be killed."""

from __future__ import annotations

import sys
import threading
from pathlib import Path

from afina.core.paths import Home
from afina.runs.supervisor import Supervisor

if __name__ == "__main__":
    supervisor = Supervisor(Home(Path(sys.argv[1])), worker="tests.runs.fake_worker")
    supervisor.tick()
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    supervisor.run(threading.Event(), every=0.05)
