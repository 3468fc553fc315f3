// A field that suggests, after the combobox pattern of the ARIA Authoring Practices.

import { debounced, element, say } from "./dom.js";

/**
 * Make `input` suggest what `search(text, signal)` finds, [{value, label, note}].
 *
 * `choose(value, label)` is called with what was picked. `free` lets Enter choose what was typed
 * as it is. `failed(error)` hears what goes wrong.
 */
export function combobox({ input, list, search, choose, failed, free = false }) {
  let found = [];
  let active = -1;
  let asking = new AbortController();
  const later = debounced(look, 150);

  input.setAttribute("role", "combobox");
  input.setAttribute("aria-autocomplete", "list");
  input.setAttribute("aria-controls", list.id);
  list.setAttribute("role", "listbox");
  list.setAttribute("aria-label", "Suggestions");
  close();

  async function look() {
    asking.abort();
    asking = new AbortController();
    const { signal } = asking;
    try {
      const answer = await search(input.value.trim(), signal);
      if (!signal.aborted && document.activeElement === input) show(answer);
    } catch (error) {
      if (signal.aborted) return;
      close();
      failed(error);
    }
  }

  function show(answer) {
    found = answer;
    active = -1;
    const nothing = element("li", { class: "nothing" }, "Nothing found");
    list.replaceChildren(...(found.length ? found.map(option) : [nothing]));
    list.hidden = false;
    input.setAttribute("aria-expanded", String(found.length > 0));
    input.removeAttribute("aria-activedescendant");
    say(found.length === 1 ? "1 suggestion" : `${found.length} suggestions`);
  }

  function option({ label, note }, place) {
    return element(
      "li",
      {
        id: `${list.id}-${place}`,
        role: "option",
        "aria-selected": "false",
        // Before the field loses the focus, which closes the list.
        mousedown: (event) => event.preventDefault(),
        click: () => pick(place),
      },
      element("span", {}, label),
      note ? element("span", { class: "note" }, note) : null,
    );
  }

  function pick(place) {
    const { value, label } = found[place];
    close();
    choose(value, label);
  }

  function close() {
    later.cancel();
    asking.abort();
    list.hidden = true;
    list.replaceChildren();
    found = [];
    active = -1;
    input.setAttribute("aria-expanded", "false");
    input.removeAttribute("aria-activedescendant");
  }

  function move(step) {
    if (!found.length) return;
    list.children[active]?.setAttribute("aria-selected", "false");
    const start = active < 0 && step < 0 ? 0 : active;
    active = (start + step + found.length) % found.length;
    const now = list.children[active];
    now.setAttribute("aria-selected", "true");
    now.scrollIntoView({ block: "nearest" });
    input.setAttribute("aria-activedescendant", now.id);
  }

  input.addEventListener("input", later);
  input.addEventListener("click", () => list.hidden && look());
  input.addEventListener("blur", close);
  input.addEventListener("keydown", (event) => {
    if (event.isComposing) return;
    if (event.key === "ArrowDown" || event.key === "ArrowUp") {
      event.preventDefault();
      if (list.hidden) look();
      else move(event.key === "ArrowDown" ? 1 : -1);
    } else if (event.key === "Enter") {
      event.preventDefault();
      const typed = input.value.trim();
      if (active >= 0) pick(active);
      else if (free && typed !== "") {
        close();
        choose(typed, typed);
      } else if (found.length === 1) pick(0);
      else if (list.hidden) look();
      else move(1);
    } else if (event.key === "Escape" && !list.hidden) {
      event.preventDefault();
      close();
    }
  });
}
