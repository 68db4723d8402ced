// The agent at work: a list of turns, each with what it thought, the search that it made and what that brought.
//
// Fed with the `search_step`s of a stream and the reasoning between them; steps of a kind unknown here are left out.

import { announce, button, count, link, make, reveal, seconds } from "./dom.js";
import { cutOut, isBox } from "./picture.js";

const SHORT = 260; // characters of one piece of evidence that are shown at first
const OUTCOMES = {
  empty: "nothing was found", refused: "the provider refused", policy_error: "not carried out", infra_error: "failed",
};
const CITATION = /\[(\d{1,3})\]/g;

/** Words with every `[n]` that names evidence as a link to it. */
export function cited(words, evidence) {
  const parts = [];
  let at = 0;
  for (const mark of words.matchAll(CITATION)) {
    const item = evidence.get(Number(mark[1]));
    if (!item) continue;
    parts.push(words.slice(at, mark.index), citation(item));
    at = mark.index + mark[0].length;
  }
  return [...parts, words.slice(at)].filter(Boolean);
}

/** The chip that leads to a piece of evidence. */
export function citation(item) {
  const node = make("a", "cite", String(item.number));
  node.href = `#${item.node.id}`;
  node.setAttribute("aria-label", `Source ${item.number}: ${item.title}`);
  node.title = item.title;
  node.addEventListener("click", (event) => {
    event.preventDefault();
    item.node.closest("details").open = true;
    item.node.focus({ preventScroll: true });
    reveal(item.node, "center");
    item.node.classList.remove("flash");
    void item.node.offsetWidth; // so that the same one can flash twice
    item.node.classList.add("flash");
  });
  return node;
}

export class Steps {
  /** `gallery`: shows pictures by their number, `gallery.shown(number)`, or null for one that it does not have. */
  constructor(name, gallery) {
    this._name = name;
    this._gallery = gallery;
    this._turn = null;
    this._call = null;
    this._said = "";
    this.searches = 0;
    this.evidence = new Map(); // by number
    this.noticed = new Set(); // reasons that notices gave
    this.node = make("ol", "turns");
  }

  get empty() { return !this.node.childElementCount; }

  /** One `search_step`. */
  take(step) {
    const known = { turn: () => this._begin(), search: () => this._search(step), result: () => this._result(step),
      problem: () => this._note(step, "problem"), notice: () => this._note(step, "notice") }[step.type];
    if (known) known();
  }

  /** More of what the agent thinks. */
  think(words) {
    if (!this._turn) this._begin();
    this._said += words;
    this._reason.replaceChildren(...cited(this._said, this.evidence));
    this._reason.hidden = false;
  }

  /** Nothing follows. A turn of which nothing came is left out. */
  end() {
    this._live(false);
    if (this._call) this._call.classList.remove("waiting");
    if (this._turn && this._turn.childElementCount === 1 && this._reason.hidden) this._turn.remove();
  }

  _live(live) {
    if (this._turn) this._turn.classList.toggle("live", live);
  }

  _begin() {
    this._live(false);
    this._said = "";
    this._call = null;
    this._reason = make("p", "reason");
    this._reason.hidden = true;
    this._turn = make("li", "turn", this._reason);
    this._live(true);
    this.node.append(this._turn);
  }

  _search(step) {
    if (!this._turn) this._begin();
    this.searches += 1;
    const number = make("span", "badge", String(this.searches));
    const [what, sought] = this._words(step);
    this._call = make("div", "call waiting", make("p", "action", number, make("span", "", what, sought ? " " : "",
      sought ? make("q", "", sought) : null)));
    this._turn.append(this._call);
    announce(`${what} ${sought}`);
  }

  _words(step) {
    if (step.tool === "text_search") return ["Text search", String(step.query || "")];
    const which = this._gallery.size > 1 ? ` in picture ${step.image}` : "";
    if (step.expression) return [`Picture search${which} for`, String(step.expression)];
    return [step.box ? `Picture search${which}, of a part` : `Picture search${which}, of all of it`, ""];
  }

  _result(step) {
    if (!this._call) this._search(step);
    const call = this._call;
    call.classList.remove("waiting");
    if (step.tool === "image_search") this._picture(call, step);
    const found = Array.isArray(step.evidence) ? step.evidence : [];
    const pieces = found.map((item) => this._piece(item, step.thumbnails || {}));
    if (pieces.length) call.append(make("ol", "evidence", ...pieces));
    if (step.message) call.append(make("p", "problem", String(step.message)));
    const outcome = found.length ? count(found.length, "result") : OUTCOMES[step.outcome] || OUTCOMES.empty;
    const took = [Number.isFinite(step.seconds) ? seconds(step.seconds) : "", step.cached ? "from the cache" : "",
      step.cost_usd ? `$${step.cost_usd.toFixed(4)}` : ""];
    call.append(make("p", "meta", [outcome, step.provider, ...took].filter(Boolean).join(" · ")));
    announce([outcome, ...found.map((item) => item.title)].join(", "));
    this._call = null;
  }

  /** What was searched, drawn on the picture and cut out of it. */
  _picture(call, step) {
    const box = isBox(step.crop_box) ? step.crop_box : null, number = step.image || 1;
    const shown = this._gallery.shown(number);
    if (!shown) {
      const pixels = box ? `, pixels ${box.join(", ")}` : "";
      call.append(make("p", "meta", `picture ${number}, which the agent was given by a search${pixels}`));
      return;
    }
    call.append(make("div", "sought", cutOut(shown.picture, box)));
    if (!box) return;
    const light = shown.mark(box, this.searches);
    for (const event of ["pointerenter", "focusin"]) call.addEventListener(event, () => { light(true); });
    for (const event of ["pointerleave", "focusout"]) call.addEventListener(event, () => { light(false); });
  }

  _piece(item, thumbnails) {
    const words = String(item.text || ""), text = make("p", "", words);
    const address = String(thumbnails[item.thumbnail] || ""), body = make("div", "");
    if (item.title) body.append(make("b", "", String(item.title)));
    body.append(text);
    if (words.length > SHORT) {
      text.textContent = `${words.slice(0, SHORT).trimEnd()}… `;
      const more = button("more", "more", () => { text.textContent = words; });
      more.setAttribute("aria-label", `All of source ${item.number}`);
      text.append(more);
    }
    if (item.url) body.append(link(String(item.url)));
    const node = make("li", "", make("span", "number", String(item.number)), body);
    if (/^data:image\/(png|jpeg|webp|gif);/.test(address)) {
      const image = make("img", "");
      [image.src, image.alt] = [address, ""];
      node.append(image);
    }
    node.id = `source-${this._name}-${item.number}`;
    node.tabIndex = -1;
    this.evidence.set(item.number, { number: item.number, title: String(item.title || item.url || ""), node });
    return node;
  }

  _note(step, className) {
    if (!this._turn) this._begin();
    const words = String(step.message || "");
    if (step.reason) this.noticed.add(step.reason);
    this._turn.append(make("p", className, words));
    announce(words);
  }
}
