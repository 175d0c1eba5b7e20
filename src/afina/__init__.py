"""Afina: fine-tune open language models from a browser, on the machine people have."""

__version__ = "0.1.0"
