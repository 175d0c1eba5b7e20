#!/usr/bin/env python3
"""One command from a fresh checkout to a running Afina. Standard library only.

    python3 run.py              prepare everything, then open the pages
    python3 run.py setup        only prepare
    python3 run.py demo         tune the starter model on the sample, show answers before and after
    python3 run.py test         all that the checks run: lint, types, tests, browser tests

Each part that is done is remembered, so running it again goes on where it stopped. The syntax stays old on purpose: an
old Python must be able to read this far and say so.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
VENV = HERE / ".venv"
PYTHON = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
STAMP = VENV / "afina-installed.json"
LOG = VENV / "install.log"
NEEDED_BYTES = 4 * 10**9
DEMO_PROMPTS = ["What is a tais?", "Where does coffee grow in Timor-Leste?", "What does “obrigadu” mean?"]


class SetupError(Exception):
    """What went wrong and what to do, in one sentence each."""


def main() -> int:
    """Run one command; returns the exit code."""
    if sys.version_info < (3, 11):  # noqa: UP036 (this file is run by whatever Python is there)
        print(
            f"Afina needs Python 3.11 or newer; this is {platform.python_version()}. Install it and run this again with it."
        )
        return 2
    parser = argparse.ArgumentParser(
        description="Fine-tune open language models from a browser, on the machine you have."
    )
    parser.add_argument("command", nargs="?", default="serve", choices=["serve", "setup", "demo", "test"])
    parser.add_argument("--home", default=os.environ.get("AFINA_HOME") or str(Path.home() / "afina"))
    parser.add_argument("--port", type=int, default=None, help="the server's port")
    arguments, rest = parser.parse_known_args()
    if rest and arguments.command not in ("serve", "test"):
        parser.error("unknown arguments: " + " ".join(rest))
    home = Path(arguments.home).expanduser().absolute()
    try:
        prepare(home, "test" if arguments.command == "test" else "run")
        if arguments.command == "serve":
            return serve(home, arguments.port, rest)
        if arguments.command == "demo":
            return demo(home)
        if arguments.command == "test":
            return test(rest)
        print("Ready. Start the pages with:  python3 run.py")
        return 0
    except SetupError as trouble:
        print(f"\n{trouble}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nStopped. Run the same command again to go on.", file=sys.stderr)
        return 1


# ---------------------------------------------------------------- preparing


def prepare(home: Path, kind: str) -> None:
    """Environment, packages, starter model, samples; each skipped when it is there already."""
    make_environment()
    install(kind)
    try:
        (home / "training" / "datasets").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SetupError(
            f"The folder {home} cannot be made ({error.strerror}). Choose another with --home FOLDER."
        ) from None
    step("starter model")
    done = afina(["models", "add", "starter"], home)
    if done.wait() != 0:
        raise SetupError("The starter model could not be prepared (see above). Run the same command again to go on.")
    place_samples(home)


def make_environment() -> None:
    """Create `.venv` unless it works already."""
    if PYTHON.exists() and subprocess.run([str(PYTHON), "-c", "import pip"], capture_output=True).returncode == 0:
        return
    step("environment .venv")
    made = subprocess.run([sys.executable, "-m", "venv", "--clear", str(VENV)], capture_output=True, text=True)
    if made.returncode != 0:
        said = made.stdout + made.stderr
        if "ensurepip" in said:
            raise SetupError(
                "Python's venv module is missing. On Debian or Ubuntu: sudo apt install python3-venv; then run this again."
            )
        raise SetupError("The environment {} could not be made: {}".format(VENV, last_line(said) or "unknown reason"))


def install(kind: str) -> None:
    """Install the pinned packages, with the checks' tools for `kind` "test"."""
    digest = hashlib.sha256()
    for name in ("pyproject.toml", "constraints.txt"):
        digest.update((HERE / name).read_bytes())
    wanted = digest.hexdigest()
    stamp = json.loads(STAMP.read_text()) if STAMP.exists() else {}
    if stamp.get("sha256") == wanted and (kind in stamp.get("kinds", [])):
        return
    free = shutil.disk_usage(HERE).free
    if not stamp and free < NEEDED_BYTES:
        raise SetupError(
            f"There are {free / 1e9:.1f} GB free on this disk; the packages need about {NEEDED_BYTES / 1e9:.0f} GB. Make room and run this again."
        )
    step("packages (a few minutes the first time)")
    target = f"{HERE}[dev]" if kind == "test" else str(HERE)
    command = [
        str(PYTHON),
        "-m",
        "pip",
        "install",
        "--disable-pip-version-check",
        "--no-input",
        "--progress-bar",
        "off",
        "--prefer-binary",
        "-c",
        str(HERE / "constraints.txt"),
        "-e",
        target,
    ]
    code, output = run_with_progress(command)
    if code != 0:
        raise SetupError(explain_install(output))
    compile_kernels()
    kinds = ["run", kind] if kind != "run" else ["run"]
    STAMP.write_text(json.dumps({"sha256": wanted, "kinds": kinds}))


