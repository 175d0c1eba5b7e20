"""Tokens that are kept: the same as made anew, made again when anything they depend on changes or is damaged, bounded."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from afina.core.parsing import parse_spec
from afina.core.spec import TrainSpec
from afina.data import revision
from afina.data.examples import Example, Turn
from afina.data.split import sides, split
from afina.data.template import ChatTokenizer
from afina.engine import tables, tokens
from afina.engine.tokens import Source, everything
from tests import tiny

DATED = (
    "{%- if strftime_now is defined %}{% set today = strftime_now('%d %b %Y') %}{% endif %}"
    "{{ today }}{% for message in messages %}{{ '<|im_start|>' + message['content'] + '<|im_end|>' }}{% endfor %}"
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny.build_tokenizer(tmp_path / "model")
    return tmp_path / "model"


def rows(count: int, first: int = 0) -> list[Example]:
    """Conversations of several lengths, each fifth equal to the first, and two documents longer than a piece."""
    made = []
    for number in range(first, first + count):
        said = f"number {number % 5 and number} " * (1 + number % 7)
        made.append(Example((Turn("user", said), Turn("assistant", f"It is {said}")), row=number + 1))
    made[3:3] = [Example(text="one two three four " * 40), Example(text="Bondia, diak ka lae? " * 31)]
    return made


def spec(**settings: Any) -> TrainSpec:
    return parse_spec({"model": "m", "dataset": "d", "max_length": 40, **settings})


class Counted(list[Example]):
    """Examples that know how often they were gone through."""

    times = 0

    def __iter__(self) -> Iterator[Example]:
        self.times += 1
        return super().__iter__()


def read(
    folder: Path, cache: Path | None, source: Source, now: datetime | None = None, **settings: Any
) -> tokens.Tokens:
    return tokens.read([source], ChatTokenizer.load(folder, now=now), spec(**settings), cache)


def plain(found: tokens.Tokens) -> tuple[Any, ...]:
    """Everything in a form that can be compared."""
    items = [[(item.ids.tolist(), item.mask.tolist()) for item in each] for each in (found.train, found.validation)]
    return (*items, found.parts, list(found.held), found.cut, found.cut_answer, found.cut_rows, found.empty)


def test_kept_tokens_are_those_that_are_made(folder: Path, tmp_path: Path) -> None:
    """A mix of two datasets and a validation dataset, by hand, without a cache, into the cache, and out of it."""
    settings = spec(max_length=40)
    chat = ChatTokenizer.load(folder)
    first, second, own = Counted(rows(40)), Counted(rows(30, 100)), Counted(rows(5, 300))
    share = partial(sides, share=0.2, seed=7)
    sources = [Source(first, 1.0, share, "a"), Source(second, 0.5, share, "b"), Source(own, held=everything, name="c")]
    made = plain(tokens.read(sources, chat, settings, None))
    wrote = plain(tokens.read(sources, chat, settings, tmp_path / "cache"))
    assert [each.times for each in (first, second, own)] == [2, 2, 2]
    kept = plain(tokens.read(sources, chat, settings, tmp_path / "cache"))
    assert [each.times for each in (first, second, own)] == [2, 2, 2], "nothing is read again"
    assert made == wrote == kept

    def encoded(examples: list[Example]) -> list[Any]:
        return [each for one in examples for each in chat.encode_all(one, max_length=40)]

    halves = [split(each, 0.2, 7) for each in (first, second)]
    train = [encoded(half[0]) for half in halves]
    held = [*halves[0][1], *halves[1][1], *own]
    assert made[0] == [(one.ids, one.mask) for each in train for one in each if one.learned]
    assert made[1] == [(one.ids, one.mask) for one in encoded(held) if one.learned]
    assert made[2] == [
        tokens.Part(sum(one.learned > 0 for one in each), w) for each, w in zip(train, (1, 0.5), strict=True)
    ]
    assert made[3] == held
    every = [one for each in train for one in each]
    assert made[4:] == (
        sum(one.cut for one in every),
        sum(one.cut_answer for one in every),
        sum(one.cut > 0 for one in every),
        sum(not one.learned for one in every),
    )
    assert made[4] > 0
    assert made[7] > 0


def test_another_split_encodes_nothing_anew(folder: Path, tmp_path: Path) -> None:
    examples = Counted(rows(60))
    found = [
        plain(read(folder, tmp_path, Source(examples, held=partial(sides, share=0.2, seed=seed), name="a")))
        for seed in (1, 2)
    ]
    assert examples.times == 1
    assert found[0][1] != found[1][1]


@pytest.mark.parametrize(
    "changed",
    ["content", "tokenizer", "template", "date", "max_length", "train_on", "system_prompt", "rules", "format"],
)
def test_a_change_of_any_part_makes_other_tokens(
    folder: Path, tmp_path: Path, changed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(folder)
    tiny.build_tokenizer(folder, DATED)
    cache, now = tmp_path / "cache", datetime(2026, 11, 24, 9)
    first, second = Counted(rows(20)), Counted(rows(20, 50))
    before = plain(read(folder, cache, Source(first, name="a"), now))
    assert plain(read(folder, cache, Source(second, name="a"), now.replace(hour=21))) == before, "the same day"
    assert second.times == 0
    settings: dict[str, Any] = {
        "max_length": {"max_length": 30},
        "train_on": {"train_on": "all"},
        "system_prompt": {"system_prompt": "Be short."},
    }.get(changed, {})
    if changed == "tokenizer":
        file = folder / "tokenizer.json"
        table = json.loads(file.read_text())
        table["model"]["merges"] = table["model"]["merges"][:10]
        file.write_text(json.dumps(table))
    elif changed == "template":
        shutil.rmtree(folder)
        tiny.build_tokenizer(folder)
    elif changed == "rules":
        monkeypatch.setattr("afina.data.template.TOKENS", revision.TOKENS + 1)
    elif changed == "format":
        monkeypatch.setattr(tokens, "FORMAT", tables.FORMAT + 1)
    day = now.replace(day=25) if changed == "date" else now
    after = plain(read(folder, cache, Source(second, name="b" if changed == "content" else "a"), day, **settings))
    assert second.times == 1
    assert after == plain(read(folder, None, Source(second), day, **settings)) != before


def test_a_template_that_hides_its_pattern_is_never_taken_for_another_moment() -> None:
    now = datetime(2026, 11, 24, 9, 30)
    dates = ["{{ strftime_now('%d') }}", "{% set f = strftime_now %}{{ f('%H:%M') }}", "{{ 1 }}"]
    from afina.data.jinja import Template

    assert [Template(source, {}, now).dates() for source in dates] == [["24"], [now.isoformat()], []]


DAMAGE = {
    "cut short": lambda table: (table / "ids.bin").write_bytes((table / "ids.bin").read_bytes()[:-4]),
    "a bit": lambda table: (table / "mask.bin").write_bytes(b"\1" + (table / "mask.bin").read_bytes()[1:]),
    "a column": lambda table: (table / "ends.bin").unlink(),
    "no manifest": lambda table: (table / "manifest.json").unlink(),
    "half a manifest": lambda table: (table / "manifest.json").write_text('{"format": 1, "columns"'),
    "another manifest": lambda table: (table / "manifest.json").write_text("[]"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_table_is_made_again(folder: Path, tmp_path: Path, damage: str) -> None:
    examples, cache = Counted(rows(20)), tmp_path / "cache"
    wanted = plain(read(folder, cache, Source(examples, name="a")))
    (table,) = cache.iterdir()
    DAMAGE[damage](table)
    for _ in range(2):
        assert plain(read(folder, cache, Source(examples, name="a"))) == wanted
    assert examples.times == 2, "made once more, then found"
    assert [path.name for path in cache.iterdir()] == [table.name]


def test_without_a_place_to_keep_them_tokens_are_made_in_memory(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    made = plain(read(folder, None, Source(rows(20))))
    assert plain(read(folder, tmp_path / "file", Source(rows(20), name="a"))) == made


def test_two_processes_may_write_the_same_table(folder: Path, tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from tests.engine.test_tokens import *\n"
        "found = plain(read(Path(sys.argv[1]), Path(sys.argv[2]), Source(rows(400), name='a')))\n"
        "print(hashlib.sha256(repr(found).encode()).hexdigest())"
    )
    command = [sys.executable, "-c", program, str(folder), str(tmp_path / "cache")]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    told = [process.communicate(timeout=120)[0].strip() for process in both]
    wanted = hashlib.sha256(repr(plain(read(folder, None, Source(rows(400))))).encode()).hexdigest()
    assert told == [wanted] * 3
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_the_least_recently_used_go_first(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def use(name: str) -> None:
        read(folder, tmp_path / "cache", Source(rows(20), name=name))

    def kept() -> int:
        return len([path for path in (tmp_path / "cache").iterdir() if not path.name.startswith(".")])

    use("a")
    (first,) = (tmp_path / "cache").iterdir()
    size = sum(file.stat().st_size for file in first.iterdir())
    make = tables.Cache.__init__
    monkeypatch.setattr(tables.Cache, "__init__", lambda self, folder: make(self, folder, int(2.5 * size)))
    use("b")
    use("a")
    use("c")
    assert kept() == 2
    assert first.is_dir(), "b was used longest ago"
    monkeypatch.setattr(tables.Cache, "__init__", lambda self, folder: make(self, folder, 10))
    use("c")
    assert kept() == 1, "what is in use stays, however large"


def test_memory_does_not_grow_with_the_rows(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of Python's and numpy's memory beyond the keys and numbers of the rows; the tokens lie on disk."""
    monkeypatch.setattr(tokens, "ROWS_AT_ONCE", 50)
    chat = ChatTokenizer.load(folder)

    def peak(count: int) -> int:
        cache = tables.Cache(tmp_path / str(count))
        examples = (Example((Turn("user", f"{n}"), Turn("assistant", f"It is {n}. " * 9))) for n in range(count))
        tracemalloc.start()
        cache.table("a", lambda: tokens._chunks(examples, chat, spec(max_length=400)))
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    peak(50)
    assert peak(1000) < 1.2 * peak(200)


def test_the_tokens_are_those_of_this_revision(folder: Path) -> None:
    """When this fails on purpose, raise `TOKENS` in data/revision.py too: kept tokens are then made anew."""
    found = read(folder, None, Source(rows(20), held=partial(sides, share=0.2, seed=1)), system_prompt="Be short.")
    digest = hashlib.sha256(repr(plain(found)[:2]).encode()).hexdigest()
    assert (revision.TOKENS, digest[:16]) == (1, "4f7308f69bd785fb")
