"""tests/README.md names tests that exist."""

import re
from pathlib import Path

FOLDER = Path(__file__).parent
TEXT = (FOLDER / "README.md").read_text(encoding="utf-8")


def test_every_test_that_the_readme_names_exists():
    named = set(re.findall(r"`([\w./]+\.py)::(\w+)`", TEXT))
    assert len(named) > 80
    missing = [f"{file}::{name}" for file, name in named if f"\ndef {name}(" not in (FOLDER / file).read_text()]
    assert not missing


def test_every_row_names_a_test():
    rows = [line for line in TEXT.partition("## What is promised")[2].splitlines() if line.startswith("| ")]
    assert all("::test_" in row for row in rows if not row.endswith("| test |"))


def test_every_page_has_a_row():
    pages = {path.name for path in (FOLDER.parent / "docs").glob("*.md")}
    assert not [page for page in pages if page not in TEXT]
