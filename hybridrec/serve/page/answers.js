// Lists of recommendations, one or two, and what may stand in their place.

import { aligned, element, milliseconds, number } from "./dom.js";
import { compared, path, signals } from "./figures.js";
import { row } from "./row.js";

const DEGRADED = {
  fewer_reranked: "Short of time: the reranker read fewer items than it would.",
  no_reranker: "Short of time: the reranker was left out.",
  popularity: "Short of time: these are popular items, nothing else was asked.",
};
const WELCOME = {
  user: [
    "Whom to recommend to?",
    "Pick a user of whom there is a history, or make a history of titles.",
  ],
  history: [
    "What has been seen?",
    "Add items by their titles: what comes next for somebody who saw them is shown here.",
  ],
};
const NOTHING = "There is nothing to recommend: everything is seen or left out.";
const POPULAR = "these are popular items";
const SPARK = "One bar a signal: how far above or below the mean of this list the item stands. "
  + "Point at a bar for its name and value.";
const STAGES = {
  recall: "Its place by what the recallers say together",
  fused: "Its place once their signals are fused",
  reranked: "Its place in the reranker's own order of what it has read",
  answer: "Its place in the answer, by everything together",
};
const HEADINGS = {
  0: "No answer",
  401: "A key is needed",
  403: "This key may not do that",
  422: "The service cannot answer this",
  429: "Too many requests",
  503: "The service is not ready",
};

/**
 * Fill `place` with a column for each of `results`, one or two {label, answer} or {label, error}.
 * `point(item or null)` hears which item is looked at; `again()` is called to ask once more.
 * Lines that were open stay so; at first that of the first item is, in a list that stands alone.
 */
export function showAnswers(place, results, { point, again }) {
  const open = openItems(place);
  const [first, second] = results.map((result) => result.answer);
  const both = first && second ? compared(first.items, second.items) : null;
  const made = results.map((result, n) =>
    result.error ? broken(result, again) : column(result, both ? both.elsewhere[n] : null, point));
  place.replaceChildren(...(both ? [summary(both), ...made] : made));
  place.classList.toggle("two", results.length > 1);
  for (const row of place.querySelectorAll(".row:has(details)")) {
    const isFirst = results.length === 1 && row === row.parentElement.firstChild;
    row.firstChild.open = open ? open.has(row.dataset.item) : isFirst;
  }
}

/** The items whose lines are open; null where there is no list. */
function openItems(place) {
  if (!place.querySelector(".row")) return null;
  const rows = [...place.querySelectorAll(".row:has([open])")];
  return new Set(rows.map((row) => row.dataset.item));
}

/** What stands there until the first answer comes; a list that is there stays. */
export function showWaiting(place, count) {
  place.setAttribute("aria-busy", "true");
  if (place.querySelectorAll(".column:not(.welcome)").length >= count) return;
  const bones = () => Array.from({ length: 6 }, () => element("div", { class: "bone" }));
  const made = Array.from({ length: count }, () =>
    element("section", { class: "panel column waiting", "aria-hidden": "true" }, bones()));
  place.replaceChildren(...made);
  place.classList.toggle("two", count > 1);
}

/** What stands there while nobody is chosen; returns where some to start with can be put. */
export function showWelcome(place, who) {
  const starts = element("p", { class: "starts" });
  const [title, text] = WELCOME[who];
  place.removeAttribute("aria-busy");
  place.classList.remove("two");
  place.replaceChildren(
    element(
      "section",
      { class: "panel column welcome" },
      element("h2", {}, title),
      element("p", {}, text),
      starts,
    ),
  );
  return starts;
}

function summary(both) {
  const parts = [
    element("strong", {}, `${both.shared} shared`),
    element("span", {}, `${both.onlyFirst} only in the first`),
    element("span", {}, `${both.onlySecond} only in the second`),
  ];
  if (both.sameOrder) parts.push(element("span", {}, "in the same order"));
  else if (both.shared) {
    const apart = number(Number(both.meanMove.toFixed(1)));
    parts.push(element("span", {}, `shared ones ${apart} places apart on average`));
  }
  return element("p", { class: "summary" }, parts);
}

function column({ label, answer }, elsewhere, point) {
  const stages = path(Object.assign({}, ...answer.items.map((item) => item.why?.ranks ?? {})));
  const shown = {
    signals: signals(answer.items),
    stages: stages.map((step) => step.stage),
    elsewhere,
    score: aligned(answer.items.map((item) => item.score)),
  };
  const list = element(
    "ol",
    { class: "rows" },
    answer.items.map((item, place) => row(item, place, shown, point)),
  );
  const made = element(
    "section",
    { class: "panel column", "aria-label": label },
    heading(label, answer, list),
    notes(answer).map((note) => element("p", { class: "notice" }, note)),
    answer.items.length ? header(shown) : element("p", { class: "empty" }, NOTHING),
    list,
  );
  made.style.setProperty("--stages", shown.stages.length);
  made.style.setProperty("--bars", shown.signals.filter((signal) => !signal.constant).length);
  return made;
}

function heading(label, answer, list) {
  const all = list.getElementsByTagName("details");
  const closed = () => [...all].some((one) => !one.open);
  const toggle = element("button", { type: "button", class: "quiet", click: () => {
    const open = closed();
    for (const one of all) one.open = open;
  } }, "Open all");
  const name = () => (toggle.textContent = closed() ? "Open all" : "Close all");
  list.addEventListener("toggle", name, true);
  const times = Object.entries(answer.seconds ?? {});
  return element(
    "header",
    { class: "heading" },
    element("h2", {}, label),
    answer.items.some((item) => item.why) ? toggle : null,
    element(
      "p",
      { class: "muted meta" },
      element("span", {}, `model ${answer.model}`),
      times.map(([stage, seconds]) => element("span", {}, `${stage} ${milliseconds(seconds)}`)),
      element("span", {}, `request ${answer.request_id}`),
    ),
  );
}

function notes(answer) {
  const told = [];
  if (answer.unknown_user) told.push(`Nothing is known of user ${answer.user}: ${POPULAR}.`);
  else if (answer.popular) told.push(`There was no history to go by: ${POPULAR}.`);
  if (answer.degraded) told.push(DEGRADED[answer.degraded] ?? `Degraded: ${answer.degraded}.`);
  return told;
}

/** Names over the columns; whoever listens has them in every row. */
function header({ stages, signals: all, elsewhere }) {
  return element(
    "div",
    { class: "line head", "aria-hidden": "true" },
    element("span", { class: "rank" }, "#"),
    element("span", { class: "named" }, "Item"),
    stages.length
      ? element("span", { class: "places" }, stages.map((stage) =>
        element("span", { class: "step", title: STAGES[stage] }, stage)))
      : null,
    elsewhere ? element("span", { class: "other" }, "Other list") : null,
    all.length
      ? element("span", { class: "spark-name", title: SPARK }, "Signals")
      : null,
    element("span", { class: "score" }, "Score"),
  );
}

function broken({ label, error }, again) {
  return element(
    "section",
    { class: "panel column", "aria-label": label },
    element("header", { class: "heading" }, element("h2", {}, label)),
    element(
      "div",
      { class: "notice bad", role: "alert" },
      element("strong", {}, HEADINGS[error.status] ?? "Something went wrong"),
      element("p", {}, error.message),
      error.requestId
        ? element("p", { class: "muted" }, "Request ", element("code", {}, error.requestId))
        : null,
      element("button", { type: "button", click: again }, "Try again"),
    ),
  );
}
