"""A few words for each kind of problem, where a whole sentence would be too much: lists to choose from, histories."""

from __future__ import annotations

from afina.core.messages import N_, Message

TITLES: dict[str, str] = {
    "not_utf8": N_("Not text in UTF-8"),
    "bad_json": N_("Broken JSON"),
    "bad_csv": N_("Broken table rows"),
    "bad_parquet": N_("Damaged table file"),
    "bad_archive": N_("Damaged file"),
    "row_too_big": N_("Rows too big to read"),
    "mixed_formats": N_("Rows of another form"),
    "missing_field": N_("Missing fields"),
    "wrong_type": N_("Values of the wrong kind"),
    "unknown_role": N_("Unknown roles"),
    "no_answer": N_("Rows without an answer"),
    "empty_answer": N_("Empty answers"),
    "empty_prompt": N_("Empty questions"),
    "bad_turn_order": N_("Turns out of order"),
    "stray_text": N_("Text outside any example"),
    "too_long": N_("Rows that are too long"),
    "duplicate": N_("Repeated rows"),
    "near_duplicate": N_("Almost repeated rows"),
    "leak": N_("Rows that are in the validation dataset too"),
    "few_rows": N_("Few rows"),
    "constant_answer": N_("The same answer again and again"),
    "template_mismatch": N_("Rows that do not fit the chat template"),
    "secret": N_("Secrets such as keys and passwords"),
    "personal_data": N_("Personal data"),
    "language": N_("Languages"),
}


def title(code: str) -> Message:
    """What a person calls problems of this code; the code itself where nobody has said."""
    return Message(TITLES.get(code, "{code}"), {"code": code})
