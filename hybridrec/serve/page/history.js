// The history: of a user to be read, of nobody in particular to be edited. Newest on top.

import { element, percent } from "./dom.js";

/**
 * Fill `list` with `items`, [{item, title}] oldest first. With `edit`, {move(from, to),
 * remove(place)} in places of `items`, every row can be moved and removed.
 */
export function showHistory(list, items, edit = null) {
  const buttons = list.getElementsByTagName("button");
  const focused = [...buttons].indexOf(document.activeElement);
  const rows = items.map((item, place) => row(item, place, items.length, edit));
  list.replaceChildren(...rows.reverse());
  buttons[focused]?.focus();  // an answer that comes in takes nobody's place away
}

/** Mark what speaks for the item that is looked at: `shares` by id, empty for none. */
export function markHistory(list, shares) {
  for (const node of list.children) {
    const share = shares.get(node.dataset.item);
    node.classList.toggle("speaks", share !== undefined);
    node.style.setProperty("--share", share === undefined ? "0%" : `${100 * share}%`);
    node.querySelector(".share").textContent = share === undefined ? "" : percent(share);
  }
}

function row({ item, title }, place, size, edit) {
  const id = String(item);
  const name = title ?? id;
  return element(
    "li",
    { "data-item": id, ...(edit ? dragged(place, edit) : {}) },
    element("span", { class: "name" }, name),
    title === null || title === undefined ? null : element("span", { class: "id" }, id),
    element("span", { class: "share" }),
    edit ? buttons(name, place, size, edit) : null,
  );
}

function buttons(name, place, size, edit) {
  const button = (sign, label, off, act) =>
    element("button", { type: "button", class: "icon", "aria-label": `${label}: ${name}`,
      title: label, disabled: off, click: act }, sign);
  return element(
    "span",
    { class: "tools" },
    button("↑", "Make newer", place === size - 1, () => edit.move(place, place + 1)),
    button("↓", "Make older", place === 0, () => edit.move(place, place - 1)),
    button("×", "Remove", false, () => edit.remove(place)),
  );
}

const KIND = "application/x-hybridrec-place";

function dragged(place, edit) {
  const ours = (event) => event.dataTransfer.types.includes(KIND);
  return {
    draggable: "true",
    dragstart: (event) => {
      event.dataTransfer.setData(KIND, String(place));
      event.dataTransfer.effectAllowed = "move";
    },
    dragover: (event) => {
      if (!ours(event)) return;
      event.preventDefault();
      event.currentTarget.classList.add("target");
    },
    dragleave: (event) => event.currentTarget.classList.remove("target"),
    drop: (event) => {
      if (!ours(event)) return;
      event.preventDefault();
      edit.move(Number(event.dataTransfer.getData(KIND)), place);
    },
  };
}
