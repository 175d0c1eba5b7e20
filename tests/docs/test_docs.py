"""The documents tell the truth about the disk and the program."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]


def test_the_reference_is_fresh() -> None:
    command = [sys.executable, str(ROOT / "docs" / "make_reference.py"), "--check"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def tree() -> list[str]:
    """The paths in the README's annotated tree: two spaces of indentation mean inside the folder above."""
    block = re.search(
        r"## Where things are\n+```\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL
    )
    assert block
    paths, folder = [], ""
    for line in block[1].splitlines():
        name = line.split()[0]
        inside = line.startswith("  ")
        paths.append(folder + name if inside else name)
        if not inside:
            folder = name
    return paths


def test_every_path_of_the_readme_tree_exists() -> None:
    paths = tree()
    assert "src/afina/core/" in paths
    missing = [path for path in paths if not (ROOT / path).exists() or path.endswith("/") != (ROOT / path).is_dir()]
    assert not missing


def test_every_package_stands_in_the_readme_tree() -> None:
    listed = set(tree())
    packages = {
        f"src/afina/{path.name}/" for path in (ROOT / "src" / "afina").iterdir() if (path / "__init__.py").exists()
    }
    assert packages <= listed


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith(("http://", "https://")):
            continue
        name, _, anchor = target.partition("#")
        file = page.parent / name if name else page
        if not file.exists() or (anchor and f"#{anchor}" not in anchors(file)):
            broken.append(target)
    assert not broken


def anchors(file: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    heads = re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), re.MULTILINE)
    return {"#" + re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


def test_screenshots_in_the_readme_are_small() -> None:
    """A clone over a slow link must stay light."""
    for page in (ROOT / "README.md", ROOT / "README.tet.md"):
        for target in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", page.read_text(encoding="utf-8")):
            assert (ROOT / target).stat().st_size < 400_000


def test_the_samples_are_without_fault() -> None:
    from afina.data.checks import check

    for name, wanted_format, at_least in (("timor-leste.txt", "pairs", 110), ("tetun.jsonl", "messages", 55)):
        report = check(ROOT / "examples" / name)
        assert (report.format, report.errors, report.warnings) == (wanted_format, [], []), name
        assert report.rows >= at_least
