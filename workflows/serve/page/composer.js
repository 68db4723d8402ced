// What a person asks with: words, pictures that are dropped, pasted or chosen, and the switch for searching.

import { announce, count, make } from "./dom.js";
import { Unusable, readPicture } from "./picture.js";

const form = document.getElementById("composer"), words = document.getElementById("words");
const picked = document.getElementById("picked"), files = document.getElementById("files");
const search = document.getElementById("search"), complaint = document.getElementById("complaint");
const drop = document.getElementById("drop");
const TALLEST = 200; // pixels of the question, above which it scrolls

export class Composer {
  /** `ask({text, pictures, search})` is called with what is asked; `limits`: of `GET /about`. */
  constructor(ask) {
    this._ask = ask;
    this.limits = { pictures: 8, picture_mib: 20, body_mib: 32 };
    this._pictures = [];
    this._reading = Promise.resolve();
    this.busy(false);
    form.addEventListener("submit", (event) => { event.preventDefault(); this.submit(); });
    words.addEventListener("input", () => { this.complain(""); fit(); });
    form.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && !event.isComposing) {
        event.preventDefault();
        this.submit();
      }
    });
    document.getElementById("choose").addEventListener("click", () => files.click());
    files.addEventListener("change", () => { this.add([...files.files]); files.value = ""; });
    addEventListener("paste", (event) => {
      const pasted = [...event.clipboardData.files];
      if (pasted.length) { event.preventDefault(); this.add(pasted); }
    });
    if (matchMedia("(min-width: 641px)").matches) words.placeholder += ": drop it here, paste it, or choose one";
    this._droppable();
  }

  /** Whether an answer is on its way: another question waits for it. */
  busy(busy) {
    this._busy = busy;
    document.getElementById("ask").hidden = busy;
    document.getElementById("stop").hidden = !busy;
  }

  complain(sentence) { complaint.textContent = sentence; }

  focus() { words.focus(); }

  async submit() {
    await this._reading;
    if (this._busy) return;
    const text = words.value.trim();
    if (!text) {
      this.complain(this._pictures.length ? "Say what you want to know about the picture." : "Write a question first.");
      words.focus();
      return;
    }
    const asked = { text, pictures: this._pictures, search: search.checked };
    this.complain("");
    this.put({ text: "", pictures: [] });
    if (!(await this._ask(asked))) this.put(asked);
  }

  /** As if a person had written it; nothing is lost of what one is writing. */
  put({ text, pictures }) {
    if (text && words.value) return;
    words.value = text;
    this._pictures = pictures;
    this._show();
    fit();
  }

  /** Pictures are read when this has ended, as it brings their bounds. */
  after(bounds) { this._reading = this._reading.then(() => bounds); }

  /** Files, one after the other. */
  add(chosen) {
    this._reading = this._reading.then(async () => {
      this.complain("");
      for (const file of chosen) await this._one(file);
    });
    return this._reading;
  }

  async _one(file) {
    if (this._pictures.length >= this.limits.pictures) {
      this.complain(`A question takes ${count(this.limits.pictures, "picture")} here at most.`);
      return;
    }
    try {
      const picture = await readPicture(file, this.limits.picture_mib);
      this._pictures = [...this._pictures, picture];
      announce(`${picture.name} is added`);
      this._show();
      words.focus();
    } catch (error) {
      if (!(error instanceof Unusable)) throw error;
      this.complain(error.message);
    }
  }

  _show() {
    picked.hidden = !this._pictures.length;
    picked.replaceChildren(...this._pictures.map((picture) => {
      const image = make("img", ""), away = make("button", "", "×");
      [image.src, image.alt] = [picture.url, picture.name];
      away.type = "button";
      away.setAttribute("aria-label", `Remove ${picture.name}`);
      away.addEventListener("click", () => {
        this._pictures = this._pictures.filter((other) => other !== picture);
        this._show();
        words.focus();
      });
      return make("li", "", image, away);
    }));
  }

  _droppable() {
    let depth = 0; // a drag enters the page's parts one by one
    const carriesFiles = (event) => [...(event.dataTransfer ? event.dataTransfer.types : [])].includes("Files");
    const show = () => { drop.hidden = depth <= 0; };
    addEventListener("dragenter", (event) => { if (carriesFiles(event)) { depth += 1; show(); } });
    addEventListener("dragleave", (event) => { if (carriesFiles(event)) { depth -= 1; show(); } });
    addEventListener("dragover", (event) => { if (carriesFiles(event)) event.preventDefault(); });
    addEventListener("drop", (event) => {
      if (!carriesFiles(event)) return;
      event.preventDefault();
      depth = 0;
      show();
      this.add([...event.dataTransfer.files]);
    });
  }
}

function fit() {
  words.style.height = "auto";
  words.style.height = `${Math.min(TALLEST, words.scrollHeight)}px`;
}
