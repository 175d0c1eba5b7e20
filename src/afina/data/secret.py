"""Secrets in texts: keys and tokens, by the rules of detect-secrets and a few of newer services.

Only forms that give themselves away are looked for; guesses by entropy or by words such as “password” are left out, for
texts about programming are full of them. The rules are loaded when a text holds the beginning of one, so most texts cost
a few searches for fixed strings.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from functools import cache
from importlib import import_module
from typing import Any

RULES: dict[str, tuple[str, str]] = {
    "AKIA": ("aws", "AWSKeyDetector"),
    "ASIA": ("aws", "AWSKeyDetector"),
    "AccountKey=": ("azure_storage_key", "AzureStorageKeyDetector"),
    "ghp_": ("github_token", "GitHubTokenDetector"),
    "gho_": ("github_token", "GitHubTokenDetector"),
    "ghu_": ("github_token", "GitHubTokenDetector"),
    "ghs_": ("github_token", "GitHubTokenDetector"),
    "ghr_": ("github_token", "GitHubTokenDetector"),
    "glpat-": ("gitlab_token", "GitLabTokenDetector"),
    "gldt-": ("gitlab_token", "GitLabTokenDetector"),
    "glrt-": ("gitlab_token", "GitLabTokenDetector"),
    "eyJ": ("jwt", "JwtTokenDetector"),
    ":_authToken=": ("npm", "NpmDetector"),
    "T3BlbkFJ": ("openai", "OpenAIDetector"),
    "pypi-AgE": ("pypi_token", "PypiTokenDetector"),
    "SG.": ("sendgrid", "SendGridDetector"),
    "xox": ("slack", "SlackDetector"),
    "hooks.slack.com": ("slack", "SlackDetector"),
    "sq0csp-": ("square_oauth", "SquareOAuthDetector"),
    "k_live_": ("stripe", "StripeDetector"),
}
"""What a secret's text must hold, and the detector of detect-secrets that knows the whole form."""
OWN: dict[str, tuple[str, re.Pattern[str]]] = {
    "PRIVATE KEY": (
        "Private Key",
        re.compile(
            r"-----BEGIN (?:[A-Z0-9]+ ){0,3}PRIVATE KEY(?: BLOCK)?-----\s*(?:[\w-]+: .*\s+)*[A-Za-z0-9+/=\s]{100}"
        ),
    ),
    "sk-ant-": ("Anthropic key", re.compile(r"sk-ant-[A-Za-z0-9_-]{32,}")),
    "sk-proj-": ("OpenAI Token", re.compile(r"sk-proj-[A-Za-z0-9_-]{40,}")),
    "hf_": ("Hugging Face token", re.compile(r"\bhf_[A-Za-z]{34}\b")),
    "AIza": ("Google API key", re.compile(r"\bAIza[0-9A-Za-z_-]{35}(?![\w-])")),
}
"""Forms that detect-secrets does not know, or knows by their heading alone."""
NEAR, PLACES = 300, 50
"""Characters before a place that are looked at (four times as many behind it), and places in a row."""
_TOKEN = re.compile(r"(?:[\w+/=-]|\.(?=[\w+/=-]{8}))*")
_KEY = re.compile(r"(?:\s*[A-Za-z0-9+/=]{16,})*(?:\s*[A-Za-z0-9+/=]{0,63}\s*-----END [A-Z0-9 ]{1,60}-----)?")
"""What belongs to a secret behind what the rules look for, so that no part of it stays where it is masked."""
_SAMPLE = re.compile(r"example|sample|dummy|your|placeholder|x{5}|\*{3}|(.)\1{6}|0123456|1234567|abcdef", re.IGNORECASE)


def find_secret(text: str) -> str | None:
    """What kind of secret `text` holds (a product's name, the same in all languages), None when it shows none."""
    return next((kind for _, _, kind in secrets_in(text)), None)


def secrets_in(text: str) -> Iterator[tuple[int, int, str]]:
    """Where secrets stand in `text` and of what kind they are; places may overlap. A very long text may hold more."""
    for start, (module, name) in RULES.items():
        if start in text:
            detector = _detector(module, name)
            valid = getattr(detector, "is_formally_valid", None)  # a JSON web token must open as one
            for begin, found in _places(start, detector.denylist, text):
                if _real(found) and (valid is None or valid(found)):
                    yield begin, _end(_TOKEN, text, begin + len(found)), str(detector.secret_type)
    for start, (kind, pattern) in OWN.items():
        if start in text:
            rest = _KEY if start == "PRIVATE KEY" else _TOKEN
            for begin, found in _places(start, [pattern], text):
                if _real(found):
                    yield begin, _end(rest, text, begin + len(found)), kind


def _places(start: str, patterns: Iterable[re.Pattern[str]], text: str) -> Iterator[tuple[int, str]]:
    """What the patterns find near the places where `start` stands, and where: some rules take long on long texts."""
    at = text.find(start)
    for _ in range(PLACES):
        if at < 0:
            return
        first = max(0, at - NEAR)
        piece = text[first : at + 4 * NEAR]
        for pattern in patterns:
            yield from ((first + match.start(), match.group()) for match in pattern.finditer(piece))
        at = text.find(start, at + NEAR)


def _end(rest: re.Pattern[str], text: str, at: int) -> int:
    """The end of a secret of which a rule knows the beginning up to `at`."""
    more = rest.match(text, at)
    return at if more is None else more.end()


@cache
def _detector(module: str, name: str) -> Any:
    return getattr(import_module(f"detect_secrets.plugins.{module}"), name)()


def _real(found: str) -> bool:
    """Whether what was found is no stand-in such as AKIAIOSFODNN7EXAMPLE or ghp_xxxxxxxx…"""
    return _SAMPLE.search(found) is None and len(set(found)) > 9
