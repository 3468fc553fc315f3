"""The page in a real browser, against the real service."""

import re

import httpx2
import pytest
from api_helper import listening, settings
from page_helper import ARGUMENTS, HARM, Tab, harmful_model, ids
from playwright.sync_api import expect, sync_playwright

from hybridrec.serve.access.keys import create_key
from hybridrec.serve.store.by_url import open_store

pytestmark = pytest.mark.service

NOTHING, MINUS = "\N{EN DASH}", "\N{MINUS SIGN}"


@pytest.fixture(scope="module")
def folder(frames, tiny_encoder, tmp_path_factory):
    """One version, with its users' histories."""
    folder = tmp_path_factory.mktemp("page") / "model"
    harmful_model(frames, tiny_encoder).save(folder, histories=True)
    return folder


@pytest.fixture(scope="module")
def service(folder, tmp_path_factory, save_another):
    """The URL of a service with two versions, of which the second knows no i0; without keys."""
    with listening(settings(folder, tmp_path_factory.mktemp("open"))) as url:
        save_another(folder)
        httpx2.post(f"{url}/v1/models/load", json={}, timeout=60).raise_for_status()
        yield url


@pytest.fixture(scope="module")
def locked(folder, tmp_path_factory):
    """The same with keys: its URL and a secret for each scope."""
    config = settings(folder, tmp_path_factory.mktemp("locked"))
    store = open_store(config.store)
    secrets = {scope: create_key(store, scope, (scope,)) for scope in ("recommend", "admin")}
    store.close()
    with listening(config) as url:
        yield url, secrets


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=[*ARGUMENTS])
        yield browser
        browser.close()


@pytest.fixture
def opened(browser):
    """Opens tabs, and checks at the end what happened in them."""
    tabs, contexts = [], []

    def open_tab(url, secret=None, **options):
        contexts.append(browser.new_context(**options))
        tabs.append(Tab(contexts[-1].new_page(), url, secret))
        return tabs[-1]

    yield open_tab
    for tab in tabs:
        tab.check()
    for context in contexts:
        context.close()


@pytest.fixture
def tab(opened, service):
    return opened(service)


def pick(tab, field, text, option):
    """Type into a field that suggests, and take a suggestion with the keyboard."""
    tab.page.locator(field).click()
    tab.page.keyboard.type(text)
    wanted = tab.page.locator(f"{field}-options [role=option]").filter(
        has_text=re.compile(f"^{re.escape(option)}")
    )
    wanted.first.wait_for()
    while tab.page.locator(field).get_attribute(
        "aria-activedescendant"
    ) != wanted.first.get_attribute("id"):
        tab.page.keyboard.press("ArrowDown")
    assert wanted.first.get_attribute("aria-selected") == "true"
    tab.page.keyboard.press("Enter")
    tab.settle()


def open_all(tab):
    """Look behind every line."""
    for button in reversed(tab.page.get_by_role("button", name="Open all").all()):
        button.click()
    expect(tab.page.locator(".detail")).to_have_count(tab.page.locator(".row").count())


def test_a_user_is_picked_by_the_start_of_the_id(tab):
    tab.open()
    tab.page.locator("#user").click()
    tab.page.keyboard.type("u1")
    options = tab.page.locator("#user-options [role=option]")
    expect(options).to_have_text(["u1", *(f"u{user}" for user in range(10, 20))])
    tab.page.keyboard.press("ArrowDown")
    tab.page.keyboard.press("ArrowDown")
    tab.page.keyboard.press("Enter")
    tab.page.wait_for_selector(".row")
    assert tab.page.locator("#user").input_value() == "u10"
    answer = tab.api(user="u10")
    assert tab.items() == ids(answer)
    assert len(tab.items()) == 10
    assert tab.history() == [item["item"] for item in reversed(answer["history"])]
    assert tab.names("#history") == [item["title"] for item in reversed(answer["history"])]
    assert tab.names(".row .line") == [item["title"] for item in answer["items"]]
    assert tab.fragment() == "user=u10"


