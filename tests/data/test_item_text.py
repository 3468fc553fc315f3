"""Item text: what a template may say, and how values read."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybridrec.checks import InputError, InputTypeError
from hybridrec.data.text import render_texts, template_fields


def test_missing_values_are_empty_and_white_space_collapses():
    columns = {"title": ["A\n  b", None, "C"], "year": [1995.0, 1996.5, float("nan")]}
    assert render_texts(" {title}  ({year}) ", columns) == ["A b (1995)", "(1996.5)", "C ()"]


def test_lists_read_as_a_reader_would_write_them():
    assert render_texts("{g}", {"g": [["Action", None, "War"], [], None]}) == [
        "Action, War",
        "",
        "",
    ]


def test_doubled_braces_are_braces_and_repeated_fields_repeat():
    assert render_texts("{{{a}}} {{x}} {a}{{", {"a": ["v"]}) == ["{v} {x} v{"]
    assert template_fields("{b} {a} {b} {{c}}") == ["b", "a"]


def test_a_column_name_may_hold_spaces():
    assert render_texts("{release year}", {"release year": [1999]}) == ["1999"]


def test_values_are_not_read_as_templates():
    assert render_texts("{a}", {"a": ["{b} {0.__class__}"]}) == ["{b} {0.__class__}"]


def test_a_very_long_title_is_kept_whole():
    assert render_texts("{a}", {"a": ["x" * 10_000]}) == ["x" * 10_000]


@given(st.lists(st.tuples(st.text(), st.text()), max_size=5))
def test_plain_strings_are_joined_and_split_on_white_space(rows):
    columns = {"a": [a for a, _ in rows], "b": [b for _, b in rows]}
    expected = [" ".join(f"{a} - {b}".split()) for a, b in rows]
    assert render_texts("{a} - {b}", columns) == expected


@pytest.mark.parametrize(
    "field",
    ["title.__class__", "a[0]", "title!r", "title:>10", "0", "", "a.b[c]", "title:{width}"],
)
def test_a_field_is_a_bare_name(field):
    with pytest.raises(InputError, match="wanted a bare column name"):
        template_fields("{" + field + "}")


@pytest.mark.parametrize("template", ["{title", "title}", "{a}}"])
def test_unbalanced_braces_are_an_error(template):
    with pytest.raises(InputError, match="cannot be read"):
        template_fields(template)


@pytest.mark.parametrize("template", ["", "title", "{{title}}"])
def test_a_template_without_a_field_is_an_error(template):
    with pytest.raises(InputError, match="names no column"):
        template_fields(template)


def test_other_types_are_refused():
    with pytest.raises(InputTypeError, match="wanted a template"):
        template_fields(None)
    with pytest.raises(InputTypeError, match="bytes"):
        render_texts("{a}", {"a": [b"x"]})


def test_an_unknown_field_lists_what_there_is():
    with pytest.raises(InputError, match=r"uses \{name\}.*\['title', 'year'\]"):
        render_texts("{name}", {"year": [1], "title": ["a"]})
