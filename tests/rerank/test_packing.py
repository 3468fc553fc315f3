import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from hybridrec.ragged import Ragged
from hybridrec.rerank.packing import CHUNK_TOKENS, Piece, pack, pair, plan
from hybridrec.rerank.prompt import Frame, TokenTable

CLS, SEP = 101, 102
FRAME = Frame.plain(CLS, SEP)


@st.composite
def work(draw):
    """Prefixes, a token table, and the candidates of each query."""
    texts = draw(st.lists(st.lists(st.integers(0, 99), max_size=40), min_size=1, max_size=8))
    prompts = draw(
        st.lists(st.lists(st.integers(0, 99), min_size=2, max_size=20), min_size=1, max_size=5)
    )
    codes = st.lists(st.integers(0, len(texts) - 1), max_size=9)
    lists = [draw(codes) for _ in prompts]
    table = TokenTable.framed(texts, FRAME, 40)
    indptr = np.cumsum([0] + [len(some) for some in lists])
    flat = np.array([code for some in lists for code in some], dtype=np.int32)
    return Ragged.from_rows(prompts), table, indptr, flat


@given(work(), st.one_of(st.none(), st.integers(1, 200)))
def test_a_plan_covers_every_candidate_once_within_the_budget(given_work, budget):
    prompts, table, indptr, flat = given_work
    lengths = table.rows.lengths[flat]
    packs = plan(prompts.lengths, indptr, lengths, budget)
    pieces = [piece for pieces in packs for piece in pieces]
    assert [i for piece in pieces for i in range(piece.start, piece.stop)] == list(range(len(flat)))
    for query, start, stop in pieces:
        assert indptr[query] <= start < stop <= indptr[query + 1]
    if budget is None:
        assert len(packs) == min(1, len(flat))
        return
    for some in packs:
        cost = sum(
            prompts.lengths[query] + lengths[start:stop].sum() for query, start, stop in some
        )
        assert cost <= budget or (len(some) == 1 and some[0].stop - some[0].start == 1)


def test_a_plan_fills_packs_and_cuts_only_what_cannot_fit():
    packs = plan(np.array([4, 4, 4]), np.array([0, 2, 4, 10]), np.full(10, 3), 20)
    assert packs == [
        [Piece(0, 0, 2), Piece(1, 2, 4)],
        [Piece(2, 4, 9)],
        [Piece(2, 9, 10)],
    ]


@given(work())
def test_a_pack_says_where_every_token_stands(given_work):
    prompts, table, indptr, flat = given_work
    packs = plan(prompts.lengths, indptr, table.rows.lengths[flat], None)
    if not packs:
        return
    laid = pack(packs[0], prompts, flat, table)
    tokens, positions, types, owners, heads = [], [], [], [], []
    sizes = []
    for query in range(len(prompts)):
        if indptr[query] == indptr[query + 1]:
            continue
        prefix = prompts.items[prompts.indptr[query] : prompts.indptr[query + 1]].tolist()
        tokens += prefix
        positions += range(len(prefix))
        types += [0] * len(prefix)
        owners += [-1] * len(prefix)
        sizes.append(len(prefix))
        for i in range(indptr[query], indptr[query + 1]):
            text = table.rows.select(flat[i : i + 1]).items.tolist()
            heads.append(len(tokens))
            tokens += text
            positions += range(len(prefix), len(prefix) + len(text))
            types += [1] * len(text)
            owners += [i] * len(text)
    for found, wanted in (
        (laid.tokens, tokens), (laid.positions, positions), (laid.types, types),
        (laid.owners, owners), (laid.heads, heads), ([b.prefix for b in laid.blocks], sizes),
    ):  # fmt: skip
        np.testing.assert_array_equal(found, wanted)


@given(work())
def test_chunks_are_whole_candidates(given_work):
    prompts, table, indptr, flat = given_work
    for pieces in plan(prompts.lengths, indptr, table.rows.lengths[flat], 300):
        laid = pack(pieces, prompts, flat, table)
        place, chunk_of = 0, []
        for number, block in enumerate(laid.blocks):
            place += block.prefix
            for i, size in enumerate(block.chunks):
                owners = np.unique(laid.owners[place : place + size])
                assert size <= CHUNK_TOKENS or len(owners) == 1
                chunk_of += [(owner, (number, i)) for owner in owners]
                place += size
        assert place == len(laid.tokens)
        assert [owner for owner, _ in chunk_of] == list(range(len(laid.heads)))


@given(work(), st.booleans())
def test_pairs_and_their_masks(given_work, one_way):
    prompts, table, indptr, flat = given_work
    rows = np.repeat(np.arange(len(prompts)), np.diff(indptr))
    pairs = pair(prompts, rows, flat, table, one_way=one_way)
    for i, (row, code) in enumerate(zip(rows, flat, strict=True)):
        prefix = prompts.select(np.array([row])).items.tolist()
        text = table.rows.select(np.array([code])).items.tolist()[0 if one_way else 1 :]
        length = len(prefix) + len(text)
        assert pairs.tokens[i, :length].tolist() == prefix + text
        assert pairs.types[i, :length].tolist() == [0] * len(prefix) + [1] * len(text)
        assert pairs.heads[i] == (len(prefix) if one_way else 0)
        assert pairs.tokens[i, pairs.heads[i]] == (CLS if one_way else prefix[0])
        for a in range(length):
            sees = set(np.flatnonzero(pairs.mask[i, a]).tolist())
            assert sees == set(range(len(prefix) if one_way and a < len(prefix) else length))
