"""Raised by one when a change makes what was remembered wrong."""

REVISION = 2
"""Of the readers and checks: reports."""
TOKENS = 1
"""Of template.py, turns.py and jinja.py: tokens and masks."""
