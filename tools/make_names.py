"""Make the sample names of `microgpt-cli data names`.

Source: the given names of the Faker package's person providers (MIT licence, see
`names.LICENSE` beside the output), of the locales below that write in Latin letters. Accents are
taken off, and names that then are not 2 to 12 letters a-z are left out.

    hatch run python tools/make_names.py
"""

import unicodedata
from importlib import import_module
from pathlib import Path

LOCALES = (
    "da_DK",
    "de_DE",
    "en_GB",
    "en_IE",
    "en_US",
    "es_ES",
    "fi_FI",
    "fr_FR",
    "it_IT",
    "nl_NL",
    "no_NO",
    "pt_BR",
    "sv_SE",
)
LENGTHS = range(2, 13)
OUTPUT = Path(__file__).parents[1] / "apps/microgpt_cli/src/microgpt_cli/sample_data/names.txt"


def plain(name: str) -> str:
    """Return the name in lower case, accents taken off."""
    decomposed = unicodedata.normalize("NFKD", name.strip().lower())
    return "".join(char for char in decomposed if not unicodedata.combining(char))


def given_names(locale: str) -> set[str]:
    """Return the given names of one locale, plain."""
    provider = import_module(f"faker.providers.person.{locale}").Provider
    lists = (getattr(provider, f"first_names{suffix}", ()) for suffix in ("", "_female", "_male"))
    return {plain(name) for names in lists for name in names}


def main() -> None:
    """Write the list."""
    names = sorted(
        name
        for name in set().union(*map(given_names, LOCALES))
        if len(name) in LENGTHS and name.isascii() and name.isalpha()
    )
    OUTPUT.write_text("".join(f"{name}\n" for name in names), encoding="utf-8", newline="\n")
    print(f"{len(names)} names written to {OUTPUT.name}")


if __name__ == "__main__":
    main()
