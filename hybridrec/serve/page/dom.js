// Titles and ids come from outside: whatever is shown goes through here, as text and no markup.

/**
 * An element. `attributes` are set as attributes, but functions are listeners ("click"), `true` is
 * an empty attribute, and null, undefined and false are left out. Children: nodes or text.
 */
export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") made.addEventListener(name, value);
    else if (value === true) made.setAttribute(name, "");
    else if (value !== false && (value ?? null) !== null) made.setAttribute(name, value);
  }
  made.append(...children.flat().filter((child) => (child ?? null) !== null));
  return made;
}

export const byId = (id) => document.getElementById(id);

const PLAIN = new Intl.NumberFormat("en", { maximumSignificantDigits: 4 });
const SMALL = new Intl.NumberFormat("en", { maximumSignificantDigits: 3, notation: "scientific" });

/** A score, short. */
export function number(value) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  return minus((value !== 0 && Math.abs(value) < 1e-4 ? SMALL : PLAIN).format(value));
}

/** Scores that stand under each other, with as many decimals as the largest needs. */
export function aligned(values) {
  const largest = Math.max(...values.filter(Number.isFinite).map(Math.abs), 0);
  const digits = largest > 0 ? Math.min(8, Math.max(0, 3 - Math.floor(Math.log10(largest)))) : 0;
  const format = new Intl.NumberFormat("en", {
    minimumFractionDigits: digits,
    maximumFractionDigits: digits,
  });
  return (value) => (Number.isFinite(value) ? minus(format.format(value)) : "–");
}

const minus = (text) => text.replace(/^-/, "−");

export const percent = (share) =>
  share > 0 && share < 0.005 ? "<\u00a01\u00a0%" : `${Math.round(100 * share)}\u00a0%`;

export function milliseconds(seconds) {
  const value = 1000 * seconds;
  return `${value >= 100 ? Math.round(value) : value.toFixed(value >= 10 ? 0 : 1)} ms`;
}

/** Say something to who listens rather than looks. */
export function say(text) {
  byId("said").textContent = text;
}

/** `call`, once nothing has asked for it for `wait` milliseconds; `.cancel()` takes that back. */
export function debounced(call, wait) {
  let timer;
  const later = () => {
    clearTimeout(timer);
    timer = setTimeout(call, wait);
  };
  later.cancel = () => clearTimeout(timer);
  return later;
}
