// The page: its state, who asks for what, and where the answers go.

import { showAnswers, showWaiting, showWelcome } from "./answers.js";
import { combobox } from "./combobox.js";
import { byId, debounced, element, say } from "./dom.js";
import { markHistory, showHistory } from "./history.js";
import { onKey, wantKey } from "./keyform.js";
import * as models from "./models.js";
import { findItems, findUsers, recommend, ServiceError } from "./service.js";
import {
  fromFragment,
  isAsked,
  MOST_HISTORY,
  MOST_K,
  questions,
  toFragment,
  validK,
} from "./state.js";

let state = fromFragment(location.hash);
let asking = new AbortController();
/** Done once it is known, or will not be, which versions are loaded. */
let ready = Promise.resolve();
/** What the service said of the person last, [{item, title}] oldest first; null: it did not. */
let known = null;
/** Titles by id, for a history that is being made. */
const titles = new Map();
const whoRadios = document.querySelectorAll("[name=who]");

function change(patch, { push = false } = {}) {
  const someoneElse = "who" in patch || "user" in patch;
  state = { ...state, ...patch };
  if (someoneElse) known = null;
  const url = `#${toFragment(state)}`;
  if (push) history.pushState(null, "", url);
  else history.replaceState(null, "", url);
  show();
  ask();
}

/** The state in the controls; a field that is being typed in keeps what it holds, unless `all`. */
function show({ all = false } = {}) {
  const free = (field) => all || document.activeElement !== field;
  const isHistory = state.who === "history";
  for (const radio of whoRadios) radio.checked = radio.value === state.who;
  byId("user-picker").hidden = isHistory;
  byId("item-picker").hidden = !isHistory;
  if (free(byId("user"))) byId("user").value = state.user;
  if (free(byId("k"))) showK(String(state.k));
  byId("rerank").checked = state.rerank;
  byId("fuse").checked = state.fuse;
  byId("exclude-seen").checked = state.excludeSeen;
  models.show(state);
  showPerson();
}

function showPerson() {
  const isHistory = state.who === "history";
  const items = isHistory
    ? state.history.map((item) => ({ item, title: titles.get(item) ?? null }))
    : (known ?? []);
  showHistory(byId("history"), items, isHistory ? { move, remove } : null);
  byId("history").classList.toggle("editable", isHistory);
  byId("history-part").hidden = !isHistory && items.length === 0;
  byId("history-note").textContent = items.length > 1 ? `${items.length}, newest first` : "";
  byId("history-edit").hidden = isHistory || items.length === 0;
  byId("history-clear").hidden = !isHistory || items.length === 0;
}

function showK(text) {
  byId("k").value = text;
  byId("k").setCustomValidity("");
}

function takeK() {
  const k = validK(byId("k").value);
  byId("k").setCustomValidity(k === null ? `A whole number from 1 to ${MOST_K}` : "");
  if (k !== null && k !== state.k) change({ k });
}

// Asking

async function ask() {
  asking.abort();
  asking = new AbortController();
  const { signal } = asking;
  const place = byId("columns");
  byId("notices").replaceChildren();
  if (!isAsked(state)) {
    welcome(signal);
    return;
  }
  const asked = questions(state);
  showWaiting(place, asked.length);
  const results = await Promise.all(asked.map((question) => answerTo(question, signal)));
  await ready;
  if (signal.aborted) return;
  place.removeAttribute("aria-busy");
  const labels = models.labels(state);
  results.forEach((result, n) => (result.label = labels[n]));
  remember(results.find((result) => result.answer)?.answer);
  const [{ answer }] = results;
  if (answer && !state.model) {
    models.refreshIfOther(answer.model).then((other) => other && models.show(state), trouble);
  }
  showAnswers(place, results, { point, again: ask });
  report(results);
}

/** {answer} or {error}; where a key may not see reasons, the list without them. */
async function answerTo(question, signal) {
  try {
    return { answer: await recommend(question, signal) };
  } catch (error) {
    if (signal.aborted) return {};
    if (!(error instanceof ServiceError)) throw error;
    if (error.status === 403 && question.explain && !question.model) {
      const plain = await answerTo({ ...question, explain: false }, signal);
      return plain.answer ? { ...plain, unexplained: error } : plain;
    }
    return { error };
  }
}

function remember(answer) {
  if (!answer) return;
  for (const { item, title } of answer.history ?? []) titles.set(String(item), title ?? null);
  if (state.who === "user") known = answer.history;
  showPerson();
}

function report(results) {
  const refused = results.find((result) => result.error?.status === 401)?.error;
  if (refused) wantKey(refused.message);
  const unexplained = results.find((result) => result.unexplained)?.unexplained;
  if (unexplained) {
    notice(`This key may not see the history nor why an item is there: ${unexplained.message}`);
  }
  const counts = results.map(({ answer }) =>
    answer ? `${answer.items.length} recommendations` : "an error");
  say(counts.join(" beside "));
}