def test_somebody_to_start_with_is_offered(tab):
    tab.open()
    tab.page.locator(".starts button").first.click()
    tab.page.wait_for_selector(".row")
    assert tab.items() == ids(tab.api(user="u0"))


def test_any_id_can_be_typed_and_an_unknown_user_is_told_so(tab):
    tab.open()
    tab.page.locator("#user").fill("nobody")
    tab.page.keyboard.press("Enter")
    tab.page.wait_for_selector(".row")
    assert tab.items() == ids(tab.api(user="nobody"))
    notes = " ".join(tab.page.locator(".column .notice").all_text_contents())
    assert "Nothing is known of user nobody" in notes
    assert "popular" in notes


def test_a_history_is_typed_by_titles_moved_and_taken_back(tab):
    tab.open()
    tab.page.get_by_label("A history").check()
    pick(tab, "#item", "fargo", "fargo 1")
    pick(tab, "#item", "alien 2", "alien 2")
    pick(tab, "#item", "i9", "ghost 9")
    assert tab.history() == ["i9", "i2", "i1"]
    assert tab.items() == ids(tab.api(history=["i1", "i2", "i9"]))
    tab.page.get_by_role("button", name="Make older: ghost 9").click()
    tab.settle()
    assert tab.history() == ["i2", "i9", "i1"]
    assert tab.page.evaluate("document.activeElement.ariaLabel").startswith("Make older: ghost 9")
    assert tab.items() == ids(tab.api(history=["i1", "i9", "i2"]))
    tab.page.get_by_role("button", name="Remove: alien 2").click()
    tab.settle()
    assert tab.history() == ["i9", "i1"]
    assert tab.items() == ids(tab.api(history=["i1", "i9"]))
    assert tab.fragment() == "who=history&item=i1&item=i9"
    tab.page.locator("#history li").last.drag_to(tab.page.locator("#history li").first)
    tab.settle()
    assert tab.history() == ["i1", "i9"]
    tab.page.get_by_role("button", name="Clear").click()
    assert tab.history() == []


def test_a_users_history_can_be_gone_on_with(tab):
    tab.open("user=u5")
    before = tab.history()
    tab.page.get_by_role("button", name="Edit").click()
    tab.settle()
    assert tab.history() == before
    assert tab.page.locator("#history").get_attribute("class") == "editable"
    tab.page.get_by_role("button", name="Remove").first.click()
    tab.settle()
    assert tab.items() == ids(tab.api(history=list(reversed(before[1:]))))


def test_stages_are_left_out_one_by_one(tab):
    tab.open("user=u7")
    lists = {}
    for rerank, fuse in ((True, True), (False, True), (False, False), (True, False)):
        tab.page.locator("#rerank").set_checked(rerank)
        tab.page.locator("#fuse").set_checked(fuse)
        tab.settle()
        lists[rerank, fuse] = tab.items()
        answer = tab.api(user="u7", stages={"rerank": rerank, "fuse": fuse})
        assert tab.items() == ids(answer)
        head = tab.page.locator(".head .step").all_text_contents()
        assert ("reranked" in head) is rerank
    assert lists[True, True] != lists[False, True] != lists[False, False]


def test_how_many_and_what_was_seen(tab):
    tab.open("user=u7")
    tab.page.locator("#k").fill("25")
    tab.page.locator("#exclude-seen").uncheck()
    expect(tab.page.locator(".row")).not_to_have_count(10)
    tab.settle()
    answer = tab.api(user="u7", k=25, exclude_seen=False)
    assert tab.items() == ids(answer)
    assert set(tab.items()) & set(tab.history())
    assert tab.fragment() == "user=u7&k=25&exclude_seen=0"
    for wrong in ("0", "1001", "2.5", ""):
        tab.page.locator("#k").fill(wrong)
        tab.page.wait_for_selector("#k:invalid")
    assert tab.items() == ids(answer)
    tab.page.locator("#rerank").focus()
    assert tab.page.locator("#k").input_value() == "25"


