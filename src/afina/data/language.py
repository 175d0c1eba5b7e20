"""Which language a text is in: Tetum, Portuguese, Indonesian or English, told by their commonest words and letter groups.

Made for these four, with Spanish, French, German, Dutch and Italian words known only to be told apart from them.
No model and nothing to load: a few hundred words, written down here. What shows too little comes back as None; a note that
is silent is better than one that is wrong. Accuracy on held-out sentences: docs/decisions.md.
"""

from __future__ import annotations

import re
from collections import defaultdict

from afina.core.messages import N_

NAMES: dict[str, str] = {
    "tet": N_("Tetum"),
    "pt": N_("Portuguese"),
    "id": N_("Indonesian"),
    "en": N_("English"),
    "other": N_("other languages"),
}
WORDS: dict[str, str] = {
    "tet": """
        iha ne'e ne'ebé ne'ebe nia sira ha'u ita ami imi o-nia ita-nia ha'u-nia sira-nia nia-nia la laiha la'ós la'os lae bele sei
        ona hanesan maibé maibe tanba tamba atu ba hosi husi ho ka no mak maka ida rua tolu hotu ema buat loos la'o halo fó hetan
        hatene hakarak presiza tenke labele dala dalan tinan loron fulan oras agora uluk foin kiik boot barak uitoan di'ak diak
        aat foun tuan seluk ida-ne'e ne'ebá ne'eba ida-ne'ebá saida sá oinsá oinsa bainhira se sé hira iha-ne'e to'o too liu kedas
        nafatin mós mos hodi rasik deit de'it duni karik entaun bainhira-de'it wainhira haree hare'e dehan hatán hatan husu ko'alia
        koalia lian liafuan tetun tetum timór timor-oan rai uma feto mane labarik oan inan aman alin maun biin belun bondia botarde
        bonoite obrigadu obrigada favór favor ajuda servisu eskola estuda hanorin aprende lee hakerek hili hahú hahu hapara hamoos
        tau tama sai mai hela moris mate han hemu toba hadeer la'en fen kaben sosa fa'an osan folin karun baratu kualidade naran
        ezemplu modelu treinamentu dadus fixeiru pájina konta resposta pergunta instrusaun versaun konfigurasaun informasaun
        edukasaun governu povu nasaun nasionál repúblika demokrátika prezidente ministru distritu munisípiu suku aldeia
        oitavu kuandu kona-ba kona tuir molok depois hafoin durante entre maske hanoin sente gosta hadomi tuur hamriik lori foti
        loke taka hasai hatama hatudu hamutuk mesak meza livru loja merkadu tasi foho mota be ai-han ahi anin udan manas malirin
        kafé etu fulan-ida loroloron dadeer lorokraik kalan horiseik aban ohin orsida bainruá la-bele ladún ladun ladauk seidauk
        hafó ita-boot itaboot sr senhór senhora kuaze hatutan tulun buka haruka simu hein kontente haksolok triste
    """,
    "pt": """
        que não de para com uma um os as dos das ao aos à às pelo pela pelos pelas num numa e o a do da em no na nos nas por se
        mais como mas foi ele ela eles elas seu sua seus suas ou ser quando muito muita há já está estão eu também só até isso
        isto aquilo entre era depois sem mesmo ter tem têm meu minha teu tua nosso nossa você vocês lhe lhes nem qual quais quem
        onde porque porquê então ainda sobre pode podem deve devem fazer faz feito dizer disse cada todos todas todo toda outro
        outra outros outras este esta estes estas esse essa esses essas aquele aquela são foram seria será sido sendo tinha havia
        ano anos dia dias vez vezes tempo vida pessoas pessoa homem mulher mundo casa país cidade governo estado trabalho água
        exemplo forma parte lugar dados conjunto arquivo ficheiro página resposta pergunta instrução configuração informação
        educação então assim bem aqui ali agora nunca sempre hoje ontem amanhã obrigado obrigada bom boa novo nova grande pequeno
        primeiro primeira segundo melhor maior menor ajuda escolha escolher língua línguas português nome nomes número números
        nenhum nenhuma algum alguma alguns algumas qualquer durante através contra desde antes enquanto embora porém portanto
        preciso precisa quero quer posso vamos vai vou estou estamos fica ficar usar use usa usado texto modelo treinamento ajuste
    """,
    "id": """
        yang dan di dengan untuk tidak ini itu dari dalam akan pada juga saya ke karena ada oleh sudah atau seperti bisa dapat
        adalah mereka kita kami anda kamu dia ia nya lebih telah harus banyak satu dua tiga hari tahun bulan orang lain bagi para
        serta agar jika kalau maka tetapi tapi namun sedang masih belum lagi hanya saja sangat sekali setiap semua beberapa
        antara setelah sebelum ketika saat sejak selama sampai hingga tentang terhadap secara sebagai menjadi merupakan memiliki
        mempunyai membuat melakukan menggunakan memberikan mengatakan mendapatkan melihat membaca menulis belajar bekerja makan
        minum pergi datang tinggal apa siapa mana kapan mengapa kenapa bagaimana berapa baik buruk besar kecil baru lama rumah
        sekolah negara kota desa pemerintah masyarakat anak ibu bapak ayah teman air nama kata bahasa jalan waktu tempat hal cara
        terima kasih selamat pagi siang malam tolong silakan jangan ya bukan pula pun lah kah dahulu dulu nanti sekarang kemarin
        besok contoh data berkas halaman jawaban pertanyaan instruksi pengaturan informasi pendidikan pelatihan model latihan
        pilih mulai hentikan simpan hapus tambah tambahkan buka tutup tampilkan gunakan tersebut dilakukan digunakan terdapat
        berada berasal bernama terbesar paling kembali sendiri bersama tanpa maupun sehingga supaya meskipun walaupun
    """,
    "en": """
        the of and a to in is that it for was on are as with his they at be this have from or had by not but what all were when we
        there can an your which their said if do will each about how up out them then she many some so these would other into has
        her two like him see time could no make than first been its who now people my made over did down only way find use may
        water long little very after words called just where most know get through back much before also around another came
        come work three word must because does part even place well such here take why help put different away again off went
        old number great tell men say small every found still between name should home big give air line set own under read last
        never us left end along while might next sound below saw something thought both few those always looked show large often
        together asked house don't it's i'm you're can't i you he me our am being during without against within until upon using
        used example answer question following write describe explain create provide given sentence list generate following
    """,
}
OTHERS = """
    el los las una unos unas del al y pero muy también está están son fue qué cómo dónde cuando porque donde este esta esto eso
    nosotros ustedes usted ellos ellas hay ser hacer tiene tienen puede más años según hasta desde sin sobre entre todo todos
    le les des du un une et est dans pour que qui sur avec pas par plus ne ce cette ces son sa ses nous vous ils elles mais
    ou où être avoir fait comme aussi bien très sont était leur leurs aux au c'est n'est d'un d'une l'homme
    der die das und ist nicht ein eine einen einem einer zu den dem von mit für auf im sich des auch als an es werden wird sind
    war wie bei oder aber nach aus wenn noch nur wir sie ich er hat haben kann über durch
    het een van en dat niet zijn voor met op aan om ook als bij maar naar uit hij zij wij
    il lo gli che di è non per con sono della delle degli nel nella anche come più questo questa essere
    puede pueden debe deben cada algo algún alguna otro otra otros otras mismo cual cuál siguiente aquí página páginas cambiar
    ningún ninguna nuevo nueva favor usuario contraseña todas estos estas ese esa aquel entonces ahora siempre nunca muy bueno
    ajouter supprimer modifier votre vos notre cet lors afin après avant chaque autre autres même peut peuvent doit si
    wurde wurden konnte sehr muss müssen bitte diese dieser dieses diesem keine alle mehr hier dann durch ohne zwischen
    werd worden kan kunt moet deze dit geen u uw hun haar nog al alle meer dan wel succes
    essere sono stato stata può possono devi prego tutti tutte nuovo nuova qui dopo prima senza questi queste
"""
ENDINGS: dict[str, re.Pattern[str]] = {
    "pt": re.compile(r"(?:ção|ções|são|mente|idade|ando|endo|indo|ável|ível|inho|inha|eiro|eira|ência|ância|ões|ães)$|ç|lh|nh|[ãõ]"),
    "tet": re.compile(r"(?:saun|dór|ál|ór|mentu|dade|tiva|tivu|ika|iku|ista|izmu|únsia|énsia|ánsia)$|[aeiou]'[a-z]|k$|ñ|^(?:ha|nak|nam|k[nmbdr]|h[aou]k)"),
    "id": re.compile(r"^(?:me(?:m|n|ng|ny)|ber|ter|pe(?:m|n|ng)|di|ke|se).{3,}|(?:kan|nya|annya|lah|kah|ngan|ngg?i)$"),
    "en": re.compile(r"(?:ing|tion|ness|ly|ed|ght|ould|ck|'s|n't|'re|'ll)$|th|wh|ee|oo|sh"),
    "other": re.compile(r"(?:ción|ciones|dad|dades|eux|ung|heit|keit|isch|zione|zioni|ità|ijk|aux)$|[ßäöüèëîïûœ¿]|^[ldns]'[aeiou]"),
}  # fmt: skip
FEW = 3
"""Words that must be recognised before anything is said."""
LONG = 600
"""Characters looked at; more changes nothing."""