def compile_kernels() -> None:
    """Let the machine's C compiler make the engine's kernels; say what it costs where there is none."""
    step("the engine's kernels")
    code = "import sys; from afina.engine.native.build import library; sys.exit(library() is None)"
    if subprocess.run([str(PYTHON), "-c", code], capture_output=True).returncode != 0:
        print(
            "  There is no C compiler with OpenMP, so training will take about one and a half times as long.\n"
            "  On Debian or Ubuntu: sudo apt install gcc. The next run of Afina then uses it by itself."
        )


def run_with_progress(command: list) -> tuple:
    """Run pip, keep its output in LOG, show how many packages it has found; returns (exit code, output)."""
    total = len((HERE / "constraints.txt").read_text().split())
    found, lines = 0, []
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", cwd=HERE
    )
    with LOG.open("w", encoding="utf-8") as log:
        for line in process.stdout:
            log.write(line)
            lines.append(line)
            if line.startswith(("Collecting", "Requirement already satisfied")):
                found += 1
                show(f"  looked up {min(found, total)} of about {total} packages")
            elif line.startswith("Installing collected packages"):
                count = len(line.split(","))
                show(f"  installing {count} packages; this takes a minute or two")
    code = process.wait()
    show(None)
    return code, "".join(lines)


def explain_install(output: str) -> str:
    """One sentence for pip's failure, and what to do."""
    known = [
        (
            ("No space left", "Errno 28", "not enough space"),
            "The disk is full. Make room and run this again; what was downloaded is kept.",
        ),
        (
            (
                "name resolution",
                "NewConnectionError",
                "ConnectTimeout",
                "Max retries",
                "Network is unreachable",
                "getaddrinfo",
                "ReadTimeout",
                "satisfies the requirement setuptools",  # every registry has it, so none answered
            ),
            "The package registry cannot be reached. Check the network and run this again; what was downloaded is kept.",
        ),
        (("Permission denied", "Errno 13"), f"A folder cannot be written. Check who owns {HERE} and run this again."),
        (
            ("No matching distribution",),
            f"A package has no file for this Python ({platform.python_version()} on {platform.machine()}). Use Python 3.11 to 3.13 on a 64-bit system.",
        ),
        (
            ("ResolutionImpossible",),
            "The package registry lacks a version that is pinned here. Check which registry pip uses (pip config list), then run this again.",
        ),
    ]
    for words, sentence in known:
        if any(word in output for word in words):
            return f"{sentence} (Details: {LOG})"
    return f"The packages could not be installed: {last_line(output)} (Details: {LOG})"


def place_samples(home: Path) -> None:
    """Copy the sample datasets once; one that a person deleted stays deleted."""
    marker = home / ".state" / "samples.json"
    placed = set(json.loads(marker.read_text())) if marker.exists() else set()
    for sample in sorted((HERE / "examples").iterdir()):
        target = home / "training" / "datasets" / sample.name
        if sample.suffix in (".txt", ".jsonl") and sample.name not in placed:
            if not target.exists():
                temporary = target.with_name(f".{sample.name}.part")
                shutil.copyfile(sample, temporary)
                temporary.replace(target)
            placed.add(sample.name)
    marker.parent.mkdir(parents=True, exist_ok=True)
    marker.write_text(json.dumps(sorted(placed)))


# ---------------------------------------------------------------- commands


def afina(arguments: list, home: Path, **options: object) -> subprocess.Popen:
    """Start the installed program."""
    return subprocess.Popen([str(PYTHON), "-m", "afina.cli", *arguments, "--home", str(home)], **options)


def serve(home: Path, port: int | None, rest: list) -> int:
    """Start the server and stay with it."""
    arguments = ["serve", "--open", *(["--port", str(port)] if port is not None else []), *rest]
    process = afina(arguments, home)
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:
            continue  # the server got it too and ends in its own time


