// One recommendation: its line, and behind it why it is there.

import { element, number, percent } from "./dom.js";
import { path } from "./figures.js";

/** Standard deviations at which a bar is full. */
const FULL = 2.5;

const TAGS = { newcomers: "new item", degraded: "short of time" };

/**
 * A list item. `shown` is what the whole list has in common: {signals, stages, elsewhere, score},
 * where `elsewhere` is a map from ids to places in the other list, or null, and `score` writes
 * one. `point(item or null)` hears what is looked at.
 */
export function row(item, place, shown, point) {
  const steps = path(item.why?.ranks ?? {});
  const line = [
    element("span", { class: "rank" }, String(item.rank)),
    named(item),
    shown.stages.length ? places(steps, shown.stages) : null,
    shown.elsewhere ? other(item, shown.elsewhere) : null,
    shown.signals.length ? spark(shown.signals, place) : null,
    element("span", { class: "score", title: `score ${item.score ?? "none"}` },
      shown.score(item.score)),
  ];
  const look = {
    pointerenter: () => point(item),
    pointerleave: () => point(null),
    focusin: () => point(item),
    focusout: () => point(null),
  };
  const made = element("li", { class: "row", "data-item": String(item.item), ...look });
  made.append(item.why ? opening(line, () => detail(item, steps, shown.signals, place))
    : element("div", { class: "line" }, line));
  return made;
}

/** A line that opens; what is behind it is made when it does, for lists may be long. */
function opening(line, behind) {
  const details = element("details", {}, element("summary", { class: "line" }, line));
  details.addEventListener("toggle", () => {
    if (details.open && details.childElementCount === 1) details.append(behind());
  });
  return details;
}

const detail = (item, steps, signals, place) =>
  element("div", { class: "detail" }, reasons(item, steps), scores(signals, place));

function named(item) {
  const id = String(item.item);
  const tags = Object.keys(TAGS).filter((rule) => item.why?.moved_by.includes(rule));
  if (item.newcomer && !tags.includes("newcomers")) tags.push("newcomers");
  return element(
    "span",
    { class: "named" },
    element("span", { class: "name" }, item.title ?? id),
    item.title === null || item.title === undefined ? null : element("span", { class: "id" }, id),
    tags.map((rule) => element("span", { class: "tag" }, TAGS[rule])),
  );
}

function places(steps, stages) {
  const byStage = new Map(steps.map((step) => [step.stage, step]));
  const cells = stages.map((stage) => {
    const step = byStage.get(stage);
    if (!step) return element("span", { class: "step none" });
    return element(
      "span",
      { class: "step" },
      element("span", { class: "stage" }, `${stage} `),
      element("span", { class: "place" }, String(step.rank)),
      arrow(step.moved),
    );
  });
  return element("span", { class: "places" }, cells);
}

/** Which way something went, and how far; upwards is positive. */
function arrow(moved) {
  if (moved === 0) return null;
  const [kind, sign, word] = moved > 0 ? ["up", "↑", "up"] : ["down", "↓", "down"];
  return element(
    "span",
    { class: `moved ${kind}`, title: `${word} ${Math.abs(moved)}` },
    element("span", { "aria-hidden": "true" }, sign),
    element("span", { class: "unseen" }, ` ${word} `),
    String(Math.abs(moved)),
  );
}

function other(item, elsewhere) {
  const there = elsewhere.get(String(item.item));
  if (there === undefined) return element("span", { class: "other only" }, "only here");
  const same = there === item.rank;
  return element(
    "span",
    { class: "other", title: `number ${there} in the other list` },
    element("span", { class: "unseen" }, "in the other list "),
    same ? "same place" : [`there ${there}`, arrow(there - item.rank)],
  );
}

/** One small bar a signal, so that a list can be skimmed; the table behind has the numbers. */
function spark(signals, place) {
  const bars = signals.filter((signal) => !signal.constant).map((signal) => {
    const bar = element("i", { title: told(signal, place) }, element("b"));
    return sized(bar, signal.standard[place]);
  });
  return element("span", { class: "spark", "aria-hidden": "true" }, bars);
}

