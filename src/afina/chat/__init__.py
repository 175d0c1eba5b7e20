"""Conversations with models, each loaded in a process of its own. Nothing here but the worker's child side needs torch."""