def test_why_an_item_is_there(tab):
    tab.open("user=u7")
    answer = tab.api(user="u7")
    open_all(tab)
    assert tab.page.locator("details:not([open])").count() == 0
    stages = tab.page.locator(".head .step").all_text_contents()
    assert stages == ["recall", "fused", "reranked", "answer"]
    for place, item in enumerate(answer["items"]):
        row, why = tab.page.locator(".row").nth(place), item["why"]
        shown = row.locator(".step").all()
        before = None
        for stage, cell in zip(stages, shown, strict=True):
            rank = why["ranks"].get(stage)
            if rank is None:
                assert cell.text_content() == ""
                continue
            assert cell.locator(".place").text_content() == str(rank)
            moved = 0 if before is None else before - rank
            arrow = cell.locator(".moved [aria-hidden]").all_text_contents()
            assert arrow == ([] if moved == 0 else ["↑" if moved > 0 else "↓"])
            before = rank
        because = row.locator(".because .name").all_text_contents()
        assert because == [reason["title"] for reason in why["because"]]
        for reason, told in zip(
            why["because"], row.locator(".because .value").all_text_contents(), strict=True
        ):
            share = 100 * reason["share"]
            assert told.replace("\xa0", "") == ("<1%" if share < 0.5 else f"{_rounded(share)}%")
        text = row.locator(".reasons").text_content()
        assert ("reranker" in text) is ("reranker" in why["moved_by"] or item["reranked"])


def _rounded(value):
    """As JavaScript rounds."""
    return int(value + 0.5)


def test_bars_are_as_long_as_an_item_stands_out_in_its_list(tab):
    tab.open("user=u7")
    answer = tab.api(user="u7")
    open_all(tab)
    said = [item["why"]["signals"] for item in answer["items"]]
    for name in said[0]:
        values = [signals[name] for signals in said if signals.get(name) is not None]
        mean = sum(values) / len(values)
        spread = (sum((value - mean) ** 2 for value in values) / len(values)) ** 0.5
        if spread < 1e-6:
            continue
        for place, signals in enumerate(said):
            line = (
                tab.page.locator(".row")
                .nth(place)
                .locator("tr", has=tab.page.get_by_role("rowheader", name=name, exact=True))
            )
            if signals.get(name) is None:
                assert line.locator(".value").text_content() == NOTHING
                continue
            standard = (signals[name] - mean) / spread
            bar = line.locator(".bar").evaluate(
                "bar => [bar.className, bar.firstChild.offsetWidth / bar.offsetWidth]"
            )
            assert ("above" if standard >= 0 else "below") in bar[0]
            assert bar[1] == pytest.approx(min(1, abs(standard) / 2.5) / 2, abs=0.03)
            shown = line.locator(".value").text_content().replace(MINUS, "-").replace(",", "")
            assert float(shown.lower()) == pytest.approx(signals[name], rel=1e-3, abs=1e-9)


def test_looking_at_an_item_marks_what_speaks_for_it(tab):
    tab.open("user=u7")
    answer = tab.api(user="u7")
    place, item = next(
        (place, item) for place, item in enumerate(answer["items"]) if item["why"]["because"]
    )
    tab.page.locator(".row .line").nth(place).hover()
    marked = tab.page.locator("#history .speaks").evaluate_all(
        "all => all.map(one => one.dataset.item)"
    )
    assert set(marked) == {str(reason["item"]) for reason in item["why"]["because"]}
    tab.page.locator("h1").hover()
    assert tab.page.locator("#history .speaks").count() == 0


def test_titles_that_are_markup_are_text(tab):
    tab.open("user=u3")
    open_all(tab)
    shown = " ".join(tab.names("#columns") + tab.names("#history"))
    for harm in HARM:
        assert harm in shown
    tab.page.get_by_label("A history").check()
    pick(tab, "#item", "<img", "heat 0" if "i0" in tab.history() else "brazil 3")
    assert HARM[0] in " ".join(tab.names("#history"))
    made = (
        "main :is(img, script, svg, b:not(i > b):not(.meter > b)), aside :is(img, script, svg, b)"
    )
    assert tab.page.locator(made).count() == 0