def demo(home: Path) -> int:
    """Tune the starter model on the English sample and show what changed."""
    sample = home / "training" / "datasets" / "timor-leste.txt"
    source = sample if sample.exists() else HERE / "examples" / "timor-leste.txt"
    arguments = [
        "train",
        "--json",
        "--model",
        "starter",
        "--dataset",
        str(source),
        "--method",
        "lora",
        "--epochs",
        "5",
        "--learning-rate",
        "5e-4",
        "--name",
        "demo {}".format(time.strftime("%Y-%m-%d %H.%M.%S")),
    ]
    for prompt in DEMO_PROMPTS:
        arguments += ["--sample-prompts", prompt]
    step(f"fine-tuning the starter model on {source.name} (about three minutes on two cores)")
    process = afina(arguments, home, stdout=subprocess.PIPE, text=True, encoding="utf-8")
    answers, last = {}, {}
    for line in process.stdout:
        event = json.loads(line)
        last = event
        kind = event.get("type")
        if kind == "step":
            show_step(event)
        elif kind == "sample" and event["when"] in ("before", "after"):
            answers[event["when"]] = event["answers"]
        elif kind == "phase":
            show("  {}".format(event["name"].replace("_", " ")))
    code = process.wait()
    show(None)
    if code != 0:
        message = last.get("error", {}).get("message") or "see above"
        raise SetupError(f"The demo did not finish: {message}")
    for before, after in zip(answers.get("before", []), answers.get("after", []), strict=True):
        print(
            "\n  Question  {}\n  before    {}\n  after     {}".format(
                before["prompt"], one_line(before["answer"]), one_line(after["answer"])
            )
        )
    print("\nTraining loss {:.3f}. The result is in {}".format(last["train_loss"], last["output"]))
    print("See it, and chat with it, in the pages:  python3 run.py")
    return 0


def test(rest: list) -> int:
    """Run every check; returns 1 when one fails, after all have run."""
    browser = find_browser()
    # Two tests at a time with a core each; the two whole jobs, which take longest, begin side by side.
    one_core = dict(os.environ, OMP_NUM_THREADS="1", AFINA_THREADS="1", PYTHONUNBUFFERED="1")
    tests = [
        str(PYTHON),
        "-m",
        "pytest",
        "-n",
        "2",
        "--dist",
        "loadscope",
        "--no-loadscope-reorder",
        "--durations",
        "12",
        *rest,
    ]
    checks = [
        ("lint", [str(PYTHON), "-m", "ruff", "check", "."], os.environ),
        ("format", [str(PYTHON), "-m", "ruff", "format", "--check", "."], os.environ),
        ("types", [str(PYTHON), "-m", "mypy"], os.environ),
        ("tests, with the starter model and a browser", tests, one_core),
    ]
    failed = []
    for name, command, environment in checks:
        step(name)
        started = time.monotonic()
        code = subprocess.run(command, cwd=HERE, env=environment).returncode
        print(
            "  {}: {} in {:.0f} s".format(name, "passed" if code == 0 else "FAILED", time.monotonic() - started),
            flush=True,
        )
        if code != 0:
            failed.append(name)
    if not browser:
        print(
            "\nThe browser tests were SKIPPED: there is no Chromium here. Install it (Debian: apt install chromium) to run them."
        )
    print("\nFailed: {}".format(", ".join(failed)) if failed else "\nAll checks passed.")
    return 1 if failed else 0


def find_browser() -> bool:
    """Whether Chromium is there, after installing Debian's where it is missing and we may."""
    if (
        shutil.which("chromium")
        or not Path("/etc/debian_version").exists()
        or not hasattr(os, "geteuid")
        or os.geteuid() != 0
    ):
        return shutil.which("chromium") is not None
    step("Chromium for the browser tests")
    environment = dict(os.environ, DEBIAN_FRONTEND="noninteractive")
    for command in (["apt-get", "update"], ["apt-get", "install", "-y", "--no-install-recommends", "chromium"]):
        if subprocess.run(command, env=environment, stdout=subprocess.DEVNULL).returncode != 0:
            break
    return shutil.which("chromium") is not None


# ---------------------------------------------------------------- words on the terminal


def step(name: str) -> None:
    """Say what begins."""
    print(f"• {name}", flush=True)


def show(line: str | None) -> None:
    """Replace the progress line; None ends it. Without a terminal nothing moves, so nothing is printed."""
    if sys.stdout.isatty():
        width = shutil.get_terminal_size().columns - 1
        sys.stdout.write("\r" + (line or "")[:width].ljust(width) + ("\r" if line is None else ""))
        sys.stdout.flush()


def show_step(event: dict) -> None:
    """The live bar of a training step; without a terminal, a line now and then."""
    done, total = event["step"], event["total_steps"]
    left = int(event["seconds_left"])
    filled = 24 * done // total
    bar = "#" * filled + "." * (24 - filled)
    text = f"  [{bar}] {done}/{total}  loss {event['loss']:.3f}  {left // 60} min {left % 60:02d} s left"
    if sys.stdout.isatty():
        show(text)
    elif done == total or done % max(1, total // 10) == 0:
        print(text, flush=True)


def one_line(text: str) -> str:
    """The text on one line, at most 300 characters."""
    flat = " ".join(text.split())
    return flat if len(flat) <= 300 else flat[:299] + "…"


def last_line(text: str) -> str:
    """The last line that says anything."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""


if __name__ == "__main__":
    sys.exit(main())
