"""The vocabulary check finds every term, accepts correct sentences, and reads all kinds of files."""

import json

import pytest

from tests.vocabulary import check_vocabulary
from tests.vocabulary.check_vocabulary import TERMS_FILE, findings_in_file, findings_in_text, read_terms

TERMS = read_terms()


def names_in(text: str) -> list[str]:
    return [term.name for _, _, term in findings_in_text(text, TERMS)]


@pytest.mark.parametrize("term", TERMS, ids=lambda term: term.name)
def test_term_has_a_found_and_a_correct_sentence(term):
    assert term.name in names_in(term.found)
    assert set(names_in(term.found)) == {term.name}, "a sentence shows one term"


@pytest.mark.parametrize("term", TERMS, ids=lambda term: term.name)
def test_correct_sentence_has_no_finding(tmp_path, term):
    path = tmp_path / "page.md"
    path.write_text(f"# Page\n\n{term.correct}\n")
    assert [str(finding) for finding in findings_in_file(path, TERMS, tmp_path)] == []


def test_list_is_long_and_names_are_unique():
    assert len(TERMS) >= 100
    with pytest.raises(ValueError, match="repeated"):
        read_terms_of("- {term: a, write: b, found: a, correct: b}\n" * 2)
    with pytest.raises(ValueError, match="fields are"):
        read_terms_of("- {term: a, write: b}")


def read_terms_of(text, tmp=TERMS_FILE):
    class File:
        def read_text(self, encoding):
            return text

    return read_terms.__wrapped__(File())


def checked(tmp_path, name, text):
    path = tmp_path / name
    path.write_text(text)
    return [(finding.line, finding.text) for finding in findings_in_file(path, TERMS, tmp_path)]


def test_markdown_code_links_and_formulas_are_skipped(tmp_path):
    text = """# Roll-outs

Text `roll-out` and ``a `colour` b``, [link](../roll-out.md), <https://x.org/roll-out>, $T's$.

```python
colour = roll_out()  # roll-out
```

- item

  ~~~text
  besides
  ~~~

| table | colour |
|---|---|

A term may span a line: the activations are computed
again.
<!-- besides -->
"""
    assert checked(tmp_path, "page.md", text) == [(1, "Roll-outs"), (15, "colour"), (18, "computed again")]


def test_python_docstrings_comments_and_messages(tmp_path):
    text = '''"""Module with a roll-out.

The weights are shared
out; ``besides`` is code.
"""

colour = 1  # the colour
# a comment that goes
# on with the next line
NAME = "besides"
MESSAGE = f"the key {colour} is refused; choose another"
OTHER = (
    "a message of several words, besides"
)
'''
    assert checked(tmp_path, "module.py", text) == [
        (1, "roll-out"), (3, "shared out"), (7, "colour"), (8, "goes on with"), (11, "refused"), (13, "besides"),
    ]  # fmt: skip


def test_strings_of_tests_are_not_checked_except_in_assertions(tmp_path):
    (tmp_path / "tests").mkdir()
    text = '"""A docstring besides."""\n\nTEXT = "these words are refused"\nassert TEXT, f"{TEXT} is refused besides"\n'
    assert checked(tmp_path, "tests/test_x.py", text) == [(1, "besides"), (4, "refused"), (4, "besides")]


def test_notebook_cells(tmp_path):
    notebook = {
        "cells": [
            {"cell_type": "markdown", "metadata": {}, "source": ["# Title\n", "The colour scale."]},
            {"cell_type": "code", "metadata": {}, "outputs": [], "source": ["besides = 1  # besides\n", "x = 2"]},
        ]
    }
    text = json.dumps(notebook, indent=1)
    lines = text.splitlines()
    found = checked(tmp_path, "book.ipynb", text)
    assert [term for _, term in found] == ["colour", "besides"]
    assert ["The colour scale." in lines[found[0][0] - 1], "# besides" in lines[found[1][0] - 1]] == [True, True]


def test_yaml_comments_and_shell_messages(tmp_path):
    text = "# A comment besides.\nkey: besides  # and the colour\n"
    assert checked(tmp_path, "a.yaml", text) == [(1, "besides"), (2, "colour")]
    text = '#!/bin/bash\n# Besides.\ncolour="$1"\nsay "the option $colour is refused"\n'
    assert checked(tmp_path, "a.sh", text) == [(2, "Besides"), (4, "refused")]


def test_waiver_applies_to_one_term_of_its_line(tmp_path):
    text = "The colour, besides. <!-- vocabulary: allow colour -->\nThe colour.\n"
    assert checked(tmp_path, "page.md", text) == [(1, "besides"), (2, "colour")]


def test_message_has_place_term_and_replacement(tmp_path, capsys, monkeypatch):
    path = tmp_path / "page.md"
    path.write_text("# A\n\nBesides.\n")
    monkeypatch.setattr(check_vocabulary, "ROOT", tmp_path)
    monkeypatch.setattr(check_vocabulary, "TERMS_FILE", tmp_path / "vocabulary.yaml")
    monkeypatch.setitem(findings_in_file.__kwdefaults__ or {}, "root", tmp_path)
    found = findings_in_file(path, TERMS, tmp_path)
    assert str(found[0]) == "page.md:3: found 'Besides'; write 'also, in addition to'"


def test_tree_has_no_finding(capsys):
    assert check_vocabulary.main([]) == 0, capsys.readouterr().out