def test_two_versions_side_by_side(tab):
    tab.open("user=u4")
    options = tab.page.locator("#compare option").evaluate_all("all => all.map(one => one.value)")
    other = next(value for value in options if value.startswith("model:"))
    tab.page.locator("#compare").select_option(other)
    tab.page.wait_for_selector(".two .column")
    tab.settle()
    first, second = tab.api(user="u4"), tab.api(user="u4", model=other.removeprefix("model:"))
    assert first["model"] != second["model"]
    assert (tab.items(0), tab.items(1)) == (ids(first), ids(second))
    check_difference(tab, ids(first), ids(second))
    assert tab.page.locator("#model option").count() == 2
    for column, answer in enumerate((first, second)):
        assert answer["model"] in tab.page.locator(".meta").nth(column).text_content()


def test_a_rollback_is_noticed_with_the_next_answer(tab):
    tab.open("user=u4")
    before = tab.page.locator("#serving").get_attribute("title").partition(":")[0]
    assert before == tab.api(user="u4")["model"]
    for _ in range(2):
        httpx2.post(f"{tab.url}/v1/models/rollback", json={}, timeout=60).raise_for_status()
        tab.page.locator("#fuse").click()
        now = tab.api(user="u4")["model"]
        expect(tab.page.locator("#serving")).to_have_attribute("title", re.compile(f"^{now}:"))
        role = tab.page.locator("#model option[value='']").text_content()
        assert role.startswith("Current")
    assert now == before


def test_the_reranker_beside_its_absence(tab):
    tab.open("user=u7&k=5")
    tab.page.locator("#compare").select_option("without-reranker")
    tab.page.wait_for_selector(".two .column")
    tab.settle()
    first, second = (
        ids(tab.api(user="u7", k=5)),
        ids(tab.api(user="u7", k=5, stages={"rerank": False})),
    )
    assert first != second
    assert (tab.items(0), tab.items(1)) == (first, second)
    check_difference(tab, first, second)


def check_difference(tab, first, second):
    """What is shared, what is only here, and where each is in the other list."""
    shared = set(first) & set(second)
    summary = tab.page.locator(".summary").text_content()
    assert f"{len(shared)} shared" in summary
    for column, (here, there) in enumerate(((first, second), (second, first))):
        told = tab.page.locator(".column").nth(column).locator(".row .other").all_text_contents()
        for place, item in enumerate(here):
            if item not in shared:
                assert told[place] == "only here"
            elif there.index(item) == place:
                assert "same place" in told[place]
            else:
                assert f"there {there.index(item) + 1}" in told[place]


def test_a_link_shows_the_same_again(tab, opened):
    fragment = "who=history&item=i1&item=i9&k=4&rerank=0&exclude_seen=0&compare=recall"
    tab.open(fragment)
    assert tab.fragment() == fragment
    assert tab.page.locator("#k").input_value() == "4"
    assert not tab.page.locator("#rerank").is_checked()
    assert tab.page.locator("#fuse").is_checked()
    assert not tab.page.locator("#exclude-seen").is_checked()
    assert tab.page.locator("#compare").input_value() == "recall"
    asked = {"history": ["i1", "i9"], "k": 4, "exclude_seen": False}
    first = tab.api(**asked, stages={"rerank": False})
    assert tab.items(0) == ids(first)
    assert tab.items(1) == ids(tab.api(**asked, stages={"rerank": False, "fuse": False}))


def test_going_back_goes_back(tab):
    tab.open("user=u1")
    first = tab.items()
    tab.page.locator("#user").fill("u2")
    tab.page.keyboard.press("Enter")
    tab.page.wait_for_url("**/#user=u2")
    tab.settle()
    assert tab.items() == ids(tab.api(user="u2"))
    tab.page.go_back()
    tab.settle()
    assert tab.items() == first
    assert tab.page.locator("#user").input_value() == "u1"


@pytest.mark.parametrize(
    "fragment",
    ["k=0&user=u1", "k=1e9&user=u1&compare=__proto__", "%E0%A4%A&user=u1", "&&==&user=u1"],
)
def test_a_link_that_makes_no_sense_does_no_harm(tab, fragment):
    tab.open(fragment)
    assert tab.items() == ids(tab.api(user="u1"))


