"""What every store promises, held against SQLite and (marker service) a real PostgreSQL."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hybridrec.checks import InputError, InputTypeError
from hybridrec.serve.store import rules
from hybridrec.serve.store.by_url import open_store
from hybridrec.serve.store.contract import (
    AHEAD,
    Appended,
    ConflictError,
    Forgotten,
    ForgottenError,
    History,
    Key,
    StoredEvent,
    StoreError,
)

HELPER = Path(__file__).parent / "store_helper.py"
NOON = datetime(2024, 5, 1, 12, tzinfo=UTC)
UNKNOWN = History()


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.service)])
def place(request, tmp_path):
    if request.param == "sqlite":
        return str(tmp_path / "service.sqlite")
    return request.getfixturevalue("postgres_server").database()


@pytest.fixture
def store(place):
    with closing(open_store(place, health_queries=3)) as opened:
        yield opened


def at(minutes):
    return NOON + timedelta(minutes=minutes)


def event(name, user="ann", item="i1", time=NOON, liked=True):
    return StoredEvent(name, user, item, time, liked)


def saved(user, item, time=None, liked=True):
    return StoredEvent(None, user, item, time, liked)


# -- appending ----------------------------------------------------------------------------------


def test_what_was_appended_is_there_after_reopening(place):
    events = [event("e1"), event("e2", item="i2", time=at(1), liked=False), event("e3", "bob")]
    with closing(open_store(place)) as store:
        assert store.append(events, key="k") == Appended(3, 0)
    with closing(open_store(place)) as store:
        assert store.events("ann") == events[:2]
        assert store.events("bob") == events[2:]
        assert store.histories(["bob", "ann", "eve"]) == [
            History(True, ("i1",), ()),
            History(True, ("i1",), ("i2",)),
            UNKNOWN,
        ]


def test_an_id_counts_once_a_key(store):
    assert store.append([event("e1")], key="k") == Appended(1, 0)
    assert store.append([event("e1"), event("e2")], key="k") == Appended(1, 1)
    assert store.append([event("e1")], key="other") == Appended(1, 0)
    assert [each.id for each in store.events("ann")] == ["e1", "e2", "e1"]
    assert store.append([], key="k") == Appended(0, 0)


@pytest.mark.parametrize(
    "other",
    [
        event("e1", user="bob"),
        event("e1", item="i2"),
        event("e1", time=at(1)),
        event("e1", time=None),
        event("e1", liked=False),
    ],
)
def test_an_id_with_another_content_is_refused_with_its_batch(store, other):
    store.append([event("e1")], key="k")
    with pytest.raises(ConflictError, match="'e1' was used before"):
        store.append([event("e2"), other, event("e3")], key="k")
    assert store.events("ann") == [event("e1")]
    with pytest.raises(ConflictError, match="'e1' was used before"):
        store.append([event("e1"), other], key="new")
    assert store.append([event("e1"), event("e1")], key="new") == Appended(1, 1)


def test_an_event_without_a_time_happens_now_and_is_the_same_when_sent_again(store):
    before = datetime.now(UTC)
    assert store.append([event("e1", time=None)], key="k") == Appended(1, 0)
    assert store.append([event("e1", time=None)], key="k") == Appended(0, 1)
    time = store.events("ann")[0].time
    assert before <= time <= datetime.now(UTC)
    with pytest.raises(ConflictError):
        store.append([event("e1", time=time)], key="k")


def test_a_time_is_the_same_in_every_offset(store):
    there = NOON.astimezone(timezone(timedelta(hours=-7)))
    store.append([event("e1", time=there)], key="k")
    assert store.append([event("e1")], key="k") == Appended(0, 1)
    assert store.events("ann")[0].time.utcoffset() == timedelta(0)


@pytest.mark.parametrize(
    "time",
    [datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC), at(0.0000001)],
)
def test_every_time_comes_back(store, time):
    store.append([event("e1", time=time)], key="k")
    assert store.events("ann") == [event("e1", time=time)]
    assert store.append([event("e1", time=time)], key="k") == Appended(0, 1)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (event("e\0"), r"events\[1\]\.id .*NUL"),
        (event(""), r"events\[1\]\.id has 0 characters"),
        (event("e2", user="u" * 257), r"events\[1\]\.user has 257 characters"),
        (event("e2", item="\ud800"), r"events\[1\]\.item .*valid Unicode"),
        (event("e2", time=datetime(2024, 1, 1)), r"events\[1\]\.time .*without an offset"),
        (
            event("e2", time=datetime.min.replace(tzinfo=timezone(timedelta(hours=5)))),
            r"events\[1\]\.time .*years 1 to 9999",
        ),
    ],
)
def test_what_no_store_can_hold_is_refused_with_its_batch(store, wrong, message):
    with pytest.raises(InputError, match=message):
        store.append([event("e1"), wrong], key="k")
    assert store.events("ann") == []


def test_an_id_that_is_no_text_is_refused(store):
    with pytest.raises(InputTypeError, match=r"events\[0\]\.user is 7 \(int\)"):
        store.append([event("e1", user=7)], key="k")
    with pytest.raises(InputTypeError, match=r"events\[0\]\.time is '2024'"):
        store.append([event("e1", time="2024")], key="k")
    with pytest.raises(InputError, match=r"history .*NUL"):
        store.keep_query(None, ["a\0"])


@pytest.mark.parametrize("user", ["u" * 256, "Ж" * 256, "\U0001f600" * 256, "a'b\"c%_\\", " "])
def test_long_and_odd_ids_come_back(store, user):
    store.append([event(user, user=user, item=user)], key="k")
    assert store.events(user) == [event(user, user=user, item=user)]
    assert store.histories([user]) == [History(True, (user,), ())]
    assert store.users(prefix=user[:2]) == [user]
    assert store.forget(user) == Forgotten(1, 0)


@pytest.mark.parametrize("user", ["a\0b", "", "\ud800", "x" * 300])
def test_nothing_is_known_of_a_user_who_cannot_be(store, user):
    assert store.histories([user, "ann"]) == [UNKNOWN, UNKNOWN]
    assert store.events(user) == []
    if user:
        assert store.users(prefix=user) == []
    with pytest.raises(InputError, match="user"):
        store.forget(user)


# -- histories ----------------------------------------------------------------------------------


def test_histories_are_in_order_of_time_then_of_arrival(store):
    store.append([event("e1", item="late", time=at(9)), event("e2", item="b")], key="k")
    store.append([event("e3", item="c"), event("e4", item="no", liked=False)], key="k")
    store.append([event("e5", item="early", time=at(-9))], key="k")
    assert store.histories(["ann"]) == [History(True, ("early", "b", "c", "late"), ("no",))]
    assert store.histories(["ann"], newest=2) == [History(True, ("late",), ("no",))]
    assert store.histories(["ann"], newest=3) == [History(True, ("c", "late"), ("no",))]
    assert [each.item for each in store.events("ann")] == ["early", "b", "c", "no", "late"]
    assert store.histories([]) == []
    assert store.histories(["ann", "ann"], newest=1) == [History(True, ("late",), ())] * 2


def test_what_was_only_disliked_makes_a_user_known(store):
    store.append([event("e1", liked=False)], key="k")
    assert store.histories(["ann"]) == [History(True, (), ("i1",))]


def test_users_by_the_start_of_their_ids(store):
    names = ["b", "a10", "a", "ab", "a2", "é", "A", "a\U0010ffff", "\U0010ffff"]
    store.append([event(f"e{n}", user=name) for n, name in enumerate(names)], key="k")
    store.append([event(f"f{n}", user="a2") for n in range(3)], key="k")
    assert store.users() == sorted(names)
    assert store.users(prefix="a") == ["a", "a10", "a2", "ab", "a\U0010ffff"]
    assert store.users(prefix="a", limit=2) == ["a", "a10"]
    assert store.users(prefix="\U0010ffff") == ["\U0010ffff"]
    assert store.users(prefix="c") == []
    store.forget("a10")
    assert store.users(prefix="a1") == []


# -- imports ------------------------------------------------------------------------------------


def test_an_import_is_done_once_a_mark_and_stands_before(store):
    store.append([event("e1", item="new", time=at(-99))], key="k")
    events = [saved("ann", item) for item in "cab"] + [saved("bob", "x", at(1), liked=False)]
    assert store.import_once("m1", iter(events)) == 4
    assert store.import_once("m1", iter(events)) is None
    assert store.histories(["ann", "bob"]) == [
        History(True, ("c", "a", "b", "new"), ()),
        History(True, (), ("x",)),
    ]
    assert store.events("bob") == [saved("bob", "x", at(1), liked=False)]
    assert store.events("ann")[:3] == events[:3]


def test_a_later_import_brings_what_is_new_alone(store):
    store.append([event("e1", item="sent", time=at(5))], key="k")
    first = [saved("ann", item) for item in ("a", "b", "a")]
    assert store.import_once("m1", first) == 3  # a repeat is an event of its own
    second = [*first, saved("ann", "c"), saved("ann", "sent", at(5)), saved("ann", "sent", at(6))]
    assert store.import_once("m2", second) == 2
    assert store.histories(["ann"])[0].liked == ("a", "b", "a", "c", "sent", "sent")


def test_an_import_that_was_interrupted_goes_on(store, monkeypatch):
    monkeypatch.setattr("hybridrec.serve.store.rules.chunks.__defaults__", (5,))
    events = [saved(f"u{user}", item) for user in range(8) for item in ("a", "b", "a")]

    def breaking():
        yield from events[:16]
        raise OSError("the disk went away")

    with pytest.raises(OSError, match="went away"):
        store.import_once("m1", breaking())
    done = [history.liked for history in store.histories([f"u{user}" for user in range(8)])]
    assert set(done) == {("a", "b", "a"), ()}  # nobody's is half done
    missing = 3 * done.count(())
    assert missing
    assert store.import_once("m1", events) == missing
    assert store.import_once("m1", events) is None
    for user in range(8):
        assert store.histories([f"u{user}"])[0].liked == ("a", "b", "a")


# -- forgetting ---------------------------------------------------------------------------------


def test_forgetting_removes_a_user_and_no_other(store):
    store.append([event("e1"), event("e2"), event("e3", user="bob")], key="k")
    store.import_once("m1", [saved("ann", "x")])
    store.keep_query("ann", ["i1"])
    store.keep_query("bob", ["i1", "i2"])
    store.keep_query(None, ["i3"])
    assert store.forget("ann") == Forgotten(3, 1)
    assert store.forget("ann") == Forgotten(0, 0)
    assert store.forget("eve") == Forgotten(0, 0)
    assert store.events("ann") == []
    assert store.histories(["ann", "bob"]) == [UNKNOWN, History(True, ("i1",), ())]
    assert store.queries() == [("i1", "i2"), ("i3",)]
    assert store.users() == ["bob"]
    # Nor does the id that he used say that it was.
    assert store.append([event("e1", user="bob")], key="k") == Appended(1, 0)


def test_what_was_before_the_forgetting_is_not_taken_again(place):
    with closing(open_store(place)) as store:
        store.append([event("e1")], key="k")
        before = datetime.now(UTC)
        store.forget("ann")
        after = datetime.now(UTC)
    with closing(open_store(place)) as store:
        for time in (NOON, before):
            with pytest.raises(ForgottenError, match="forgotten") as caught:
                store.append([event("e2", user="bob"), event("e1", time=time)], key="k")
            assert "ann" not in str(caught.value)
        assert store.events("bob") == []
        replay = [saved("ann", "x"), saved("ann", "y", NOON), saved("ann", "z", after)]
        assert store.import_once("m1", [*replay, saved("bob", "x")]) == 2
        later = event("e3", time=after + timedelta(seconds=1))
        assert store.append([later, event("e4", time=None)], key="k") == Appended(2, 0)
        assert len(store.events("ann")) == 3
        assert store.forget("ann").events == 3


def test_what_was_sent_without_a_time_is_not_taken_again(place):
    first = [event("e1", time=None), event("e2", time=None)]
    with closing(open_store(place)) as store:
        store.append(first, key="k")
        store.append([event("e3", time=None, user="bob")], key="k")
        store.forget("ann")
        store.forget("ann")
    with closing(open_store(place)) as store:
        for sent in first:
            with pytest.raises(ForgottenError, match=f"{sent.id!r}.*forgotten") as caught:
                store.append([event("e9", user="bob"), sent], key="k")
            assert "ann" not in str(caught.value)
        # Other events of hers, the key of somebody else, and somebody else under her ids are new.
        assert store.append([event("e3", item="i3", time=None)], key="other").accepted
        assert store.append([event("e4", time=None)], key="k") == Appended(1, 0)
        assert store.append([event("e4", time=None)], key="k") == Appended(0, 1)
        assert store.append([first[0]], key="other") == Appended(1, 0)
        assert store.append([event("e1", user="bob", time=None)], key="k") == Appended(1, 0)
        assert store.append([event("e3", time=None, user="bob")], key="k") == Appended(0, 1)
        # What came since goes the same way.
        store.forget("ann")
        for sent, key in ((first[0], "k"), (first[0], "other"), (event("e4", time=None), "k")):
            with pytest.raises(ForgottenError):
                store.append([sent], key=key)
        assert [each.id for each in store.events("bob")] == ["e3", "e1"]


def test_a_replay_is_told_by_a_hash_that_reveals_nothing():
    tag = rules.event_tag(b"s" * 32, "key", "event", "ann")
    assert len(tag) == 32
    others = [(b"t" * 32, "key", "event", "ann"), (b"s" * 32, "keyevent", "", "ann")]
    others += [(b"s" * 32, "ke", "yevent", "ann"), (b"s" * 32, "key", "event", "bob")]
    assert len({tag, *(rules.event_tag(*other) for other in others)}) == 5
    assert tag not in {rules.user_tag(b"s" * 32, name) for name in ("ann", "event", "key")}


def test_an_event_of_the_very_moment_is_refused(store, monkeypatch):
    store.append([event("e1", time=NOON)], key="k")
    ahead = datetime.now(UTC) + timedelta(minutes=4)
    store.append([event("e2", time=ahead)], key="k")
    store.forget("ann")  # at the time of e2, which a clock ahead of ours gave it
    with pytest.raises(ForgottenError):
        store.append([event("e2", time=ahead)], key="k")
    assert store.append([event("e3", time=ahead + timedelta(microseconds=1))], key="k").accepted


def test_an_event_of_a_time_to_come_refuses_nobody_for_ever(store):
    """Only an import brings one: whoever sends events may be minutes ahead, and no more."""
    now = datetime.now(UTC)
    events = [saved("ann", "x", now + timedelta(days=400)), saved("bob", "x")]
    assert store.import_once("m1", events) == 2
    assert store.forget("ann").events == 1
    with pytest.raises(ForgottenError):
        store.append([event("e1", time=now + timedelta(minutes=4))], key="k")
    assert store.append([event("e1", time=now + timedelta(minutes=6))], key="k").accepted
    # A model that was saved again does not bring it back.
    assert store.import_once("m2", events) == 0
    assert [each.item for each in store.events("ann")] == ["i1"]


def test_forgetting_again_does_not_go_back(store):
    ahead = datetime.now(UTC) + timedelta(minutes=4)
    store.append([event("e1", time=ahead)], key="k")
    store.forget("ann")
    store.forget("ann")
    with pytest.raises(ForgottenError):
        store.append([event("e1", time=ahead)], key="k")


# -- queries, keys, the secret ------------------------------------------------------------------


def test_the_newest_queries_are_kept(store):
    store.append([event("e1")], key="k")
    for number in range(5):
        store.keep_query("ann" if number % 2 else None, [f"i{number}", "x"])
    assert store.queries() == [("i2", "x"), ("i3", "x"), ("i4", "x")]
    store.keep_query("nobody", ["i9"])
    assert store.queries() == [("i2", "x"), ("i3", "x"), ("i4", "x")]


def test_no_queries_are_kept_where_none_are_wanted(place):
    with closing(open_store(place, health_queries=0)) as store:
        store.keep_query(None, ["i1"])
        assert store.queries() == []


def test_keys_stay_and_are_revoked_once(place):
    key = Key("id1", "the shop", ("recommend", "events"), NOON)
    with closing(open_store(place)) as store:
        store.add_key(key, b"d" * 32)
        store.add_key(Key("id0", "ops", ("admin",), at(1)), b"e" * 32)
        with pytest.raises(InputError, match="'id1'"):
            store.add_key(Key("id1", "another", ("admin",), at(1)), b"f" * 32)
    with closing(open_store(place)) as store:
        assert store.key("id1") == (key, b"d" * 32)
        assert store.key("id2") is None
        assert store.key("id\0") is None
        assert [each.id for each in list(store.keys())] == ["id1", "id0"]
        assert store.revoke_key("id1") is True
        assert store.revoke_key("id1") is False
        assert store.revoke_key("id2") is False
        revoked = store.key("id1")[0].revoked
        assert abs(datetime.now(UTC) - revoked) < timedelta(minutes=1)
        assert store.keys()[0].revoked == revoked


def test_the_secret_is_made_once(place):
    secrets = set()
    for _ in range(2):
        with closing(open_store(place)) as store:
            secrets |= {store.secret(), store.secret()}
    assert [len(secret) for secret in secrets] == [32]


def test_a_closed_store_says_so(place):
    store = open_store(place)
    store.ping()
    store.close()
    store.close()
    for ask in (
        store.ping,
        store.keys,
        lambda: store.append([event("e1")], key="k"),
        lambda: store.forget("ann"),
    ):
        with pytest.raises(StoreError):
            ask()


# -- threads ------------------------------------------------------------------------------------


def test_threads_that_send_the_same_events_count_them_once(store):
    batches = [
        [event(f"e{n}", user=f"u{n % 7}") for n in range(s, s + 10)] for s in range(0, 90, 5)
    ]

    def send(turn):
        order = batches[turn:] + batches[:turn]
        return [store.append(batch[:: 1 if turn % 2 else -1], key="k") for batch in order]

    with ThreadPoolExecutor(6) as pool:
        answers = [answer for part in pool.map(send, range(6)) for answer in part]
    assert sum(answer.accepted for answer in answers) == 95
    assert sum(answer.duplicates for answer in answers) == 6 * 18 * 10 - 95
    stored = [each.id for user in range(7) for each in store.events(f"u{user}")]
    assert sorted(stored) == sorted(f"e{n}" for n in range(95))


def test_nothing_slips_in_while_a_user_is_forgotten(store):
    def send(thread):
        for number in range(100_000):
            try:
                store.append([event(f"e{thread}-{number}"), event(f"f{thread}-{number}")], key="k")
                store.keep_query("ann", ["i1"])
            except ForgottenError:
                return number
        return None

    with ThreadPoolExecutor(3) as pool:
        sends = [pool.submit(send, thread) for thread in range(3)]
        while not store.queries():
            time.sleep(0.001)
        gone = store.forget("ann")
        sent = [each.result() for each in sends]
    assert None not in sent
    assert gone.events == 2 * sum(sent)
    assert gone.queries
    assert store.events("ann") == []
    assert store.queries() == []


# -- against a plain reference ------------------------------------------------------------------

USERS, ITEMS = ("u0", "u1"), ("a", "b")
EVENTS = st.builds(
    StoredEvent,
    st.sampled_from([f"e{n}" for n in range(5)]),
    st.sampled_from(USERS),
    st.sampled_from(ITEMS),
    st.sampled_from([at(0), at(1), at(10**8)]),  # the last is after any forgetting
    st.booleans(),
)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["k0", "k1"]), st.lists(EVENTS, max_size=4)),
        st.sampled_from(USERS),
    ),
    max_size=12,
)


EVER = datetime.min.replace(tzinfo=UTC)


class Reference:
    """The same promises, as plainly as they can be written."""

    def __init__(self):
        self.rows, self.moments = [], {}

    def append(self, events, key):
        before = [row for k, row in self.rows if k == key]
        if any(one.id == two.id and one != two for one in events for two in events):
            raise ConflictError
        if any(each.time <= self.moments.get(each.user, EVER) for each in events):
            raise ForgottenError
        if any(one.id == two.id and one != two for one in events for two in before):
            raise ConflictError
        new = {each.id: each for each in events if each not in before}
        self.rows += [(key, each) for each in new.values()]
        return Appended(len(new), len(events) - len(new))

    def forget(self, user, now):
        gone = [row for _, row in self.rows if row.user == user]
        self.rows = [(key, row) for key, row in self.rows if row.user != user]
        moment = min(max([now, *(row.time for row in gone)]), now + AHEAD)
        self.moments[user] = max(moment, self.moments.get(user, now))
        return Forgotten(len(gone), 0)

    def events(self, user):
        return sorted((row for _, row in self.rows if row.user == user), key=lambda row: row.time)


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(steps=STEPS)
def test_any_sequence_does_what_the_reference_does(store, steps):
    reference, run = Reference(), f"{time.monotonic_ns()}-"

    def renamed(each):
        return StoredEvent(each.id, run + each.user, each.item, each.time, each.liked)

    def outcome(ask, *values):
        try:
            return ask(*values)
        except (ConflictError, ForgottenError) as error:
            return type(error)

    for step in steps:
        if isinstance(step, str):
            wanted = reference.forget(run + step, datetime.now(UTC))
            assert store.forget(run + step) == wanted
        else:
            key, events = step[0], [renamed(each) for each in step[1]]
            got = outcome(lambda events, key: store.append(events, key=run + key), events, key)
            assert got == outcome(reference.append, events, key)
        for user in USERS:
            events = reference.events(run + user)
            assert store.events(run + user) == events
            liked = tuple(each.item for each in events if each.liked)
            disliked = tuple(each.item for each in events if not each.liked)
            assert store.histories([run + user]) == [History(bool(events), liked, disliked)]


# -- a process that is killed -------------------------------------------------------------------


@pytest.mark.parametrize("after", [1, 3000, 7000])
def test_a_killed_process_loses_no_acknowledged_event(place, after):
    process = subprocess.Popen([sys.executable, HELPER, place], stdout=subprocess.PIPE, text=True)
    acknowledged = []
    with process.stdout:
        for line in process.stdout:
            acknowledged += line.split()
            if len(acknowledged) >= after and process.returncode is None:
                with suppress(ProcessLookupError):
                    os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert process.returncode == -signal.SIGKILL
    assert after <= len(acknowledged) < 10_000
    with closing(open_store(place)) as store:
        stored = [each for user in range(50) for each in store.events(f"u{user}")]
        ids = [each.id for each in stored]
        assert len(set(ids)) == len(ids)
        assert set(acknowledged) <= set(ids)
        # Batches are whole: of 20 events each, numbered on.
        batches = {int(name) // 20 for name in ids}
        assert len(ids) == 20 * len(batches)
        from store_helper import batch

        sent = [store.append(batch(number), key="k") for number in range(500)]
        assert sum(answer.accepted for answer in sent) == 10_000 - len(ids)
        assert sum(answer.duplicates for answer in sent) == len(ids)
