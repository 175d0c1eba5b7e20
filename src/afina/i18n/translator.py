"""One language's way of writing: texts, numbers, dates, durations, sizes.

Knows nothing of HTTP or terminals. Numbers and dates come from Babel; month names in Tetum, which Babel lacks, are here.
"""

from __future__ import annotations

import datetime as clock
import math
from collections.abc import Mapping, Sequence
from typing import Any

from afina.core.messages import N_, Message
from afina.i18n.catalogue import LANGUAGE, Catalogue, Language, catalogue

TETUM_MONTHS = ("Jan", "Fev", "Mar", "Abr", "Mai", "Juñ", "Jul", "Ago", "Set", "Out", "Nov", "Dez")
_SIZES = ((10**12, "TB"), (10**9, "GB"), (10**6, "MB"), (10**3, "kB"))


class Translator:
    """Writes for readers of one language. Cheap to make; the catalogue behind it is read once a process.

    `lang` is the code (tet, pt, id, en), `name` what its speakers call it.
    """

    def __init__(self, language: Language) -> None:
        self._language = language
        self.lang = language.code
        self.name = language.name

    @property
    def _texts(self) -> Catalogue:
        return catalogue(self.lang)

    def gettext(self, text: str, /, **values: Any) -> str:
        """The text in this language; named values, if any, are written as `write` would."""
        translated = self._texts.texts.get(text, text)
        return (
            translated.format_map({name: self.show(value) for name, value in values.items()}) if values else translated
        )

    def ngettext(self, one: str, many: str, n: float, /, **values: Any) -> str:
        """The text that goes with `n` things; `{n}` in it becomes the number."""
        forms = self._texts.plurals.get(one)
        text = forms[self._language.form(n)] if forms else (one if n == 1 else many)
        return text.format_map({"n": self.number(n), **{name: self.show(value) for name, value in values.items()}})

    def write(self, message: Message | Mapping[str, Any] | str) -> str:
        """A `Message`, or its JSON form (`template`, `values`) from an event log, as a finished sentence.

        A template whose translation names a value that is missing falls back to the English sentence rather than fail:
        a run's log may be older than the catalogue.
        """
        if isinstance(message, str):
            return self.gettext(message)
        template, values = (
            (message.template, message.values)
            if isinstance(message, Message)
            else (message["template"], message.get("values", {}))
        )
        shown = {name: self.show(value) for name, value in values.items()}
        try:
            return self.gettext(template).format_map(shown)
        except (KeyError, IndexError, ValueError):
            return (
                Message(template, dict(values)).text()
                if isinstance(message, Message)
                else str(message.get("text", template))
            )

    def show(self, value: Any) -> str:
        """A value inside a sentence: numbers in the locale, lists with commas, messages translated, the rest as it is."""
        if isinstance(value, Message) or (isinstance(value, Mapping) and "template" in value):
            return self.write(value)
        if value is None:
            return "–"
        if isinstance(value, bool):
            return self.gettext(N_("yes")) if value else self.gettext(N_("no"))
        if isinstance(value, int | float):
            return self.number(value)
        if isinstance(value, Sequence) and not isinstance(value, str | bytes):
            return ", ".join(self.show(item) for item in value)
        return str(value)

    def number(self, x: float | None, digits: int | None = None) -> str:
        """A number in the locale. `digits` fixes the decimals; without it whole numbers stay whole and others keep
        four significant figures, small ones in scientific notation below 0.00001."""
        if x is None or not math.isfinite(x):
            return "–" if x is None or math.isnan(x) else ("∞" if x > 0 else "−∞")
        from babel.numbers import format_decimal, format_scientific

        locale = self._language.locale
        if digits is None and isinstance(x, float) and not x.is_integer():
            exponent = math.floor(math.log10(abs(x)))
            if exponent < -5:
                return str(format_scientific(float(f"{x:.3g}"), "0.##E0", locale=locale))
            return str(format_decimal(x, "#,##0." + "#" * max(1, 3 - exponent), locale=locale))
        places = digits or 0
        return str(format_decimal(x, "#,##0" + ("." + "0" * places if places else ""), locale=locale))

    def percent(self, share: float | None, digits: int = 1) -> str:
        """A share (0 to 1) as a percentage; at most `digits` decimals."""
        if share is None or not math.isfinite(share):
            return "–"
        from babel.numbers import format_percent

        return str(
            format_percent(share, "#,##0" + ("." + "#" * digits if digits else "") + "%", locale=self._language.locale)
        )

    def date(self, timestamp: float | None) -> str:
        """A day, from seconds since 1970, in the machine's time zone, short enough for a table: “23 Nov 2026”."""
        if timestamp is None:
            return "–"
        moment = clock.datetime.fromtimestamp(timestamp).astimezone()
        if self.lang == "tet":
            return f"{moment.day} {TETUM_MONTHS[moment.month - 1]} {moment.year}"
        from babel.dates import format_date

        return str(format_date(moment, "d MMM y", locale=self._language.locale))

    def datetime(self, timestamp: float | None) -> str:
        """Day and time, in 24 hours."""
        if timestamp is None:
            return "–"
        moment = clock.datetime.fromtimestamp(timestamp).astimezone()
        return (
            f"{self.date(timestamp)}, {moment:%H.%M}"
            if self.lang == "id"
            else f"{self.date(timestamp)}, {moment:%H:%M}"
        )

    def duration(self, seconds: float | None) -> str:
        """A length of time in its two largest units: “2 min 10 s”, “3 h 5 min”, “2 d”."""
        if seconds is None or not math.isfinite(seconds):
            return "–"
        whole = max(0, round(seconds))
        if whole == 0:
            return self.gettext(N_("{n} s"), n=round(max(seconds, 0.0), 1))
        parts = (
            (N_("{n} d"), whole // 86400),
            (N_("{n} h"), whole // 3600 % 24),
            (N_("{n} min"), whole // 60 % 60),
            (N_("{n} s"), whole % 60),
        )
        first = next(place for place, (_, n) in enumerate(parts) if n)
        return " ".join(self.gettext(text, n=n) for text, n in parts[first : first + 2] if n)

    def size(self, size: float | None) -> str:
        """Bytes as B, kB, MB, GB or TB (powers of 1000, as disks are sold), three significant figures at most."""
        if size is None:
            return "–"
        for factor, unit in _SIZES:
            if size >= factor * 0.9995:
                value = size / factor
                return f"{self.number(value, 0 if value >= 99.95 else 1)} {unit}"
        return f"{self.number(int(size))} B"


_TRANSLATORS = {code: Translator(language) for code, language in LANGUAGE.items()}


def translator(lang: str) -> Translator:
    """The translator of a language code; English for a code that is not ours."""
    return _TRANSLATORS.get(lang, _TRANSLATORS["en"])
