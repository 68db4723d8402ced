// The page: a conversation with the agent, one question at a time.
//
// Nothing is kept but in this tab: the key and the consent in sessionStorage, the conversation in memory.

import { Composer } from "./composer.js";
import { announce, button, make } from "./dom.js";
import { Exchange } from "./exchange.js";
import { MIB, readPicture } from "./picture.js";
import { Trouble, about, chunks } from "./stream.js";

const at = (id) => document.getElementById(id);
const conversation = at("conversation"), welcome = at("welcome"), consent = at("consent");
const door = at("door"), key = at("key");
const KEY = "mmsearch-key", CONSENT = "mmsearch-consent";
const NEAR_END = 160; // pixels from the end of the page within which it follows what is written

let service = null; // what GET /about said
let exchanges = [];
let running = null; // the AbortController of the answer on its way

const composer = new Composer((asked) => ask(asked));

// Of the conversation's pictures only the newest are sent: an agent that cannot name pictures searches the first one.
const newest = (asked, earlier) => [...earlier.map((one) => one.asked), asked].findLast((one) => one.pictures.length);
const answered = (but = null) => exchanges.filter((exchange) => exchange.finished && exchange !== but);

// --- asking ----------------------------------------------------------------------------------------------------------

/** Whether it was asked: not so while one is on its way, without a key, or without consent. In place of `before`. */
async function ask(asked, before = null) {
  if (!service) await begin();
  if (running || !service || !admitted()) return false;
  const permitted = await permission(asked, answered(before));
  if (!permitted || running) return false;
  play(permitted, before);
  return true;
}

function admitted() {
  if (!service.keys || kept(KEY)) return true;
  composer.complain("This service wants an API key: write it into the field above.");
  key.focus();
  return false;
}

/** `asked` as the person lets it be sent with what was asked `earlier`; null when not at all. */
async function permission(asked, earlier) {
  const places = service.uploads || [], given = kept(CONSENT) === JSON.stringify(places);
  if (!places.length || given || !asked.search || !newest(asked, earlier)) return asked;
  at("places").replaceChildren(...places.map((place) => make("li", "", place)));
  consent.returnValue = "no";
  consent.showModal();
  await new Promise((done) => { consent.addEventListener("close", done, { once: true }); });
  if (consent.returnValue === "yes") keep(CONSENT, JSON.stringify(places));
  if (consent.returnValue === "unsearched") return { ...asked, search: false };
  return consent.returnValue === "yes" ? asked : null;
}

/** Only for what `permission` gave. */
async function play(asked, before) {
  const earlier = answered(before), shown = newest(asked, earlier);
  const exchange = new Exchange(asked, shown ? shown.pictures : [], () => again(exchange));
  if (before) {
    before.node.replaceWith(exchange.node);
    exchanges[exchanges.indexOf(before)] = exchange;
  } else {
    exchanges.push(exchange);
    conversation.append(exchange.node);
  }
  welcome.hidden = true;
  at("anew").hidden = false;
  running = new AbortController();
  const { signal } = running;
  composer.busy(true);
  exchange.node.scrollIntoView({ block: "start", behavior: "instant" });
  try {
    for await (const chunk of chunks(bodyOf(request(earlier, asked)), kept(KEY), signal)) {
      following(() => exchange.take(chunk));
    }
    following(() => exchange.end());
    if (exchange.finished) named(exchange.version);
  } catch (error) {
    if (signal.aborted) following(() => exchange.stopped());
    else failed(exchange, error instanceof Trouble ? error : new Trouble(`This page failed: ${error.message}`));
  } finally {
    if (running && running.signal === signal) {
      running = null;
      composer.busy(false);
    }
  }
}

function failed(exchange, trouble) {
  following(() => exchange.failed(trouble));
  if (trouble.status === 401) { forget(KEY); locked(); }
  if (!trouble.passing) composer.put(exchange.asked); // it has to be written otherwise
}

/** In its place if nothing came after it; else as a follow-up on what did, whose pictures it then takes along. */
function again(exchange) {
  ask(exchange.asked, exchanges.at(-1) === exchange ? exchange : null);
}

