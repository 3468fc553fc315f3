// Lists of recommendations, one or two, and what may stand in their place.

import { aligned, element, milliseconds, number } from "./dom.js";
import { compared, path, signals } from "./figures.js";
import { row } from "./row.js";

const DEGRADED = {
  fewer_reranked: "Short of time: the reranker read fewer items than it would.",
  no_reranker: "Short of time: the reranker was left out.",
  popularity: "Short of time: these are popular items, nothing else was asked.",
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
 * Columns for `results`, one or two of {label, answer} or {label, error}. `point(item or null)`
 * hears which item is looked at; `again()` is called to ask once more.
 */
export function columns(results, { point, again }) {
  const [first, second] = results.map((result) => result.answer);
  const both = first && second ? compared(first.items, second.items) : null;
  const made = results.map((result, place) =>
    result.error
      ? broken(result, again)
      : column(result, both ? both.elsewhere[place] : null, point),
  );
  return both ? [summary(both), ...made] : made;
}

/** What stands there until the first answer comes. */
export function waiting(count) {
  return Array.from({ length: count }, () =>
    element("section", { class: "panel column waiting", "aria-hidden": "true" },
      Array.from({ length: 6 }, () => element("div", { class: "bone" }))),
  );
}

function summary(both) {
  const parts = [
    element("strong", {}, `${both.shared} shared`),
    element("span", {}, `${both.onlyFirst} only in the first`),
    element("span", {}, `${both.onlySecond} only in the second`),
  ];
  if (both.sameOrder) parts.push(element("span", {}, "in the same order"));
  else if (both.shared) {
    parts.push(element("span", {}, `shared ones ${number(Number(both.meanMove.toFixed(1)))} places apart on average`));
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
    answer.items.length ? header(shown) : element("p", { class: "empty" }, "There is nothing to recommend: everything is seen or left out."),
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
  list.addEventListener("toggle", () => (toggle.textContent = closed() ? "Open all" : "Close all"), true);
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
  if (answer.unknown_user) told.push(`Nothing is known of user ${answer.user}.`);
  if (answer.degraded) told.push(DEGRADED[answer.degraded] ?? `Degraded: ${answer.degraded}.`);
  if (answer.popular) told.push("There was no history to go by: these are popular items.");
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
      ? element("span", { class: "places" }, stages.map((stage) => element("span", { class: "step" }, stage)))
      : null,
    elsewhere ? element("span", { class: "other" }, "Other list") : null,
    all.length
      ? element("span", { class: "spark-name", title: "One bar a signal: how far above or below the mean of this list the item stands. Point at a bar for its name and value." }, "Signals")
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
      error.requestId ? element("p", { class: "muted" }, "Request ", element("code", {}, error.requestId)) : null,
      element("button", { type: "button", click: again }, "Try again"),
    ),
  );
}
