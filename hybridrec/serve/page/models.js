// The versions in memory, and what can be put beside what is asked.

import { byId, element } from "./dom.js";
import { loadedModels } from "./service.js";
import { VARIANTS } from "./state.js";

let loaded = [];

export async function refresh() {
  loaded = await loadedModels();
}

/** Ask again if `version` answered where another one was thought to be current; whether it did. */
export async function refreshIfOther(version) {
  if (!loaded.length || version === current()) return false;
  await refresh();
  return true;
}

/** The version that answers when none is asked for; "" if that is not known. */
export const current = () => loaded.find((model) => model.role === "current")?.version ?? "";

export function show(state) {
  const now = loaded.find((model) => model.role === "current");
  if (now) {
    byId("serving").textContent = `${brief(now.version)}, ${now.items.toLocaleString("en")} items`;
    byId("serving").title = `${now.version}: ${now.stages.join(", ")}`;
  }
  byId("model-field").hidden = loaded.length < 2 && !state.model;
  fill(byId("model"), choices(state), state.model);
  fill(byId("compare"), beside(state), state.compare);
}

/** Headings of the lists that a state asks for. */
export function labels(state) {
  if (!state.compare) return ["Recommendations"];
  if (Object.hasOwn(VARIANTS, state.compare)) return ["As asked", VARIANTS[state.compare].label];
  return [named(state.model || current()), named(state.compare.slice("model:".length))];
}

function choices(state) {
  const found = loaded.map(({ role, version }) =>
    [role === "current" ? "" : version, named(version)]);
  if (!found.some(([value]) => value === "")) found.unshift(["", "The current one"]);
  if (!found.some(([value]) => value === state.model)) {
    found.push([state.model, named(state.model)]);
  }
  return found;
}

function beside(state) {
  const shown = state.model || current();
  const others = loaded.filter((model) => model.version !== shown);
  const found = [["", "Nothing"]];
  for (const { version } of others) found.push([`model:${version}`, named(version)]);
  if (state.rerank) found.push(["without-reranker", VARIANTS["without-reranker"].label]);
  if (state.rerank || state.fuse) found.push(["recall", VARIANTS.recall.label]);
  if (!found.some(([value]) => value === state.compare)) {
    const variant = VARIANTS[state.compare]?.label;
    found.push([state.compare, variant ?? named(state.compare.slice("model:".length))]);
  }
  return found;
}

function named(version) {
  const model = loaded.find((one) => one.version === version);
  if (!model) return version ? `Not loaded: ${brief(version)}` : "The current one";
  return `${model.role === "current" ? "Current" : "Previous"}: ${brief(version)}`;
}

/** When it was saved, if the version's name tells it; UTC. */
export function brief(version) {
  const parts = /^(\d{4})(\d\d)(\d\d)T(\d\d)(\d\d)(\d\d)\d*Z-[0-9a-f]+$/.exec(version);
  if (!parts) return version;
  const [, year, month, day, hour, minute, second] = parts;
  return `${year}-${month}-${day} ${hour}:${minute}:${second}`;
}

function fill(select, options, value) {
  const made = options.map(([given, label]) => element("option", { value: given }, label));
  select.replaceChildren(...made);
  select.value = value;
}
