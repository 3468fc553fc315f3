"""Run by test_store.py in a process of its own, to be killed while it appends."""

from __future__ import annotations

import os
import sys
import threading
from datetime import UTC, datetime, timedelta

from hybridrec.serve.store.by_url import open_store
from hybridrec.serve.store.contract import StoredEvent


def batch(number):
    """20 of the 10,000 events."""
    start = datetime(2024, 1, 1, tzinfo=UTC)
    return [
        StoredEvent(str(n), f"u{n % 50}", f"i{n % 77}", start + timedelta(seconds=n))
        for n in range(20 * number, 20 * number + 20)
    ]


def main(place):
    store = open_store(place)

    def send(first):
        for number in range(first, 500, 4):
            events = batch(number)
            store.append(events, key="k")
            os.write(1, (" ".join(event.id for event in events) + "\n").encode())

    threads = [threading.Thread(target=send, args=(first,)) for first in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    main(sys.argv[1])