_WORD = re.compile(r"[^\W\d_]+(?:['’`\-][^\W\d_]+)*")
_CODE = re.compile(r"```.*?(?:```|$)|https?://\S+|\S+@\S+", re.DOTALL)


def _table() -> dict[str, dict[str, float]]:
    """For each word the languages it speaks for; one that is common to several speaks less for each."""
    spoken: dict[str, set[str]] = {}
    for language, words in (*WORDS.items(), ("other", OTHERS)):
        for word in words.split():
            spoken.setdefault(word, set()).add(language)
    return {
        word: {name: (1.0 if len(word) > 1 else 0.5) / len(names) ** 2 for name in names}
        for word, names in spoken.items()
    }


_SPOKEN = _table()


def find_language(text: str) -> str | None:
    """A key of NAMES, or None when the text is too short or of no language in particular (code, numbers, names)."""
    words = [word.lower().replace("’", "'").replace("`", "'") for word in _WORD.findall(_CODE.sub(" ", text[:LONG]))]
    if not words:
        return None
    if sum(not _latin(word) for word in words) * 2 > len(words):
        return "other"
    votes: defaultdict[str, float] = defaultdict(float)
    known = 0.0
    for word in words:
        spoken = _SPOKEN.get(word)
        if spoken:
            known += 1
            for name, weight in spoken.items():
                votes[name] += weight
        elif len(word) > 3:
            ends = [name for name, pattern in ENDINGS.items() if pattern.search(word)]
            for name in ends:
                votes[name] += 0.35 / len(ends)
            known += 0.35 * bool(ends)
    (second, _), (most, best) = sorted([(0.0, ""), (0.0, ""), *((vote, name) for name, vote in votes.items())])[-2:]
    sure = known >= FEW or (known >= 0.4 * len(words) and most > 3 * second)
    if not sure or known < 0.15 * len(words) or most < 1.25 * second or most < 0.9:
        return None
    return best


def _latin(word: str) -> bool:
    return word[0] < "\u0250"
