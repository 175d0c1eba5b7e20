"""Raised by one when a change of the readers or checks makes reports that were remembered wrong."""

REVISION = 2
