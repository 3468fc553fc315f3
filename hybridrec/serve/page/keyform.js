// The key: asked for when the service wants one.

import { byId } from "./dom.js";
import { key } from "./service.js";

/** Open the field and say why; `message` is the service's. */
export function wantKey(message) {
  byId("key-message").textContent = message;
  open(true);
  byId("key").focus();
}

/** `changed()` is called when there is another key, or none. */
export function onKey(changed) {
  byId("key-open").addEventListener("click", () => {
    open(byId("key-form").hidden);
    if (!byId("key-form").hidden) byId("key").focus();
  });
  byId("key-form").addEventListener("submit", (event) => {
    event.preventDefault();
    const secret = byId("key").value.trim();
    if (secret === "") return;
    if (!/^[\x21-\x7e]+$/.test(secret)) {
      byId("key-message").textContent = "That is no key: it holds characters that no key has.";
      return;
    }
    key.set(secret);
    done(changed);
  });
  byId("key-forget").addEventListener("click", () => {
    key.forget();
    done(changed);
  });
}

function done(changed) {
  byId("key").value = "";
  byId("key-message").textContent = "";
  open(false);
  changed();
}

function open(shown) {
  byId("key-form").hidden = !shown;
  byId("key-open").setAttribute("aria-expanded", String(shown));
  byId("key-forget").hidden = key.get() === "";
}
