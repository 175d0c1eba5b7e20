"""The same word for the same thing in all places: the words its speakers chose (see the glossary of the design)."""

import re

import pytest

from afina.i18n import translator
from afina.i18n.extract import texts

WORDS: dict[str, tuple[str, str, str]] = {
    "full fine-tuning": ("afina total", "ajuste fino completo", "penyetelan penuh"),
    "base model": ("modelu baze", "modelo base", "model dasar"),
    "fine-tuned models": ("modelu ne'ebé afina ona", "modelos ajustados", "model hasil penyetelan"),
    "start training": ("hahu treinamentu", "iniciar treinamento", "mulai pelatihan"),
    "training": ("trein", "trein", "(pe)?latih"),
    "dataset": ("dataset", "conjunto", "dataset"),
    "examples": ("ezemplu", "exemplos", "contoh"),
    "conversation": ("konversa", "conversa", "percakapan"),
    "epochs": ("épokas", "épocas", "epoch"),
    "learning rate": ("taxa aprendizajen", "taxa de aprendizado", "laju pembelajaran"),
    "batch size": ("tamañu lote", "tamanho do lote", "ukuran batch"),
    "gradient accumulation steps": (
        "pasu akumulasaun gradiente",
        "passos de acumulação de gradiente",
        "langkah akumulasi gradien",
    ),
    "warmup steps": ("pasu aklimatasaun", "passos de aquecimento", "langkah pemanasan"),
    "parameters": ("parámetru", "parâmetros", "parameter"),
    "training loss": ("perda treinamentu", "perda de treinamento", "loss pelatihan"),
    "validation loss": ("perda validasaun", "perda de validação", "loss validasi"),
    "progress": ("progresu|la'o", "progresso|em curso", "kemajuan|berjalan"),
    "console output": ("saída konsola", "saída do console", "keluaran konsol"),
    "loading": ("karga", "carregar", "muat"),
    "settings": ("konfigurasaun", "configurações", "pengaturan"),
    "choose": ("hili", "escolh", "pilih"),
}


@pytest.mark.parametrize("word", WORDS)
def test_words_of_the_glossary(word: str) -> None:
    wrong = []
    pattern = re.compile(rf"(?<![-/\w]){word}(?![:/\w])", re.IGNORECASE)  # not in paths, flags and settings files
    singular = [text for text in texts() if isinstance(text, str) and pattern.search(text)]
    for text in singular:
        for code, wanted in zip(("tet", "pt", "id"), WORDS[word], strict=True):
            shown = translator(code).gettext(text)
            if shown != text and not re.search(wanted, shown, re.IGNORECASE):
                wrong.append((code, text, shown))
    assert singular
    assert not wrong