def test_an_answer_that_comes_late_is_not_shown(tab):
    tab.open()
    held = []

    def hold(route):
        if '"u1"' in route.request.post_data:
            held.append(route)
        else:
            route.continue_()

    tab.page.route("**/v1/recommend", hold)
    for user in ("u1", "u2"):
        tab.page.locator("#user").fill(user)
        tab.page.keyboard.press("Enter")
    tab.page.wait_for_selector(".row")
    assert len(held) == 1
    held[0].continue_()
    tab.page.wait_for_timeout(300)
    assert tab.items() == ids(tab.api(user="u2"))


def test_while_it_waits_it_says_so(tab):
    tab.open()
    held = []
    tab.page.route("**/v1/recommend", lambda route: held.append(route))
    tab.page.locator("#user").fill("u1")
    tab.page.keyboard.press("Enter")
    tab.page.wait_for_selector("#columns[aria-busy=true] .waiting")
    held[0].continue_()
    tab.page.wait_for_selector(".row")
    assert tab.page.locator(".waiting").count() == 0
    assert tab.page.locator("#said").text_content() == "10 recommendations"


def test_ids_larger_than_a_number_can_be_are_not_changed(tab):
    large = (
        '{"request_id":"r","model":"m","items":[{"rank":1,"item":9007199254740993,"score":1.5}]}'
    )
    tab.page.route(
        "**/v1/recommend",
        lambda route: route.fulfill(body=large, content_type="application/json"),
    )
    tab.open("user=u1")
    assert tab.items() == ["9007199254740993"]


def test_an_unknown_item_is_named_with_the_request(tab):
    tab.refused.add(422)
    tab.open("who=history&item=i1&item=<b>none</b>")
    told = tab.page.locator(".notice.bad").text_content()
    assert "<b>none</b>" in told
    assert re.search(r"Request [0-9a-f]{16}", told)
    tab.page.get_by_role("button", name="Remove: <b>none</b>").click()
    tab.settle()
    assert tab.items() == ids(tab.api(history=["i1"]))


def test_a_service_that_is_gone_is_said_to_be(tab):
    tab.open("user=u1")
    tab.page.route("**/v1/recommend", lambda route: route.abort("connectionrefused"))
    tab.page.locator("#rerank").uncheck()
    tab.page.wait_for_selector(".notice.bad")
    assert "cannot be reached" in tab.page.locator(".notice.bad").text_content()
    tab.page.unroute("**/v1/recommend")
    tab.page.get_by_role("button", name="Try again").click()
    tab.page.wait_for_selector(".row")
    assert tab.told.pop(0).startswith("Failed to load resource: net::ERR_CONNECTION_REFUSED")


def test_a_key_is_asked_for_and_kept_in_this_tab_alone(opened, locked):
    url, secrets = locked
    tab = opened(url, secrets["admin"])
    tab.refused.add(401)
    tab.open("user=u1")
    form = tab.page.locator("#key-form")
    form.wait_for(state="visible")
    assert tab.page.locator("#key-message").text_content()
    assert tab.page.evaluate("document.activeElement.id") == "key"
    tab.page.keyboard.type("hr_wrong")
    tab.page.keyboard.press("Enter")
    expect(tab.page.locator("#key-message")).to_contain_text("not known")
    assert tab.items() == []
    tab.page.locator("#key").fill(secrets["admin"])
    tab.page.get_by_role("button", name="Use this key").click()
    tab.page.wait_for_selector(".row")
    assert not form.is_visible()
    assert tab.items() == ids(tab.api(user="u1"))
    kept = tab.page.evaluate(
        "[Object.values(sessionStorage), localStorage.length, document.cookie]"
    )
    assert kept == [[secrets["admin"]], 0, ""]
    assert all(secrets["admin"] not in asked for asked in tab.asked)
    assert secrets["admin"] not in tab.page.content()
    tab.page.get_by_role("button", name="API key").click()
    tab.page.get_by_role("button", name="Forget it").click()
    form.wait_for(state="visible")
    assert tab.page.evaluate("sessionStorage.length") == 0


