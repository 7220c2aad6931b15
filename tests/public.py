"""Writes tests/api.txt, the public names and signatures, and docs/same, those that peers have too:
`make api`."""

import pathlib
import sys

ROOT = pathlib.Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "docs")]  # the checkout that this lies in
import names  # noqa: E402
import peers  # noqa: E402

FILE = ROOT / "tests" / "api.txt"
SAME = ROOT / "docs" / "same"


def api() -> str:
    """One line a public name: its arguments and their defaults."""
    return "".join(
        f"{name}{names.signature(made)}\n" for name, made in sorted(names.public().items())
    )


if __name__ == "__main__":
    FILE.write_text(api())
    for file in SAME.glob("*.txt"):
        file.write_text(peers.listed(file.stem))