function notice(text) {
  byId("notices").append(element("p", { class: "notice" }, text));
}

function trouble(error) {
  if (error.name === "AbortError") return;
  if (!(error instanceof ServiceError)) throw error;
  if (error.status === 401) wantKey(error.message);
  else if (error.status !== 403) {
    notice(error.requestId ? `${error.message} (request ${error.requestId})` : error.message);
  }
}

/** Nobody is chosen yet: some to start with. */
async function welcome(signal) {
  const users = showWelcome(byId("columns"), state.who);
  if (state.who !== "user") return;
  try {
    const found = (await findUsers("", signal)).slice(0, 6).map(String);
    users.replaceChildren(...found.map((user) =>
      element("button", { type: "button", click: () => change({ user }, { push: true }) }, user)));
  } catch (error) {
    if (!signal.aborted) trouble(error);
  }
}

/** Show what speaks for `item`, and where it stands in the other list. */
function point(item) {
  const because = item?.why?.because ?? [];
  const shares = new Map(because.map((reason) => [String(reason.item), reason.share]));
  markHistory(byId("history"), shares);
  for (const row of document.querySelectorAll(".two .row")) {
    row.classList.toggle("twin", item !== null && row.dataset.item === String(item.item));
  }
}

// The history that is being made

function move(from, to) {
  const items = [...state.history];
  items.splice(to, 0, ...items.splice(from, 1));
  const up = to > from;
  change({ history: items });
  say(`Moved to place ${items.length - to}, counted from the newest`);
  focusTool(to, up ? 0 : 1);
}

function remove(place) {
  const items = state.history.filter((_, other) => other !== place);
  change({ history: items });
  if (items.length) focusTool(Math.min(place, items.length - 1), 2);
  else byId("item").focus();
}

/** Back to where the keyboard was: the rows are new. The newest, last in the state, is on top. */
function focusTool(place, tool) {
  const row = byId("history").children[state.history.length - 1 - place];
  const tools = row?.querySelectorAll("button");
  const wanted = tools?.[tool];
  (wanted?.disabled ? tools[1 - tool] : wanted)?.focus();
}

function add(item, title) {
  titles.set(item, title);
  byId("item").value = "";
  change({ history: [...state.history, item].slice(-MOST_HISTORY) });
}

// Wiring

combobox({
  input: byId("user"),
  list: byId("user-options"),
  search: async (text, signal) =>
    (await findUsers(text, signal)).map((user) => ({ value: String(user), label: String(user) })),
  choose: (user) => {
    byId("user").value = user;
    change({ user }, { push: true });
  },
  failed: trouble,
  free: true,
});
combobox({
  input: byId("item"),
  list: byId("item-options"),
  search: async (text, signal) =>
    (await findItems(text, signal)).map(({ item, title }) => ({
      value: String(item),
      label: title ?? String(item),
      note: title === null ? null : String(item),
    })),
  choose: add,
  failed: trouble,
});

for (const radio of whoRadios) {
  radio.addEventListener("change", () => change({ who: radio.value }, { push: true }));
}
for (const [id, key] of [["rerank", "rerank"], ["fuse", "fuse"], ["exclude-seen", "excludeSeen"]]) {
  byId(id).addEventListener("change", (event) => change({ [key]: event.target.checked }));
}
byId("k").addEventListener("input", debounced(takeK, 300));
byId("k").addEventListener("change", takeK);
byId("k").addEventListener("blur", () => showK(String(state.k)));
byId("model").addEventListener("change", (event) => {
  const model = event.target.value;
  const clash = state.compare === `model:${model || models.current()}`;
  change({ model, compare: clash ? "" : state.compare });
});
byId("compare").addEventListener("change", (event) => change({ compare: event.target.value }));
byId("history-edit").addEventListener("click", () => {
  const items = (known ?? []).map(({ item }) => String(item)).slice(-MOST_HISTORY);
  change({ who: "history", history: items }, { push: true });
});
byId("history-clear").addEventListener("click", () => {
  change({ history: [] });
  byId("item").focus();
});
byId("skip").addEventListener("click", () => byId("main").focus());
byId("copy").addEventListener("click", async () => {
  try {
    await navigator.clipboard.writeText(location.href);
    say("The link is copied");
    byId("copy").textContent = "Copied";
  } catch {
    byId("copy").textContent = "Copy it from the address bar";
  }
  setTimeout(() => (byId("copy").textContent = "Copy link"), 2000);
});
addEventListener("hashchange", () => {
  state = fromFragment(location.hash);
  known = null;
  show({ all: true });
  ask();
});
onKey(start);

function start() {
  ready = models.refresh().then(() => models.show(state), trouble);
  show();
  ask();
}

start();
