"""Talk to the service: :class:`Client`, and :class:`AsyncClient` for asyncio.

with Client("http://127.0.0.1:8000", key="...") as client:
    answer = client.recommend(user="alice", k=5)
    client.send_event(user="alice", item=answer.items[0].item)
"""

from hybridrec.client.asynchronous import AsyncClient
from hybridrec.client.blocking import Client
from hybridrec.client.errors import (
    AwayError,
    BusyError,
    ClientError,
    ContradictionError,
    NotAllowedError,
    NotFoundError,
    RefusedError,
)

__all__ = [
    "AsyncClient",
    "AwayError",
    "BusyError",
    "Client",
    "ClientError",
    "ContradictionError",
    "NotAllowedError",
    "NotFoundError",
    "RefusedError",
]