def test_a_key_that_may_not_see_reasons_gets_the_list_without(opened, locked):
    url, secrets = locked
    tab = opened(url, secrets["admin"])
    tab.refused |= {401, 403}
    tab.page.goto(url)
    tab.page.locator("#key").fill(secrets["recommend"])
    tab.page.keyboard.press("Enter")
    tab.page.locator("#key-form").wait_for(state="hidden")
    tab.page.locator("#user").fill("u1")
    tab.page.keyboard.press("Enter")
    tab.page.wait_for_selector(".row")
    assert tab.items() == ids(tab.api(user="u1"))
    assert tab.page.locator("details").count() == 0
    assert "admin" in tab.page.locator("#notices").text_content()
    tab.open("who=history&item=i1")  # of nobody's history it may see them
    assert tab.page.locator("details").count() == 10
    assert tab.page.locator("#notices").text_content() == ""


NAMELESS = """
() => [...document.querySelectorAll('input, select, button, [tabindex="0"]')].filter(one =>
  !(one.labels?.length || one.ariaLabel || one.textContent.trim() ||
    document.getElementById(one.getAttribute('aria-labelledby')))).map(one => one.outerHTML)
"""
CONTRAST = """
() => {
  const light = (color) => {
    const [r, g, b] = color.match(/[\\d.]+/g).slice(0, 3).map(Number).map(v => v / 255)
      .map(v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
    return .2126 * r + .7152 * g + .0722 * b;
  };
  const ground = (one) => {
    for (; one; one = one.parentElement) {
      const color = getComputedStyle(one).backgroundColor;
      if (!/, 0\\)$/.test(color)) return color;
    }
    return 'rgb(255, 255, 255)';
  };
  return [...document.querySelectorAll('body *')].filter(one =>
    one.checkVisibility() && !one.disabled && !one.closest('.unseen, option') &&
    [...one.childNodes].some(node => node.nodeType === 3 && node.data.trim())).map(one => {
      const [a, b] = [light(getComputedStyle(one).color), light(ground(one))];
      return [(Math.max(a, b) + .05) / (Math.min(a, b) + .05), one.outerHTML.slice(0, 120)];
    }).filter(([ratio]) => ratio < 4.5);
}
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everything_can_be_read_and_has_a_name(opened, service, scheme):
    tab = opened(service, color_scheme=scheme)
    for fragment in ("user=u1", "who=history&item=i1&compare=recall"):
        tab.open(fragment)
        open_all(tab)
        assert tab.page.evaluate(NAMELESS) == []
        assert tab.page.evaluate(CONTRAST) == []
    ground = tab.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (int(re.findall(r"\d+", ground)[0]) > 128) is (scheme == "light")


@pytest.mark.parametrize("width", [320, 700, 1000, 1600])
def test_no_width_makes_it_scroll_sideways(opened, service, width):
    tab = opened(service, viewport={"width": width, "height": 900})
    for fragment in ("", "user=u1", "user=u1&compare=recall", "who=history&item=i1&item=i2"):
        tab.open(fragment)
        wide = tab.page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
        assert wide[0] <= wide[1]
        for one in tab.page.locator(".panel").all():
            box = one.bounding_box()
            assert box is None or box["x"] + box["width"] <= width


def test_the_keyboard_is_enough(tab):
    tab.open("user=u1")
    tab.page.keyboard.press("Tab")
    assert tab.page.evaluate("document.activeElement.id") == "skip"
    tab.page.keyboard.press("Enter")
    focused = "document.activeElement.closest('.row')?.dataset.item ?? null"
    for _ in range(12):
        tab.page.keyboard.press("Tab")
        if tab.page.evaluate(focused):
            break
    assert tab.page.evaluate(focused) == tab.items()[0]
    tab.page.keyboard.press("Tab")
    assert tab.page.evaluate(focused) == tab.items()[1]
    tab.page.keyboard.press("Enter")
    assert tab.page.locator("details").nth(1).get_attribute("open") is not None
    tab.page.locator("#user").click()
    tab.page.wait_for_selector("#user-options:not([hidden])")
    tab.page.keyboard.press("Escape")
    assert not tab.page.locator("#user-options").is_visible()
    assert tab.page.locator("#user").get_attribute("aria-expanded") == "false"
