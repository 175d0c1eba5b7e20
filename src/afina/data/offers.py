"""What one press can do about each kind of problem: the ways, what a button says, what will happen. Does nothing itself.

`WAYS` says for every code which ways there are, the recommended one first. A code that is not there has no remedy that a
program should choose for a person.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from afina.core.messages import N_, Message, say
from afina.data.masks import INSTEAD, SECRET
from afina.data.personal import EMAIL

Way = Literal["drop", "leave_out", "join", "map", "convert", "shorten", "thin", "mask"]

BUTTONS: dict[Way, str] = {
    "drop": N_("Remove these rows"),
    "leave_out": N_("Leave out what cannot be read"),
    "join": N_("Join the turns"),
    "map": N_("Rename the roles"),
    "convert": N_("Write all rows as conversations"),
    "shorten": N_("Shorten these rows"),
    "thin": N_("Keep some of them"),
    "mask": N_("Replace what was found"),
}
"""What the button says."""

CONSEQUENCES: dict[Way, str] = {
    "drop": N_("Rows that will be removed: {count}. All other rows stay as they are."),
    "leave_out": N_("What cannot be read is left out, places: {count}. All rows that can be read stay."),
    "join": N_("Turns of one side in a row become one, and turns without a partner go. Rows: {count}."),
    "map": N_(
        "Roles are renamed to user, assistant, system or tool, by their name or by whose turn it is. Rows: {count}."
    ),
    "convert": N_("Rows of another form are written as the others are. Rows: {count}."),
    "shorten": N_("The ends of these rows are cut so that they fit. Rows: {count}."),
    "thin": N_("As many of the equal answers stay as there are other answers; the rest of the rows is removed."),
    "mask": N_("What was found is replaced by a word such as {instead}; all else in these rows stays. Rows: {count}."),
}
"""What will happen, before it does."""

WAYS: dict[str, tuple[Way, ...]] = {
    **dict.fromkeys(("bad_json", "bad_csv", "not_utf8", "row_too_big", "bad_archive", "stray_text"), ("leave_out",)),
    **dict.fromkeys(("missing_field", "wrong_type", "no_answer", "empty_answer", "empty_prompt"), ("drop",)),
    **dict.fromkeys(("duplicate", "near_duplicate", "leak", "template_mismatch"), ("drop",)),
    "mixed_formats": ("convert", "drop"),
    "unknown_role": ("map", "drop"),
    "bad_turn_order": ("join", "drop"),
    "too_long": ("shorten", "drop"),
    "constant_answer": ("thin",),
    "secret": ("mask", "drop"),
    "personal_data": ("mask", "drop"),
}


@dataclass(frozen=True)
class Offer:
    """A way to deal with a group of problems: what the button says and what will happen."""

    way: Way
    button: Message
    consequence: Message


def offers(code: str, count: int) -> list[Offer]:
    """The ways to deal with `count` findings of `code`, the recommended one first."""
    instead = SECRET if code == "secret" else INSTEAD[EMAIL]
    said = {way: say(CONSEQUENCES[way], count=count, instead=instead) for way in WAYS.get(code, ())}
    return [Offer(way, Message(BUTTONS[way]), words) for way, words in said.items()]
