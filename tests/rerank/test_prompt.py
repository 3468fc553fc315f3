import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybridrec.ragged import Ragged
from hybridrec.rerank.prompt import Frame, TokenTable, prefixes

CLS, SEP = 101, 102
FRAME = Frame.plain(CLS, SEP)
texts = st.lists(st.lists(st.integers(0, 99), max_size=7), min_size=1, max_size=6)


def rows_of(ragged):
    return [ragged.items[a:b].tolist() for a, b in zip(ragged.indptr, ragged.indptr[1:])]  # noqa: B905


def slow_prefix(history, texts, newest, room):
    """One item more at a time until the next would not fit."""
    kept = []
    for code in history[::-1][:newest]:
        if 1 + sum(len(text) + 1 for text in [*kept, texts[code]]) > room:
            break
        kept.append(texts[code])
    if history and not kept:
        return [CLS, *texts[history[-1]][: room - 2], SEP], True
    tokens = [CLS] + [token for text in kept for token in [*text, SEP]]
    return tokens if kept else [CLS, SEP], len(kept) < min(newest, len(history))


@given(texts, st.integers(1, 5))
def test_a_text_is_framed_and_keeps_its_beginning(texts, limit):
    table = TokenTable.framed(texts, FRAME, limit)
    assert rows_of(table.rows) == [[CLS, *text[:limit], SEP] for text in texts]
    assert table.truncated == sum(len(text) > limit for text in texts)


@given(texts, texts, st.integers(1, 5))
def test_extending_a_table_is_framing_all_at_once(old, new, limit):
    extended = TokenTable.framed(old, FRAME, limit).extended(TokenTable.framed(new, FRAME, limit))
    whole = TokenTable.framed(old + new, FRAME, limit)
    assert rows_of(extended.rows) == rows_of(whole.rows)
    assert extended.truncated == whole.truncated


@given(st.data(), texts, st.integers(1, 4), st.integers(2, 30))
def test_prompts_hold_the_newest_items_newest_first(data, texts, newest, room):
    table = TokenTable.framed(texts, FRAME, 7)
    codes = st.lists(st.integers(0, len(texts) - 1), max_size=6)
    histories = data.draw(st.lists(codes, max_size=4))
    found, cut = prefixes(Ragged.from_rows(histories), table, newest, room)
    wanted = [slow_prefix(history, texts, newest, room) for history in histories]
    assert rows_of(found) == [tokens for tokens, _ in wanted]
    assert cut == sum(was_cut for _, was_cut in wanted)
    assert (found.lengths <= room).all()


@pytest.mark.parametrize("room", [2, 50])
def test_no_history_is_an_empty_prompt(room):
    table = TokenTable.framed([[5, 6]], FRAME, 7)
    found, cut = prefixes(Ragged.empty(2), table, 3, room)
    np.testing.assert_array_equal(found.items, [CLS, SEP, CLS, SEP])
    assert cut == 0
