"""The interface's languages: texts, numbers, dates and the choice of a language.

`translator(lang)` writes; `negotiate(cookie, accept_language)` chooses. Used by `cli` and `web` only; imports `core`.
Importing it costs no catalogue and no Babel: both are loaded when first needed.
"""

from afina.i18n.catalogue import LANGUAGE
from afina.i18n.negotiate import from_environment, negotiate
from afina.i18n.translator import Translator, translator

LANGUAGES: dict[str, str] = {code: language.name for code, language in LANGUAGE.items()}
"""Code → what its speakers call it, in the order of the language menu."""

__all__ = ["LANGUAGES", "Translator", "from_environment", "negotiate", "translator"]
