"""A process that looks through blocks of a large file for `parallel.py`, which starts it by name: `python -m afina.data.looker`.

Over standard input comes first what it has to know, then block after block; what was found in each goes back over standard
output (`tasks.py` says how). It ends with its input, and so with its parent.
"""

from __future__ import annotations

import io
import os
import signal
import sys

from afina.data.formats import examples_of
from afina.data.json_rows import json_lines
from afina.data.scan import Stretch, look
from afina.data.tasks import FAR, Block, Task, read_block, read_task, send_stretch


def main() -> None:
    """Serve until the input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's affair
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever is printed by mistake must not get among the answers
    questions = sys.stdin.buffer
    try:
        task = read_task(questions)
        while True:
            send_stretch(answers, looked(task, read_block(questions)))
    except EOFError:
        return


def looked(task: Task, block: Block) -> Stretch:
    """What is in one block. Its rows and lines count from FAR unless it is the first."""
    encoding = task.encoding if block.first else "utf-8"
    start = 0 if block.first else FAR
    with io.TextIOWrapper(io.BytesIO(block.content), encoding, "afina-mark", newline=None) as file:
        records = json_lines(file, start, start)
        stretch = look(examples_of(records, task.form, task.columns, task.mapping), task.lengths, block.compare)
    stretch.end = max(stretch.end, start)
    return stretch


if __name__ == "__main__":
    main()
