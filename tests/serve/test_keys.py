"""API keys: who holds one is known, who holds none is not, and the store never sees it."""

from __future__ import annotations

import hashlib
import re
from contextlib import closing

import pytest

from hybridrec.checks import InputError, InputTypeError
from hybridrec.serve.access import keys
from hybridrec.serve.access.keys import authenticate, create_key
from hybridrec.serve.store.by_url import open_store


@pytest.fixture
def store(tmp_path):
    with closing(open_store(tmp_path / "service.sqlite")) as opened:
        yield opened


def test_a_key_is_known_until_it_is_revoked(store):
    secret = create_key(store, "the shop", ["recommend", "events"])
    other = create_key(store, "ops", ["admin"])
    assert secret != other
    key = authenticate(store, secret)
    assert (key.name, key.scopes, key.revoked) == ("the shop", ("recommend", "events"), None)
    assert authenticate(store, other).scopes == ("admin",)
    assert store.revoke_key(key.id)
    assert authenticate(store, secret) is None
    assert authenticate(store, other).name == "ops"


def test_a_secret_has_256_random_bits_and_stays_with_its_owner(store, tmp_path):
    secret = create_key(store, "the shop", ["recommend"])
    parts = re.fullmatch(r"hr_([0-9a-f]{12})_([A-Za-z0-9_-]{43})", secret)
    assert parts
    stored = store.key(parts[1])[1]
    assert stored == hashlib.sha256(secret.encode()).digest()
    files = b"".join(file.read_bytes() for file in tmp_path.iterdir())
    assert parts[1].encode() in files
    assert parts[2].encode() not in files


@pytest.mark.parametrize(
    "change",
    [
        lambda secret: "",
        lambda secret: "hr_",
        lambda secret: secret[:-1],
        lambda secret: secret + "a",
        lambda secret: secret + "\n",
        lambda secret: secret[:-1] + ("a" if secret[-1] != "a" else "b"),
        lambda secret: secret.upper(),
        lambda secret: "hr_000000000000" + secret[15:],
        lambda secret: secret[:-1] + "é",
        lambda secret: secret[:-1] + "\ud800",
        lambda secret: secret.encode().hex(),
    ],
)
def test_nothing_else_is_a_key(store, change):
    secret = create_key(store, "the shop", ["recommend"])
    assert authenticate(store, change(secret)) is None
    assert authenticate(store, secret) is not None


def test_the_comparison_takes_the_same_time(store, monkeypatch):
    compared = []
    monkeypatch.setattr(
        keys.hmac, "compare_digest", lambda one, two: compared.append((one, two)) or one == two
    )
    secret = create_key(store, "the shop", ["recommend"])
    assert authenticate(store, secret)
    assert authenticate(store, "hr_000000000000" + secret[15:]) is None  # no such key
    assert [len(value) for pair in compared for value in pair] == [32] * 4


@pytest.mark.parametrize(
    ("name", "scopes", "error", "message"),
    [
        ("", ["admin"], InputError, "name has 0 characters"),
        (7, ["admin"], InputTypeError, "name is 7"),
        ("ops", [], InputTypeError, "wanted a list of names"),
        ("ops", None, InputTypeError, "wanted a list of scopes"),
        ("ops", "admin", InputTypeError, "wanted a list of names"),
        ("ops", ["root"], InputError, "scope is 'root'; wanted one of 'recommend'"),
        ("ops", ["admin", "admin"], InputError, "none twice"),
    ],
)
def test_a_wrong_key_is_not_made(store, name, scopes, error, message):
    with pytest.raises(error, match=message):
        create_key(store, name, scopes)
    assert not [*store.keys()]
