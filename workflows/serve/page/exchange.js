// One question and what became of it: pictures, steps, answer, what it took; or what went wrong, and the way on.

import { announce, button, count, make, reveal, seconds } from "./dom.js";
import { Shown } from "./picture.js";
import { Steps, citation, cited } from "./steps.js";

const CUT_SHORT = {
  length: "The answer was cut off: the agent had no room to write more.",
  max_turns: "The agent used up its turns.",
  max_tool_calls: "The agent used up the searches of a request.",
  max_cost: "The agent used up the money of a request.",
  max_seconds: "The agent used up the time of a request.",
};
const BROKEN_OFF = "The stream broke off before the answer was finished. What had come until then stands above.";
const BRIEF = 60; // characters up to which an answer is set large
const LONG = 280; // characters from which a question is set small
const TICK_MS = 200;

/** The pictures that a question is about. */
class Gallery {
  constructor(pictures) {
    this.size = pictures.length;
    this._shown = pictures.map((picture, i) => new Shown(picture, i + 1, pictures.length));
    this.node = make("div", "gallery", ...this._shown.map((shown) => shown.node));
  }
  /** By its number from 1 on; null for one that the agent was given by a search. */
  shown(number) { return this._shown[number - 1] || null; }
}

let made = 0;

export class Exchange {
  /** `asked`: {text, pictures, search}; `pictures`: its own, or those it follows up on; `again`: asks it once more. */
  constructor(asked, pictures, again) {
    this.asked = asked;
    this.answer = "";
    this.finished = false;
    this.version = -1; // of the weights that answered
    this._again = again;
    this._gallery = new Gallery(pictures);
    made += 1;
    this._steps = new Steps(made, this._gallery);
    this._clock = make("span", "clock");
    this._summary = make("summary", "", make("span", "doing", "Working"), this._clock);
    this._work = make("details", "work", this._summary, this._steps.node);
    this._work.open = true;
    this._answer = make("div", "answer");
    this._answer.hidden = true;
    this._end = make("div", "end");
    const heading = make("h2", asked.text.length > LONG ? "asked long" : "asked", asked.text);
    if (asked.text.length > LONG) heading.tabIndex = 0; // it scrolls
    const body = make("div", "body", this._work, this._answer, this._end);
    this.node = make("article", "exchange running", heading, make("div", "sides", this._gallery.node, body));
    heading.id = `question-${made}`;
    this.node.setAttribute("aria-labelledby", heading.id);
    this.node.setAttribute("aria-busy", "true");
    this._began = performance.now();
    this._ticking = setInterval(() => this._tick(), TICK_MS);
    this._tick();
    announce("The agent is at work");
  }

  /** One chunk of the stream. */
  take(chunk) {
    if (chunk.usage) this._usage = chunk.usage;
    const choice = (chunk.choices || [])[0];
    if (!choice) return;
    const delta = choice.delta || {};
    if (delta.reasoning_content) this._steps.think(delta.reasoning_content);
    if (choice.search_step) this._steps.take(choice.search_step);
    if (delta.content) this._write(delta.content);
    if (delta.annotations) this._annotations = delta.annotations;
    if (choice.finish_reason) {
      this.finished = true;
      this._reason = choice.finish_reason;
      this.version = choice.weights_version;
    }
  }

  /** The stream has ended, in order or not. */
  end() {
    this._stop();
    if (!this.finished) return this._problem(BROKEN_OFF, null);
    const calls = this._usage ? this._usage.tool_calls : this._steps.searches;
    const facts = [count(calls, "search", "searches"), ...this._took()];
    this._end.append(...this._sources(), make("p", "facts", [seconds(this._seconds), ...facts].join(" · ")));
    const cut = this._steps.noticed.has(this._reason) ? "" : CUT_SHORT[this._reason];
    if (cut) this._end.prepend(make("p", "notice", cut));
    announce(`Answer: ${this.answer || "none"}`);
  }

  /** The person stopped it. */
  stopped() {
    this._stop();
    this._end.append(make("div", "trouble quiet", make("p", "", `Stopped after ${seconds(this._seconds)}.`),
      button("Ask again", "", () => this._again())));
    announce("Stopped");
  }

  /** `trouble`: a `Trouble` of stream.js. */
  failed(trouble) {
    this._stop();
    this._problem(trouble.message, trouble);
  }

  get _seconds() { return (performance.now() - this._began) / 1000; }

  _tick() { this._clock.textContent = `${Math.floor(this._seconds)} s`; }

  _stop() {
    clearInterval(this._ticking);
    clearInterval(this._counting);
    this._steps.end();
    this.node.classList.remove("running");
    this.node.removeAttribute("aria-busy");
    const turns = this._steps.node.childElementCount;
    this._clock.textContent = count(turns, "turn");
    this._summary.replaceChildren(make("span", "doing", "How it got there"), this._clock);
    this._work.hidden = this._steps.empty;
  }

  _write(words) {
    this.answer += words;
    this._answer.hidden = false;
    this._answer.classList.toggle("brief", this.answer.length <= BRIEF);
    this._answer.replaceChildren(make("p", "", ...cited(this.answer, this._steps.evidence)));
  }

  /** What the answer cites, each once, by the annotations that the service gave. */
  _sources() {
    const letters = [...this.answer], seen = new Map(); // offsets count characters, not UTF-16 units
    for (const { url_citation: told } of this._annotations || []) {
      const mark = told && letters.slice(told.start_index, told.end_index).join("").match(/^\[(\d{1,3})\]$/);
      const item = mark && this._steps.evidence.get(Number(mark[1]));
      if (item) seen.set(item.number, make("li", "", citation(item), " ", item.title));
    }
    if (!seen.size) return [];
    const heading = make("h3", "", seen.size === 1 ? "Source" : "Sources");
    return [make("div", "sources", heading, make("ul", "", ...seen.values()))];
  }

  _took() {
    const used = this._usage || {}, facts = [];
    if (Number.isFinite(used.cost_usd)) facts.push(used.cost_usd ? `$${used.cost_usd.toFixed(4)}` : "no cost");
    if (Number.isFinite(used.total_tokens)) facts.push(count(used.total_tokens, "token"));
    if (this.version >= 0) facts.push(`weights version ${this.version}`);
    return facts;
  }

  _problem(message, trouble) {
    const box = make("div", "trouble", make("p", "", message));
    box.setAttribute("role", "alert");
    this._end.append(box);
    if (!trouble || trouble.passing) {
      const retry = button("Ask again", "", () => this._again());
      box.append(retry);
      if (trouble && trouble.retryAfter) this._count(retry, trouble.retryAfter);
    }
    reveal(box);
  }

  /** Until the service takes it again, as it said itself. */
  _count(retry, wait) {
    const due = performance.now() + wait * 1000;
    const show = () => {
      const left = Math.ceil((due - performance.now()) / 1000);
      retry.disabled = left > 0;
      retry.textContent = left > 0 ? `Ask again in ${left} s` : "Ask again";
      if (left <= 0) clearInterval(this._counting);
    };
    this._counting = setInterval(show, TICK_MS);
    show();
  }
}
