"""API keys: 256 random bits that the store knows by their SHA-256 alone."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from hybridrec.checks import InputTypeError, distinct_names, one_of
from hybridrec.serve.store.contract import SCOPES, Key
from hybridrec.serve.store.rules import checked_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hybridrec.serve.store.contract import Scope, Store

_SECRET = re.compile(r"hr_([0-9a-f]{12})_[A-Za-z0-9_-]{43}")
_NOBODY = bytes(32)
"""Compared with where there is no such key, so that its absence takes no less time."""


def create_key(store: Store, name: str, scopes: Sequence[Scope]) -> str:
    """Make a key and keep its hash.

    Returns:
        ``hr_<id>_<43 characters>``: the only time that it can be seen.

    Raises:
        InputError: an empty name, a scope twice, or one that there is not.
        InputTypeError: no list of scopes.
    """
    checked_text("name", name)
    given = distinct_names("scopes", scopes)
    if given is None:
        raise InputTypeError(f"scopes is None; wanted a list of scopes out of {', '.join(SCOPES)}")
    for scope in given:
        one_of("scope", scope, SCOPES)
    key_id = secrets.token_hex(6)
    secret = f"hr_{key_id}_{secrets.token_urlsafe(32)}"
    store.add_key(Key(key_id, name, tuple(scopes), datetime.now(UTC)), _digest(secret))
    return secret


def authenticate(store: Store, secret: str) -> Key | None:
    """The key whose secret this is; None if there is none, or it was revoked."""
    parts = _SECRET.fullmatch(secret)
    if parts is None:
        return None
    key, digest = store.key(parts[1]) or (None, _NOBODY)
    same = hmac.compare_digest(digest, _digest(secret))
    return key if same and key is not None and key.revoked is None else None


def _digest(secret: str) -> bytes:
    # Not a slow hash: there is nothing to guess in 256 random bits.
    return hashlib.sha256(secret.encode()).digest()
