"""Runs as processes and folders: the log, the queue, starting, adopting, stopping and explaining them."""
