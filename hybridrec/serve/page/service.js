// The service behind the page: requests, the key, and errors in words.

const KEY = "hybridrec.key";

/** What went wrong, in words. `status` 0: there was no answer at all. */
export class ServiceError extends Error {
  constructor(message, { status = 0, code = "", requestId = "" } = {}) {
    super(message);
    this.name = "ServiceError";
    this.status = status;
    this.code = code;
    this.requestId = requestId;
  }
}

export const key = {
  get: () => sessionStorage.getItem(KEY) ?? "",
  set: (secret) => sessionStorage.setItem(KEY, secret),
  forget: () => sessionStorage.removeItem(KEY),
};

export const recommend = (question, signal) =>
  call("v1/recommend", { method: "POST", body: JSON.stringify(question), signal });

export async function findUsers(prefix, signal) {
  return (await call(`v1/users?${new URLSearchParams({ prefix, limit: 12 })}`, { signal })).users;
}

export async function findItems(search, signal) {
  return (await call(`v1/items?${new URLSearchParams({ search, limit: 12 })}`, { signal })).items;
}

export async function loadedModels(signal) {
  return (await call("v1/models", { signal })).models;
}

async function call(path, options) {
  const headers = {};
  if (options.body) headers["Content-Type"] = "application/json";
  if (key.get()) headers.Authorization = `Bearer ${key.get()}`;
  let response, text;
  try {
    response = await fetch(path, { ...options, headers, cache: "no-store", credentials: "omit" });
    text = await response.text();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServiceError("The service cannot be reached: is it still running?");
  }
  const body = parsed(text);
  if (response.ok && body !== undefined) return body;
  throw failure(response, body);
}

function failure(response, body) {
  const said = body?.error ?? {};
  const requestId = said.request_id ?? response.headers.get("x-request-id") ?? "";
  const message = typeof said.message === "string" && said.message !== ""
    ? said.message
    : `The service answered with status ${response.status} and no reason.`;
  return new ServiceError(message, { status: response.status, code: said.code, requestId });
}

/** JSON, or undefined. Integers that a number here cannot hold, as ids may be, stay text. */
function parsed(text) {
  try {
    return JSON.parse(text, (_, value, context) => {
      const lost = Number.isInteger(value) && !Number.isSafeInteger(value);
      return lost && /^-?\d+$/.test(context?.source ?? "") ? context.source : value;
    });
  } catch {
    return undefined;
  }
}
