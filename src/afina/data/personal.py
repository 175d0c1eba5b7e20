"""Personal data in texts: e-mail addresses, telephone numbers, bank accounts and cards. Checked by form and, where there
is one, by check digits; what cannot be told from any other number is let pass.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from afina.core.messages import N_

EMAIL = N_("an e-mail address")
PHONE = N_("a telephone number")
CARD = N_("a card number")
ACCOUNT = N_("a bank account number")

_EMAIL = re.compile(r"(?<![\w.+-])(\w[\w.+-]{0,62})@((?:[A-Za-z0-9-]{1,63}\.)+[A-Za-z]{2,24})(?![\w@-])")
_MADE_UP = re.compile(
    r"(?:^|\.)(?:example|test|invalid|localhost|domain|yourdomain|mydomain|company|yourcompany|abc|xyz|email|mail)\.",
    re.I,
)
_NOBODY = re.compile(
    r"(?:no-?reply|do-?not-?reply|info|support|contact|help|sales|admin|office|hello|team|press|jobs|careers|service|"
    r"customer[\w.-]*|webmaster|example|user(?:name)?|name|your[\w.-]*|my[\w.-]*|email|someone|john\.?doe|jane\.?doe|"
    r"johndoe\d*|janedoe\d*|first\.?last|firstname[\w.]*|test\w*|abc\w*|xyz\w*|git)",
    re.I,
)
_PHONE = re.compile(r"(?<![\w+/.=-])\+([1-9]\d{0,2})[ .-]?((?:\(?\d{1,5}\)?[ .-]?){2,6})(?![\w+*/=-])")
_CARD = re.compile(
    r"(?<![\w.,/=-])(?:[3-6]\d{3}([ -]?)\d{4}\1\d{4}\1\d{4}|3[47]\d{2}([ -]?)\d{6}\2\d{5})(?![\w/-]|[.,]\d)"
)
_ACCOUNT = re.compile(r"\b([A-Z]{2}\d{2})[ ]?((?:[A-Z0-9]{4}[ ]?){2,7}[A-Z0-9]{1,4})\b")
_DIGITS = re.compile(r"[0-9][0-9][ -]?[0-9][0-9][0-9][0-9]")
"""What every card and account number holds; quick to look for."""
_CODE_LIST = (
    "1 7 20 27 30 31 32 33 34 36 39 40 41 43 44 45 46 47 48 49 51 52 53 54 55 56 57 58 60 61 62 63 64 65 66 81 82 "
    "84 86 90 91 92 93 94 95 98 211 212 213 216 218 220 221 222 223 224 225 226 227 228 229 230 231 232 233 234 "
    "235 236 237 238 239 240 241 242 243 244 245 246 248 249 250 251 252 253 254 255 256 257 258 260 261 262 263 "
    "264 265 266 267 268 269 290 291 297 298 299 350 351 352 353 354 355 356 357 358 359 370 371 372 373 374 375 "
    "376 377 378 380 381 382 383 385 386 387 389 420 421 423 500 501 502 503 504 505 506 507 508 509 590 591 592 "
    "593 594 595 596 597 598 599 670 672 673 674 675 676 677 678 679 680 681 682 683 685 686 687 688 689 690 691 "
    "692 850 852 853 855 856 880 886 960 961 962 963 964 965 966 967 968 970 971 972 973 974 975 976 977 992 993 "
    "994 995 996 998"
)
_CODES = frozenset(_CODE_LIST.split())
"""Country codes of the international telephone plan (ITU-T E.164)."""


def find_personal(text: str) -> str | None:
    """What kind of personal data `text` holds (one of the constants above, to be translated), None when it shows none."""
    return next((kind for _, _, kind in personal_in(text)), None)


def personal_in(text: str) -> Iterator[tuple[int, int, str]]:
    """Where personal data stand in `text` and of what kind they are; places of different kinds may overlap."""
    if "@" in text:
        yield from (_place(found, EMAIL) for found in _EMAIL.finditer(text) if _somebody(*found.groups()))
    if "+" in text:
        yield from (_place(found, PHONE) for found in _PHONE.finditer(text) if _telephone(*found.groups()))
    if _DIGITS.search(text) is not None:
        yield from (_place(found, CARD) for found in _CARD.finditer(text) if _luhn(found.group()))
        yield from (_place(found, ACCOUNT) for found in _ACCOUNT.finditer(text) if _iban(*found.groups()))


def _place(found: re.Match[str], kind: str) -> tuple[int, int, str]:
    return found.start(), found.start() + len(found.group().rstrip(" .-(")), kind


def _somebody(name: str, place: str) -> bool:
    """Whether an address may belong to a person: not made up for an example, not that of an office."""
    return _MADE_UP.search(place) is None and _NOBODY.fullmatch(name) is None


def _telephone(code: str, rest: str) -> bool:
    digits = re.sub(r"\D", "", code + rest)
    known = any(digits[:length] in _CODES for length in (1, 2, 3))
    invented = "555" in digits[1:7] or len(set(digits[-7:])) < 3 or "1234567" in digits
    return known and 9 <= len(digits) <= 15 and not invented


def _luhn(text: str) -> bool:
    digits = [int(character) for character in text if character.isdigit()]
    if len(set(digits)) < 4:
        return False
    doubled = [sum(divmod(2 * digit, 10)) for digit in digits[-2::-2]]
    return (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0 and "".join(map(str, digits)) not in _PUBLISHED


_PUBLISHED = frozenset(
    [
        "4111111111111111",
        "4242424242424242",
        "5555555555554444",
        "378282246310005",
        "4012888888881881",
        "4532015112830366",
    ]
)
"""Numbers that payment services publish for trying things out."""


def _iban(start: str, rest: str) -> bool:
    """ISO 13616: moved to the end and written as numbers, the whole leaves 1 when divided by 97."""
    plain = rest.replace(" ", "") + start
    return 15 <= len(plain) <= 34 and int("".join(str(int(c, 36)) for c in plain)) % 97 == 1
