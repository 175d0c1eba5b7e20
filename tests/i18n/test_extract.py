from pathlib import Path

from afina.i18n import extract


def package(folder: Path, **files: str) -> Path:
    for name, content in files.items():
        (folder / name.replace("_py", ".py").replace("_html", ".html").replace("_js", ".js")).write_text(
            content, encoding="utf-8"
        )
    return folder


def test_texts_of_modules_templates_and_scripts(tmp_path: Path) -> None:
    source = package(
        tmp_path,
        a_py='say(N_("One {x}"), x=1)\nt.ngettext("{n} row", "{n} rows", 3)\nsay("Two" " parts")\ngettext(variable)\nother("no")\n',
        b_html='{{ _("Three") }}{% trans %}Four{% endtrans %}{{ ngettext("{n} row", "{n} rows", n) }}{{ f(label=_("One {x}")) }}',
        c_js='element.textContent = _("Five {x}");\n',
    )
    found = extract.texts(source)
    assert set(found) == {"One {x}", ("{n} row", "{n} rows"), "Two parts", "Three", "Four", "Five {x}"}
    assert found["One {x}"] == ["a.py", "b.html"]


def test_update_keeps_translations_and_drops_what_is_gone(tmp_path: Path) -> None:
    first, missing = extract.update(
        "tet", {"Start": ["a.py"], "Gone": ["a.py"], ("{n} row", "{n} rows"): ["a.py"]}, tmp_path
    )
    assert missing == 3
    assert first.count('msgstr ""') == 3
    assert 'msgstr[0] ""' in first
    assert "msgstr[1]" not in first
    (tmp_path / "tet.po").write_text(
        first.replace('msgid "Start"\nmsgstr ""', 'msgid "Start"\nmsgstr "Hahú"'), encoding="utf-8"
    )
    second, missing = extract.update("tet", {"Start": ["b.py"], "New": ["b.py"]}, tmp_path)
    assert missing == 1
    assert 'msgid "Start"\nmsgstr "Hahú"' in second
    assert "Gone" not in second


def test_english_is_filled_in(tmp_path: Path) -> None:
    content, missing = extract.update("en", {("{n} row", "{n} rows"): ["a.py"], "Start": ["a.py"]}, tmp_path)
    assert missing == 0
    assert 'msgstr[1] "{n} rows"' in content
    assert 'msgid "Start"\nmsgstr "Start"' in content