function request(earlier, asked) {
  const shown = newest(asked, earlier);
  const parts = ({ pictures, text }) =>
    [...pictures.map(({ url }) => ({ type: "image_url", image_url: { url } })), { type: "text", text }];
  const user = (one) => ({ role: "user", content: one === shown ? parts(one) : one.text });
  const before = earlier.flatMap((one) => [user(one.asked), { role: "assistant", content: one.answer }]);
  return {
    model: service.model,
    messages: [...before, user(asked)],
    stream: true,
    stream_options: { include_usage: true },
    include_thumbnails: true,
    tool_choice: asked.search ? "auto" : "none",
  };
}

function bodyOf(request) {
  const body = JSON.stringify(request), most = composer.limits.body_mib;
  if (new Blob([body]).size <= most * MIB) return body;
  throw new Trouble(`The pictures are over the ${most} MiB of a request: take fewer or smaller ones.`, { status: 413 });
}

/** The page follows what is written, if its end was in sight before. */
function following(write) {
  const page = document.documentElement;
  const near = page.scrollHeight - innerHeight - scrollY < NEAR_END;
  write();
  if (near) scrollTo({ top: page.scrollHeight, behavior: "instant" });
}

at("stop").addEventListener("click", () => {
  if (running) running.abort();
  composer.focus();
});
at("anew").addEventListener("click", () => {
  if (running) running.abort();
  exchanges = [];
  conversation.replaceChildren();
  welcome.hidden = false;
  at("anew").hidden = true;
  announce("A new conversation");
  composer.focus();
});
for (const choice of consent.querySelectorAll("button")) {
  choice.addEventListener("click", () => { consent.close(choice.value); });
}

// --- the key ---------------------------------------------------------------------------------------------------------

function locked() {
  door.hidden = !service.keys || Boolean(kept(KEY));
  if (!door.hidden) key.value = "";
}
door.addEventListener("submit", (event) => {
  event.preventDefault();
  if (!key.value.trim()) return;
  keep(KEY, key.value.trim());
  composer.complain("");
  locked();
  composer.focus();
});

function kept(name) {
  try { return sessionStorage.getItem(name); } catch { return memory.get(name) ?? null; }
}
function keep(name, value) {
  try { sessionStorage.setItem(name, value); } catch { memory.set(name, value); }
}
function forget(name) {
  try { sessionStorage.removeItem(name); } catch { memory.delete(name); }
}
const memory = new Map(); // where the browser forbids storage

// --- the beginning ---------------------------------------------------------------------------------------------------

/** The model, and the version of the weights that answered last. */
function named(version) {
  at("model").textContent = version >= 0 ? `${service.model} · version ${version}` : service.model;
}

function example({ question, picture }) {
  const image = make("img", "");
  [image.src, image.alt] = [picture, ""];
  const card = button("", "", async () => {
    if (running) return;
    try {
      const answer = await fetch(picture);
      if (!answer.ok) throw new Error(`status ${answer.status}`);
      const file = new File([await answer.blob()], "example", { type: answer.headers.get("Content-Type") });
      const pictures = [await readPicture(file, composer.limits.picture_mib)];
      await ask({ text: question, pictures, search: at("search").checked });
    } catch (error) {
      composer.complain(`The example cannot be loaded: ${error.message}.`);
    }
  });
  card.append(image, make("span", "", question));
  return make("li", "", card);
}

async function begin() {
  at("trouble").replaceChildren();
  try {
    service = await about();
  } catch (error) {
    const box = make("div", "trouble", make("p", "", error.message), button("Try again", "", begin));
    at("trouble").replaceChildren(box);
    return;
  }
  named(service.version);
  composer.limits = { ...composer.limits, ...service.limits };
  const places = service.uploads || [];
  at("whither").textContent = places.length
    ? `When the agent searches by picture, the picture or a part of it goes to ${places.join(", ")}.`
    : "Pictures stay within this service.";
  const examples = (service.examples || []).map(example);
  at("examples").replaceChildren(...examples);
  at("tries").hidden = !examples.length;
  locked();
}

composer.after(begin());
