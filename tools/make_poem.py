"""Make the sample poem of `microgpt-cli data poem`: Milton's Paradise Lost.

Source: `plrabn12.txt` of the Canterbury corpus, made from an edition of Project Gutenberg. The poem
is in the public domain. The source distribution of the Brotli package has the file among its test
data; the notes around the poem, spaces at the ends of lines and blank lines at its ends are left
out, and lines end with LF.

    pip download --no-deps --no-binary :all: brotli==1.2.1
    hatch run python tools/make_poem.py brotli-1.2.1.tar.gz
"""

import gzip
import sys
import tarfile
from pathlib import Path

OUTPUT = Path(__file__).parents[1] / "apps/microgpt_cli/src/microgpt_cli/sample_data/poem.txt.gz"


def poem(edition: str) -> str:
    """Return the poem alone, of an edition with notes before and after it."""
    lines = [line.rstrip() for line in edition.splitlines()]
    return "\n".join(lines[lines.index("Book I") : lines.index("[The End]\x1a\x1a")]).strip() + "\n"


def main() -> None:
    """Write the poem."""
    with tarfile.open(sys.argv[1]) as source:
        (name,) = (name for name in source.getnames() if name.endswith("/plrabn12.txt"))
        file = source.extractfile(name)
        assert file is not None, "a file, no folder"
        text = poem(file.read().decode("ascii"))
    OUTPUT.write_bytes(gzip.compress(text.encode(), mtime=0))
    print(f"{len(text):,} characters written to {OUTPUT.name}")


if __name__ == "__main__":
    main()