function sized(bar, standard) {
  if (standard === null) bar.classList.add("none");
  else bar.classList.add(standard < 0 ? "below" : "above");
  const size = Math.min(1, Math.abs(standard ?? 0) / FULL);
  bar.style.setProperty("--size", `${(50 * size).toFixed(1)}%`);
  return bar;
}

function told(signal, place) {
  const value = signal.values[place];
  if (value === null) return `${signal.name}: says nothing of this item`;
  const standard = signal.standard[place];
  if (standard === null) return `${signal.name}: ${value}`;
  const side = standard < 0 ? "below" : "above";
  const far = Math.abs(standard).toFixed(1);
  return `${signal.name}: ${value}, ${far} standard deviations ${side} this list's mean`;
}

function scores(signals, place) {
  const varied = signals.filter((signal) => !signal.constant);
  const constant = signals.filter((signal) => signal.constant && signal.values[place] !== null);
  const missing = varied.every((signal) => signal.values[place] === null);
  if (missing && !constant.length) return null;
  const lines = varied.map((signal) =>
    element(
      "tr",
      { title: told(signal, place) },
      element("th", { scope: "row" }, signal.name),
      element("td", { class: "track" },
        sized(element("i", { class: "bar", "aria-hidden": "true" }, element("b")),
          signal.standard[place])),
      element("td", { class: "value" }, number(signal.values[place])),
    ),
  );
  const same = constant.map((signal) => `${signal.name} ${number(signal.values[place])}`);
  return element(
    "section",
    { class: "scores" },
    element("h3", {}, "What each stage says"),
    missing ? null : element("table", {}, element("tbody", {}, lines)),
    same.length ? element("p", { class: "muted" }, `The same for all: ${same.join(", ")}.`) : null,
  );
}

function reasons(item, steps) {
  const { because } = item.why;
  const most = Math.max(...because.map((reason) => reason.share), 1e-9);
  const lines = because.map((reason) => {
    const line = element(
      "li",
      { title: `${(100 * reason.share).toFixed(2)} % of what the history says for it` },
      element("span", { class: "name" }, reason.title ?? String(reason.item)),
      element("span", { class: "meter", "aria-hidden": "true" }, element("b")),
      element("span", { class: "value" }, percent(reason.share)),
    );
    line.style.setProperty("--size", `${(100 * reason.share) / most}%`);
    return line;
  });
  return element(
    "section",
    { class: "reasons" },
    element("h3", {}, "Why it is here"),
    rules(item, steps).map((sentence) => element("p", {}, sentence)),
    lines.length ? element("p", { class: "muted" }, "What in the history speaks for it:") : null,
    lines.length ? element("ul", { class: "because" }, lines) : null,
  );
}

/** Which rules moved it, in sentences. */
function rules(item, steps) {
  const at = (stage) => steps.find((step) => step.stage === stage)?.rank;
  const [before, alone] = [at("fused") ?? at("recall"), at("reranked")];
  const told = item.why.moved_by.map((rule) => {
    if (rule === "newcomers") {
      return "Nobody has met it yet: it has a place that is kept for such items.";
    }
    if (rule === "popularity") return "It is popular: there was no history to go by.";
    if (rule === "degraded") return "Time ran out: a later stage had no say in its place.";
    if (rule !== "reranker") return `Moved by the rule “${rule}”.`;
    const way = item.rank < before ? "up" : "down";
    const moved = before === undefined || before === item.rank
      ? "moved"
      : `went ${way}, from ${before} to ${item.rank}`;
    return alone === undefined
      ? `With the reranker it ${moved}.`
      : `The reranker alone would put it at ${alone}; with it, it ${moved}.`;
  });
  if (told.length) return told;
  if (!item.reranked) return ["No rule moved it: it stands where its scores put it."];
  return [alone === undefined || alone === item.rank
    ? "The reranker has read it and leaves it where it was."
    : `The reranker alone would put it at ${alone}; with it, it stays where it was.`];
}
