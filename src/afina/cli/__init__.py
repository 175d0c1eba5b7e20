"""The command line: parse, call actions, print. `main` is the entry point `afina`.

Commands are loaded only when they are called, so that `afina --help` answers at once and imports nothing slow.
"""

from afina.cli.entry import main

__all__ = ["main"]
