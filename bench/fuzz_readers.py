"""Look for files that bring the readers and checks down, for a given time: with hypothesis, or guided by coverage with atheris.

    .venv/bin/python bench/fuzz_readers.py --engine hypothesis --minutes 10
    .venv/bin/python bench/fuzz_readers.py --engine atheris --minutes 10      # pip install atheris first; not part of the tests

Both begin with the broken files of the tests (`tests/data/corpus.py`) and change them. Whatever a file holds, `check` must
come back with a report that can be written as JSON; anything else ends the search and prints the file.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
NAMES = ["a.json", "a.jsonl", "a.csv", "a.tsv", "a.txt", "a.md", "a.gz", "a.parquet", "a"]
FRAGMENTS = r"""{"instruction": "a", "output": "b"}|{"messages": [|{"role": "user", "content": "x"}|{"role": "assistant", "content": |"weight": |"tool_calls": [
|"tools": [|{"from": "function_call", "value": "{\"name\": \"f\"}"}|{"from": "gpt", "value": "x"}|"conversations": [|"history": [["a", "b"]]|"chosen": |"rejected":
|[|]|{|}|,|"|\|:|null|true|1e999|-0|NaN|Infinity|9999999999999999999999|\ud800|\udc00|\u0000|Question: x|A:|Resposta:|Jawaban:|---|### Input|**A**|```|prompt,answer
|a;b;c|"a""b|text|é|maria@gmail.com|+670 7723 4581|4539 1488 0343 6467|eyJhbGciOiJIUzI1NiJ9.e30.x|ghp_|AKIA2E0A8F3B244C9986|xoxb-1-|SG.|hf_""".replace(
    "\n", ""
).split("|")
OTHERS = [b"\n", b"\r\n", b"\r", b"\0", b"\xff", b"\xef\xbb\xbf", b"\xff\xfe", "\u2028\x85".encode(), b"\t", b" " * 50]


def main() -> None:
    """Run one of the engines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", choices=["hypothesis", "atheris"], default="hypothesis")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=None, help="repeat an earlier search")
    asked = parser.parse_args()
    seed = asked.seed if asked.seed is not None else time.time_ns() % 1_000_000_007
    print(f"{asked.engine}, {asked.minutes:g} minutes, seed {seed}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        (with_hypothesis if asked.engine == "hypothesis" else with_atheris)(Path(folder), 60 * asked.minutes, seed)


def with_hypothesis(folder: Path, seconds: float, seed: int) -> None:
    """Mixtures of fragments and changed files, in rounds of 500, until the time is over."""
    from hypothesis import HealthCheck, given, settings
    from hypothesis import seed as seeded
    from hypothesis import strategies as st
    from tests.data.corpus import BROKEN

    small = [case[1] for case in BROKEN if len(case[1]) < 3000]
    pieces = st.one_of(
        st.sampled_from([fragment.encode() for fragment in FRAGMENTS] + OTHERS),
        st.binary(max_size=8),
        st.text(max_size=8).map(str.encode),
    )
    mixtures = st.lists(pieces, max_size=40).map(b"".join)
    changes = st.lists(st.tuples(st.floats(0, 1), st.integers(0, 40), pieces), min_size=1, max_size=6)
    changed = st.builds(change, st.sampled_from(small), changes)
    until, done = time.monotonic() + seconds, 0
    while time.monotonic() < until:

        @seeded(seed + done)
        @settings(max_examples=500, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        @given(content=st.one_of(mixtures, changed, st.binary(max_size=300)), name=st.sampled_from(NAMES))
        def harmless(content: bytes, name: str) -> None:
            if time.monotonic() < until:
                look(folder, content, name)

        harmless()
        done += 500
    print(f"no crash in {seconds / 60:g} minutes and about {done} files")


def change(content: bytes, changes: list[tuple[float, int, bytes]]) -> bytes:
    """`content` with pieces put in the place of what stands at some places."""
    for place, length, piece in changes:
        at = int(place * len(content))
        content = content[:at] + piece + content[at + length :]
    return content


def with_atheris(folder: Path, seconds: float, seed: int) -> None:
    """Bytes chosen by the branches they reach in this package."""
    import atheris

    with atheris.instrument_imports(include=["afina"]):
        from afina.data import checks, hub, mapping, readers, store  # noqa: F401  instrumented on the way in

    from tests.data.corpus import BROKEN

    seeds = folder / "seeds"
    seeds.mkdir()
    for number, case in enumerate(BROKEN):
        if len(case[1]) < 3000:
            (seeds / str(number)).write_bytes(bytes([number % len(NAMES)]) + case[1])
    words = folder / "words"
    words.write_text("".join(f'"{escaped(word.encode())}"\n' for word in FRAGMENTS if word))

    def one(data: bytes) -> None:
        if data:
            look(folder, data[1:], NAMES[data[0] % len(NAMES)])

    options = [
        f"-max_total_time={int(seconds)}",
        f"-seed={seed % 2**31}",
        "-max_len=4000",
        f"-dict={words}",
        "-timeout=60",
        "-rss_limit_mb=3000",
    ]
    atheris.Setup([sys.argv[0], *options, str(seeds)], one)
    atheris.Fuzz()


def escaped(word: bytes) -> str:
    """A word as libFuzzer's dictionaries write it."""
    return "".join(chr(byte) if 32 <= byte < 127 and byte not in b'"\\' else f"\\x{byte:02x}" for byte in word)


def look(folder: Path, content: bytes, name: str) -> None:
    """Check the file, and guess its columns; says what the file was when that fails."""
    from afina.data.checks import check
    from afina.data.mapping import guess_mapping

    path = folder / name
    path.write_bytes(content)
    started = time.process_time()
    try:
        json.dumps(check(path, workers=1).as_json())
        json.dumps(check(path, workers=1).pack())
        guess_mapping(path)
    except BaseException:
        print(f"\nFAILED: {name} {content!r}", flush=True)
        raise
    if time.process_time() - started > 20:
        print(f"\nSLOW: {name} {content!r}", flush=True)
        raise SystemExit(1)


if __name__ == "__main__":
    main()
