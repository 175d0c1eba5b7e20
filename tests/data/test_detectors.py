"""Near duplicates, secrets, personal data and languages: what is found, and above all what is not."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from afina.data.checks import check
from afina.data.language import NAMES, find_language
from afina.data.masks import masked
from afina.data.personal import ACCOUNT, CARD, EMAIL, PHONE, find_personal
from afina.data.report import unpack
from afina.data.secret import find_secret
from tests.data.test_checks import DEMO, by_code, rows, write

LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"


def noise(length: int, letters: str = LETTERS, seed: int = 5) -> str:
    return "".join(random.Random(seed).choices(letters, k=length))


SECRETS = [
    ("AKIA" + noise(16, "ABCDEFGHJKLMNPQRSTUVWXYZ234567"), "AWS Access Key"),
    ("token ghp_" + noise(36), "GitHub Token"),
    ("glpat-" + noise(20), "GitLab Token"),
    ("sk-" + noise(20) + "T3BlbkFJ" + noise(20, seed=6), "OpenAI Token"),
    ("sk-ant-api03-" + noise(80), "Anthropic key"),
    ("hf_" + noise(34, LETTERS[:52]), "Hugging Face token"),
    ("AIza" + noise(35), "Google API key"),
    ("sk" + "_live_" + noise(24), "Stripe Access Key"),
    ("SG." + noise(22) + "." + noise(43), "SendGrid API Key"),
    ("xoxb-" + noise(12, "0246813579") + "-" + noise(24, "qwertzuiop"), "Slack Token"),
    ("-----BEGIN RSA PRIVATE " + "KEY-----\n" + "\n".join(noise(64, seed=n) for n in range(4)), "Private Key"),
]


@pytest.mark.parametrize(("text", "kind"), SECRETS, ids=[kind for _, kind in SECRETS])
def test_secrets(text: str, kind: str) -> None:
    assert find_secret(f"Here it is: {text} and more.") == kind


@pytest.mark.parametrize(("text", "kind"), SECRETS, ids=[kind for _, kind in SECRETS])
def test_no_part_of_a_secret_stays_where_it_is_masked(text: str, kind: str) -> None:
    left = masked(f"Here it is: {text} and more.", "secret").replace("token ", "")
    assert left == "Here it is: [SECRET] and more."


def test_long_secrets_are_masked_to_their_end() -> None:
    body = "\n".join(noise(64, seed=n) for n in range(40)) + "\n" + noise(20) + "=="
    key = f"-----BEGIN PRIVATE {'KEY'}-----\n{body}\n-----END PRIVATE {'KEY'}-----"
    assert masked(f"My key:\n{key}\nKeep it.", "secret") == "My key:\n[SECRET]\nKeep it."
    header = "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9"
    token = f"{header}.eyJzdWIiOiI5ODQyMTciLCJuYW1lIjoiTWFyaWEifQ.{noise(2000)}"
    assert find_secret(token)
    assert masked(f"Bearer {token}. Thanks.", "secret") == "Bearer [SECRET]. Thanks."
    many = " ".join("ghp_" + noise(36, seed=n) for n in range(80))
    assert masked(many, "secret") == " ".join(["[SECRET]"] * 80)


def test_personal_data_are_masked_each_by_its_word() -> None:
    text = "maria.soares@gmail.com, +670 7723 4581, 4539 1488 0343 6467, DE89 3704 0044 0532 0130 00 or info@school.tl"
    assert masked(text, "personal_data") == "[EMAIL], [PHONE], [CARD], [ACCOUNT] or info@school.tl"
    assert masked("Nobody’s.", "personal_data") == "Nobody’s."


@pytest.mark.parametrize(
    "text",
    [
        "AKIAIOSFODNN7EXAMPLE",
        "ghp_xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx",
        "Put sk-your-key-here into the file.",
        "password = 'hunter2'",
        "BEGIN PRIVATE KEY marks where a key begins.",
        "da39a3ee5e6b4b0d3255bfef95601890afd80709",
        "550e8400-e29b-41d4-a716-446655440000",
        "eyJ is how a token begins.",
    ],
)
def test_what_is_no_secret(text: str) -> None:
    assert find_secret(text) is None


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("Write to maria.soares@gmail.com today.", EMAIL),
        ("Call +670 7723 4581 in the morning.", PHONE),
        ("+62 812-9456-7721", PHONE),
        ("Paid with 4539 1488 0343 6467.", CARD),
        ("IBAN DE89 3704 0044 0532 0130 00", ACCOUNT),
    ],
)
def test_personal_data(text: str, kind: str) -> None:
    assert find_personal(text) == kind


@pytest.mark.parametrize(
    "text",
    [
        "user@example.com, noreply@shop.tl, info@school.tl, yourname@email.com",
        "f(x) = x + 12 345 678 and 1 + 2 = 3",
        "4539 1488 0343 6468 has a wrong check digit; 1234 5678 9012 3456 too",
        "ISBN 978-3-16-148410-0, in 1999, 2002 and 2026, 20261124-1030",
        "DE00 3704 0044 0532 0130 00 leaves another remainder.",
        "@app.route and a@b and git@github.com:owner/name.git",
        "+1 (555) 123-4567 is invented.",
    ],
)
def test_what_is_no_personal_data(text: str) -> None:
    assert find_personal(text) is None


SENTENCES = {
    "tet": [
        "Ha'u hakarak aprende lian Inglés tanba ha'u presiza servisu iha Dili.",
        "Uma ne'e boot tebes, maibé ema la hela iha ne'ebá ona.",
        "Sira la'o ba eskola dadeer-dadeer ho sira-nia inan.",
        "Oinsá mak ita bele halo kafé di'ak?",
        "Governu sei loke dalan foun iha fulan oin.",
    ],
    "pt": [
        "O café cresce nas montanhas e a colheita começa em junho.",
        "Não sei se ele vem hoje, mas vou perguntar-lhe.",
        "Escreva uma carta curta para os seus avós.",
        "As crianças brincam na praia depois da escola.",
        "Qual é a melhor forma de poupar água em casa?",
    ],
    "id": [
        "Kopi tumbuh di pegunungan dan dipanen pada bulan Juni.",
        "Saya tidak tahu apakah dia akan datang hari ini.",
        "Tuliskan surat pendek untuk kakek dan nenekmu.",
        "Anak-anak bermain di pantai setelah pulang sekolah.",
        "Bagaimana cara terbaik untuk menghemat air di rumah?",
    ],
    "en": [
        "Coffee grows in the mountains and the harvest begins in June.",
        "I do not know whether he will come today, but I shall ask him.",
        "Write a short letter to your grandparents.",
        "What is the best way to save water at home?",
        "The children play on the beach after school.",
    ],
    "other": [
        "Los niños juegan en la playa después de la escuela y luego hacen los deberes.",
        "Je ne sais pas si elle viendra aujourd'hui, mais je vais lui demander.",
        "Ich weiß nicht, ob er heute kommt, aber ich werde ihn fragen.",
        "Кофе растёт в горах, и урожай начинается в июне.",
    ],
}


@pytest.mark.parametrize("language", SENTENCES)
def test_languages_of_sentences(language: str) -> None:
    assert [find_language(sentence) for sentence in SENTENCES[language]] == [language] * len(SENTENCES[language])


@pytest.mark.parametrize(
    "text", ["", "12 + 30 = 42", "Dili", "def f(x): return x ** 2", "```python\nfor the in of\n```"]
)
def test_no_language_in_particular(text: str) -> None:
    assert find_language(text) is None


def test_the_languages_of_a_dataset(tmp_path: Path) -> None:
    said = [SENTENCES["tet"][n % 5] for n in range(61)] + [SENTENCES["pt"][n % 5] for n in range(30)]
    said += [SENTENCES["en"][n % 5] for n in range(9)]
    path = write(tmp_path / "rows.jsonl", [{"prompt": f"{n}.", "completion": text} for n, text in enumerate(said)])
    report = check(path)
    [note] = report.notes
    assert (note.code, note.severity) == ("language", "note")
    assert str(note.message) == "61 % Tetum, 30 % Portuguese, 9 % English."
    assert report.ok
    assert unpack(json.loads(json.dumps(report.pack()))) == report


LONG = "Coffee in Timor-Leste grows above all in the mountains of Ermera, under tall trees that give shade to the plants, and it is picked by hand."


def test_near_duplicates(tmp_path: Path) -> None:
    data = rows(60)
    data[10] = {
        "instruction": "Tell me about coffee, please.",
        "output": f"{LONG} {LONG.upper()} Most of it is sold abroad.",
    }
    data[40] = {
        "instruction": "Tell me about coffee, please.",
        "output": f"{LONG} {LONG.upper()} Most of it is sold overseas.",
    }
    data[50] = dict(data[10])
    report = check(write(tmp_path / "rows.jsonl", data))
    found = by_code(report.warnings)
    assert found["duplicate"].rows == [51]
    assert (found["near_duplicate"].rows, found["near_duplicate"].lines) == ([41], [41])
    assert str(found["near_duplicate"].message) == "Row 41 says nearly the same as row 11."
    assert found["near_duplicate"].excerpts[0].startswith("Tell me about coffee")


def test_rows_made_from_one_mould_are_no_near_duplicates(tmp_path: Path) -> None:
    words = [noise(7, LETTERS[:26], seed) for seed in range(400)]
    data = [
        {
            "instruction": f"Write the word {a} in the plural and use it.",
            "output": f"The plural of {a} is {a}s. I saw {b} {a}s today.",
        }
        for a, b in zip(words[::2], words[1::2], strict=True)
    ]
    assert check(write(tmp_path / "rows.jsonl", data)).warnings == []


def test_many_repeated_rows_are_all_counted(tmp_path: Path) -> None:
    report = check(write(tmp_path / "rows.jsonl", rows(50) * 3))
    group = by_code(report.warnings)["duplicate"]
    assert (group.count, group.rows) == (100, list(range(51, 71)))
    assert str(group.message) == "100 rows repeat an earlier row (e.g. row 51 = row 1)."
    assert list(report.marks["duplicate"]) == list(range(51, 151))


def test_a_secret_is_named_but_not_repeated(tmp_path: Path) -> None:
    data = rows(60)
    data[19] = {"instruction": "My key?", "output": SECRETS[0][0]}
    data[20] = {"instruction": "My address?", "output": "maria.soares@gmail.com"}
    report = check(write(tmp_path / "rows.jsonl", data))
    found = by_code(report.warnings)
    assert str(found["secret"].message) == "Row 20 looks like it holds a password or key (AWS Access Key)."
    assert str(found["personal_data"].message) == "Row 21 looks like it holds an e-mail address."
    assert SECRETS[0][0] not in json.dumps(report.pack())


def test_no_false_alarm_on_a_real_dataset() -> None:
    report = check(DEMO)
    assert {group.code: group.count for group in report.warnings} == {"duplicate": 14}
    assert str(report.notes[0].message) == "100 % English."


MARKS = [
    "@",
    "+670 ",
    "7723",
    "4581",
    ".",
    "a@b.tl",
    "ghp_",
    "AKIA",
    "eyJ",
    "xoxb-1-",
    "SG.",
    "PRIVATE KEY-----",
    "DE89",
    "iha",
    " ",
    "ç",
    "ne'e",
]


@settings(max_examples=150, deadline=None)
@given(text=st.one_of(st.text(max_size=200), st.lists(st.sampled_from(MARKS), max_size=40).map("".join)))
def test_no_text_brings_a_detector_down(text: str) -> None:
    assert find_secret(text) is None or "ghp" in text or "AKIA" in text or "eyJ" in text or "xox" in text
    assert find_personal(text) in (None, EMAIL, PHONE, CARD, ACCOUNT)
    assert find_language(text) in (None, *NAMES)


@pytest.mark.parametrize(
    "unit",
    ["a@", "a.", "+1 ", "1234 ", "ghp_", "eyJa.", "//", "DE89 3704 ", "-----BEGIN PRIVATE KEY-----\n", "xoxb-1-"],
)
def test_detectors_take_no_longer_for_strange_texts(unit: str) -> None:
    text = unit * (1_000_000 // len(unit)) + ":_authToken="
    started = time.process_time()
    find_secret(text)
    find_personal(text)
    find_language(text)
    assert time.process_time() - started < 3
