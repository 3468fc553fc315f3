// What is asked for, and its form in the URL's fragment, which no server ever sees.

export const MOST_K = 1000;
export const MOST_HISTORY = 1000;

/**
 * `history` holds ids, oldest first. `model`: a version, or "" for the current one.
 * `compare`: "" for nothing, "model:VERSION", or one of the VARIANTS.
 */
export const INITIAL = Object.freeze({
  who: "user",
  user: "",
  history: Object.freeze([]),
  k: 10,
  rerank: true,
  fuse: true,
  excludeSeen: true,
  model: "",
  compare: "",
});

/** The same model asked otherwise: what a stage is worth. */
export const VARIANTS = Object.freeze({
  "without-reranker": { label: "The same without the reranker", stages: { rerank: false } },
  recall: { label: "Recall alone", stages: { rerank: false, fuse: false } },
});

export function toFragment(state) {
  const kept = new URLSearchParams();
  if (state.who === "history") {
    kept.set("who", "history");
    for (const item of state.history) kept.append("item", item);
  } else if (state.user !== "") {
    kept.set("user", state.user);
  }
  if (state.k !== INITIAL.k) kept.set("k", state.k);
  for (const [name, key] of FLAGS) if (!state[key]) kept.set(name, "0");
  if (state.model) kept.set("model", state.model);
  if (state.compare) kept.set("compare", state.compare);
  return kept.toString();
}

/** The state that a fragment tells; what makes no sense in it is left as it was at first. */
export function fromFragment(fragment) {
  const kept = new URLSearchParams(fragment.replace(/^#/, ""));
  const state = { ...INITIAL };
  if (kept.get("who") === "history") state.who = "history";
  state.user = kept.get("user") ?? "";
  state.history = kept.getAll("item").filter((item) => item !== "").slice(-MOST_HISTORY);
  state.k = validK(kept.get("k")) ?? INITIAL.k;
  for (const [name, key] of FLAGS) state[key] = kept.get(name) !== "0";
  state.model = kept.get("model") ?? "";
  const compare = kept.get("compare") ?? "";
  if (compare.startsWith("model:") || Object.hasOwn(VARIANTS, compare)) state.compare = compare;
  return state;
}

/** A number of items, or null. */
export function validK(text) {
  if (!/^\d{1,4}$/.test(text ?? "")) return null;
  const k = Number(text);
  return k >= 1 && k <= MOST_K ? k : null;
}

/** Whether there is anybody to recommend to. */
export function isAsked(state) {
  return state.who === "history" ? state.history.length > 0 : state.user !== "";
}

/** The requests that a state stands for: one, or two side by side. */
export function questions(state) {
  const person = state.who === "history" ? { history: state.history } : { user: state.user };
  const first = {
    ...person,
    k: state.k,
    exclude_seen: state.excludeSeen,
    explain: true,
    stages: { rerank: state.rerank, fuse: state.fuse },
  };
  if (state.model) first.model = state.model;
  if (!state.compare) return [first];
  const second = { ...first };
  if (Object.hasOwn(VARIANTS, state.compare)) {
    second.stages = { ...first.stages, ...VARIANTS[state.compare].stages };
  } else {
    second.model = state.compare.slice("model:".length);
  }
  return [first, second];
}

const FLAGS = [
  ["rerank", "rerank"],
  ["fuse", "fuse"],
  ["exclude_seen", "excludeSeen"],
];
