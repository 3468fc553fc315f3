"""A model whose titles are out to do harm, and a browser tab that tells what happened in it."""

import re
from dataclasses import dataclass, field

import httpx2
import pyarrow as pa
from model_helper import make_engine

import hybridrec as hr

HARM = (
    "<img src=x onerror=window.hacked=1>",
    '"><script>window.hacked=2</script>',
    "&lt;b&gt; ${1+1} {{1+1}} <svg/onload=window.hacked=3>",
)
ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
)
_STATUS = re.compile(r"Failed to load resource: the server responded with a status of (\d+)")


def harmful_model(frames, encoder):
    """The small model of the tests, every title with markup behind it."""
    events, items = frames
    titles = [
        f"{title} {HARM[place % len(HARM)]}"
        for place, title in enumerate(items["title"].to_pylist())
    ]
    data = hr.Dataset.from_frame(
        events,
        user="user_id",
        item="item_id",
        time="timestamp",
        items=items.set_column(items.column_names.index("title"), "title", pa.array(titles)),
        item_text="{title}. {genres}",
    )
    return make_engine(encoder).fit(data)


@dataclass
class Tab:
    """A page of the service in the browser.

    Attributes:
        page: playwright's.
        url: of the service.
        secret: an API key that everything may be done with, for :meth:`api`; None without keys.
        refused: statuses of the API that the test provokes, which the browser's console reports.
        told: errors and warnings of the console, and what scripts threw.
        asked: every URL that was requested.
    """

    page: object
    url: str
    secret: str | None = None
    refused: set = field(default_factory=set)
    told: list = field(default_factory=list)
    asked: list = field(default_factory=list)

    def __post_init__(self):
        self.page.on("console", self._console)
        self.page.on("pageerror", lambda error: self.told.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.set_default_timeout(20_000)

    def _console(self, message):
        status = _STATUS.match(message.text)
        if status and int(status[1]) in self.refused:
            return
        if message.type in ("error", "warning"):
            self.told.append(message.text)

    def check(self):
        """Nothing went wrong unseen, nothing of the titles ran, nobody else was asked."""
        assert self.told == []
        assert self.page.evaluate("window.hacked") is None
        foreign = [url for url in self.asked if not url.startswith((f"{self.url}/", "data:"))]
        assert foreign == []
        assert self.asked

    def open(self, fragment=""):
        """Go there, and wait for the answer if somebody is asked about."""
        self.page.goto("about:blank")
        self.page.goto(f"{self.url}/#{fragment}")
        self.page.wait_for_selector(".column:not(.waiting)")
        self.settle()

    def settle(self):
        """Wait until what is shown is the answer to what is asked."""
        self.page.wait_for_timeout(50)
        self.page.wait_for_selector("#columns:not([aria-busy])")

    def api(self, **body):
        """What the API says to the same question."""
        headers = {} if self.secret is None else {"Authorization": f"Bearer {self.secret}"}
        given = {"explain": True, **body}
        answer = httpx2.post(f"{self.url}/v1/recommend", json=given, headers=headers, timeout=60)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def items(self, column=0):
        """The ids of a list, from the top."""
        rows = self.page.locator(".column").nth(column).locator(".row")
        return rows.evaluate_all("rows => rows.map(row => row.dataset.item)")

    def history(self):
        """The ids of the history, newest first."""
        return self.page.locator("#history li").evaluate_all(
            "rows => rows.map(row => row.dataset.item)"
        )

    def fragment(self):
        """What is kept in the URL."""
        return self.page.evaluate("location.hash.slice(1)")

    def names(self, where):
        """The texts of titles under a selector."""
        return self.page.locator(f"{where} .name").all_text_contents()


def ids(answer):
    """The items of an answer, as text."""
    return [str(item["item"]) for item in answer["items"]]
