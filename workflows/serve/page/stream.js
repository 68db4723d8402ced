// The service's API: what it is, and one streamed answer. A stream ends in order only with a finish_reason.

const MOST_HELD = 8 << 20; // characters of one event; a step with its thumbnails has a fraction of it
const ABOUT_MS = 20000; // for the service to say what it is

/** What went wrong, in a sentence. `retryAfter`: seconds, where the service says when to come again. */
export class Trouble extends Error {
  constructor(message, { status = 0, code = null, retryAfter = null } = {}) {
    super(message);
    this.status = status;
    this.code = code;
    this.retryAfter = retryAfter;
  }
  /** Whether the same request may do better, be it with another key. */
  get passing() {
    return [0, 401, 408].includes(this.status) || this.status >= 500 ||
      (this.status === 429 && this.code !== "insufficient_quota");
  }
}

const UNREACHABLE = "The service cannot be reached. Is it running, and is this machine online?";

/** The document of `GET /about`. Throws `Trouble`. */
export async function about() {
  const signal = AbortSignal.timeout(ABOUT_MS);
  const answer = await sent("about", { headers: { Accept: "application/json" }, signal });
  if (!answer.ok) throw await refusal(answer);
  return answer.json();
}

/** The chunks of a streamed answer. Throws `Trouble`, and `AbortError` when `signal` is given. */
export async function* chunks(body, key, signal) {
  const headers = { "Content-Type": "application/json", Accept: "text/event-stream" };
  if (key) headers.Authorization = `Bearer ${key}`;
  const answer = await sent("v1/chat/completions", { method: "POST", headers, body, signal });
  if (!answer.ok) throw await refusal(answer);
  if (!(answer.headers.get("Content-Type") || "").startsWith("text/event-stream")) {
    throw new Trouble("The service answered with something that is no stream.");
  }
  for await (const data of events(answer.body, signal)) {
    if (data === "[DONE]") return;
    const chunk = parsed(data);
    if (chunk.error) throw new Trouble(said(chunk.error), { status: 503, code: chunk.error.code });
    yield chunk;
  }
}

async function sent(address, options) {
  try {
    return await fetch(address, { ...options, credentials: "same-origin", cache: "no-store" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Trouble(UNREACHABLE);
  }
}

/** The data of server-sent events; comments, which only say that the stream lives, are left out. */
async function* events(body, signal) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  try {
    while (true) {
      const { done, value } = await read(reader, signal);
      if (done) return;
      held += value;
      const blocks = held.split(/\r?\n\r?\n/);
      held = blocks.pop();
      if (held.length > MOST_HELD) throw new Trouble("The service sent more at once than this page takes.");
      for (const block of blocks) {
        const lines = block.split(/\r?\n/).filter((line) => line.startsWith("data:"));
        if (lines.length) yield lines.map((line) => line.slice(5).replace(/^ /, "")).join("\n");
      }
    }
  } finally {
    reader.cancel().catch(() => { /* it has ended already */ });
  }
}

async function read(reader, signal) {
  try {
    return await reader.read();
  } catch (error) {
    if (signal.aborted) throw error;
    return { done: true }; // the connection broke: the answer ends without its finish_reason, which says so
  }
}

function parsed(data) {
  try {
    return JSON.parse(data);
  } catch {
    throw new Trouble("The service sent something that cannot be read.");
  }
}

async function refusal(answer) {
  let body = null;
  try { body = await answer.json(); } catch { /* a proxy's page, perhaps */ }
  const message = body && body.error ? said(body.error) : `The service refused with status ${answer.status}.`;
  const code = body && body.error ? body.error.code : null;
  return new Trouble(message, { status: answer.status, code, retryAfter: wait(answer.headers.get("Retry-After")) });
}

const said = (error) => String(error.message || "The service failed and does not say why.");

/** Seconds; the header has seconds or a date. */
function wait(header) {
  if (!header) return null;
  const asked = Number(header), s = Number.isFinite(asked) ? asked : (Date.parse(header) - Date.now()) / 1000;
  return Number.isFinite(s) ? Math.max(0, Math.ceil(s)) : null;
}
