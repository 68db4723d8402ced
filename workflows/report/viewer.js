"use strict";
// The episodes: a list that filters narrow, and one of them in full. All that others wrote is set as text, never as
// markup. What is shown stands in the address behind #, so that it can be shared.
(() => {
  const root = document.getElementById("viewer");
  if (!root) return;
  const { episodes, pictures, runs } = JSON.parse(document.getElementById("data").textContent);
  const SVG = "http://www.w3.org/2000/svg";
  const form = document.getElementById("filters"), list = document.getElementById("list");
  const detail = document.getElementById("detail"), count = form.querySelector(".count");
  const MARK = { right: "✓", wrong: "✗", "gave up": "○", failed: "!" };
  const FILTERS = ["arm", "kind", "outcome", "tool"];
  const NARROW = matchMedia("(max-width: 760px)");

  const make = (tag, className, ...children) => {
    const node = document.createElement(tag);
    if (className) node.className = className;
    node.append(...children.filter((child) => child !== null && child !== undefined && child !== ""));
    return node;
  };
  const armOf = (episode) => (runs > 1 ? `${episode.arm} · ${episode.run}` : episode.arm);
  for (const episode of episodes) {
    const found = episode.turns.flatMap((turn) => [turn.reason, turn.action, turn.text,
      ...(turn.call ? turn.call.evidence.flatMap((item) => [item.title, item.text]) : [])]);
    episode.words = [episode.question, episode.answer, ...episode.answers, episode.question_id, ...episode.tags,
      episode.problem, ...found].filter(Boolean).join("\n").toLowerCase();
  }
  const values = {
    arm: [...new Set(episodes.map(armOf))],
    kind: [...new Set(episodes.map((e) => e.kind))].sort(),
    outcome: Object.keys(MARK).filter((o) => episodes.some((e) => e.outcome === o)),
    tool: ["none", "text", "whole image", "crop"].filter((t) => episodes.some((e) => e.tools.includes(t))),
  };
  const evaluated = episodes.filter((e) => e.step === null);
  const usual = { arm: evaluated.length ? armOf(evaluated[evaluated.length - 1]) : "" };
  let state = {}, shown = [], current = null;

  // --- the address ---------------------------------------------------------------------------------------------
  function fromAddress() {
    const words = location.hash.slice(1);
    if (!words.includes("=")) return { ...usual };
    const told = new URLSearchParams(words), read = {};
    for (const name of FILTERS) if (values[name].includes(told.get(name))) read[name] = told.get(name);
    if (told.get("q")) read.q = told.get("q");
    if (told.get("e")) read.e = told.get("e");
    return read;
  }
  function toAddress() {
    const told = new URLSearchParams();
    for (const name of [...FILTERS, "q", "e"]) if (state[name]) told.set(name, state[name]);
    try { history.replaceState(null, "", `#${told}`); } catch { /* some browsers forbid it to a file */ }
  }

  // --- the list ------------------------------------------------------------------------------------------------
  const passes = (episode) =>
    (!state.arm || armOf(episode) === state.arm) && (!state.kind || episode.kind === state.kind) &&
    (!state.outcome || episode.outcome === state.outcome) && (!state.tool || episode.tools.includes(state.tool)) &&
    (!state.q || state.q.toLowerCase().split(/\s+/).every((word) => episode.words.includes(word)));

  function mark(episode) {
    const node = make("span", `mark ${episode.outcome.replace(" ", "-")}`, MARK[episode.outcome]);
    node.title = episode.outcome;
    return node;
  }
  function entry(episode) {
    const step = episode.step === null ? "" : `step ${episode.step}`;
    const words = [episode.kind.replace(/_/g, " "), step, state.arm ? "" : armOf(episode)].filter(Boolean).join(" · ");
    const node = make("li", "", mark(episode), make("div", "", make("div", "q", episode.question),
      make("div", "muted", words)));
    node.addEventListener("click", () => { select(episode, true); });
    episode.node = node;
    return node;
  }
  function refresh() {
    shown = episodes.filter(passes);
    list.replaceChildren(...shown.map(entry));
    count.textContent = shown.length === episodes.length ? `${shown.length}` : `${shown.length} of ${episodes.length}`;
    const wanted = shown.find((e) => e.key === state.e) || shown.find((e) => current && e.question_id === current.question_id);
    const next = wanted || shown[0] || null;
    if (next) select(next, false);
    else {
      current = null;
      delete state.e;
      toAddress();
      detail.replaceChildren(make("p", "muted", "No episode passes these filters."));
    }
  }
  function select(episode, wish) {
    if (current && current.node) current.node.classList.remove("on");
    current = episode;
    state.e = episode.key;
    if (!shown.includes(episode)) { state.arm = armOf(episode); fill(); refresh(); return; }
    episode.node.classList.add("on");
    const box = episode.node.getBoundingClientRect(), frame = list.getBoundingClientRect();
    if (box.top < frame.top) list.scrollTop += box.top - frame.top;
    if (box.bottom > frame.bottom) list.scrollTop += box.bottom - frame.bottom;
    detail.replaceChildren(...full(episode));
    toAddress();
    if (wish && NARROW.matches) detail.scrollIntoView({ block: "start" });
  }
  function step(by) {
    const at = shown.indexOf(current) + by;
    if (at >= 0 && at < shown.length) select(shown[at], true);
  }
  const others = (episode) => episodes.filter((e) => e.step === null && episode.step === null &&
    e.question_id === episode.question_id && e.question === episode.question);
  function across(by) {
    const same = current ? others(current) : [];
    const at = same.indexOf(current) + by;
    if (at >= 0 && at < same.length) goTo(same[at]);
  }
  function goTo(episode) {
    if (!passes(episode)) {
      if (state.arm) state.arm = armOf(episode);
      if (!passes(episode)) state = { arm: armOf(episode) };
      state.e = episode.key;
      fill();
      refresh();
    } else select(episode, false);
  }

  // --- one episode -----------------------------------------------------------------------------------------------
  function drawn(sha, view, boxes) {
    const picture = pictures[sha];
    if (!picture) return make("div", "nopicture", "picture not in this file");
    const svg = document.createElementNS(SVG, "svg"), [x, y, w, h] = view || [0, 0, picture.width, picture.height];
    svg.setAttribute("viewBox", `${x} ${y} ${w} ${h}`);
    svg.setAttribute("role", "img");
    svg.setAttribute("aria-label", view ? "the part that was searched" : "the picture");
    svg.setAttribute("class", `picture${Math.max(w, h) < 240 ? " small" : ""}`);
    const image = document.createElementNS(SVG, "image");
    image.setAttribute("href", picture.src);
    image.setAttribute("width", picture.width);
    image.setAttribute("height", picture.height);
    svg.append(image);
    for (const [x0, y0, x1, y1] of boxes || []) {
      for (const className of ["boxback", "box"]) {
        const rect = document.createElementNS(SVG, "rect");
        Object.entries({ x: x0, y: y0, width: x1 - x0, height: y1 - y0, class: className })
          .forEach(([name, value]) => rect.setAttribute(name, value));
        svg.append(rect);
      }
    }
    return svg;
  }
  function link(url) {
    let address = null;
    try { address = new URL(url); } catch { /* not an address: shown as the text it is */ }
    const real = address && /^https?:$/.test(address.protocol) && !/\.(example|invalid|test)$/.test(address.hostname);
    if (!real) return make("span", "url", url);
    const node = make("a", "url", url);
    node.href = address.href;
    node.rel = "noopener noreferrer nofollow";
    node.target = "_blank";
    return node;
  }
  function evidence(item) {
    const picture = item.thumbnail && pictures[item.thumbnail] ? drawn(item.thumbnail) : null;
    const node = make("li", item.cited ? "cited" : "", make("span", "number", `[${item.number}]`), picture,
      make("div", "", item.title ? make("b", "", item.title) : null, " ", item.text, " ",
        item.cited ? make("span", "tag", "cited") : null, make("div", "", link(item.url))));
    return node;
  }
  function call(told) {
    const seconds = told.seconds === null ? "" : `${told.seconds < 0.01 ? "<0.01" : told.seconds.toFixed(2)} s`;
    const head = make("div", "muted", [told.outcome.replace(/_/g, " "), told.provider, seconds, told.cached ? "cached" : "",
      told.cost_usd ? `$${told.cost_usd.toFixed(4)}` : ""].filter(Boolean).join(" · "));
    const parts = [];
    if (told.image) {
      const box = told.box, cut = box && box[2] > box[0] && box[3] > box[1];
      const number = told.crop_number ? `, shown as image ${told.crop_number}` : "";
      parts.push(make("div", "pictures", make("figure", "", drawn(told.image, null, cut ? [box] : []),
        make("figcaption", "", cut ? `pixels ${box.join(", ")}` : "whole picture")),
      cut ? make("figure", "", drawn(told.image, [box[0], box[1], box[2] - box[0], box[3] - box[1]]),
        make("figcaption", "", `what was searched${number}`)) : null));
    }
    if (told.evidence.length) parts.push(make("ol", "evidence", ...told.evidence.map(evidence)));
    if (told.message) parts.push(make("p", "problem", told.message));
    if (!told.evidence.length && !told.message) parts.push(make("p", "muted", "nothing came back"));
    return make("div", "call", ...parts, head);
  }
  function turn(told) {
    const ran = told.versions.length ? ` · version ${told.versions.join(", ")}` : "";
    const node = make("li", "turn", make("div", "muted", `turn ${told.n} · ${told.tokens} tokens${ran}`),
      told.reason ? make("p", "reason", told.reason) : null);
    if (told.action) node.append(make("p", "action", told.action));
    if (told.answer) node.append(make("p", "action", `answer: ${told.answer}`,
      told.citations.length ? ` [${told.citations.join("] [")}]` : ""));
    if (told.text) node.append(make("pre", "", told.text));
    if (told.problem) node.append(make("p", "problem", told.problem));
    if (told.call) node.append(call(told.call));
    return node;
  }
  function pairs(rows) {
    return make("dl", "", ...rows.filter((row) => row[1] !== "" && row[1] !== null && row[1] !== undefined)
      .flatMap(([name, value]) => [make("dt", "", name), make("dd", "", String(value))]));
  }
  const yes = (value) => (value === undefined ? "" : value ? "yes" : "no");
  function verdict(e) {
    const reward = e.reward;
    const parts = reward ? `${reward.total}  = accuracy ${reward.accuracy}, format ${reward.format}, ` +
      `search penalty × ${reward.penalty}, ${reward.searches} search${reward.searches === 1 ? "" : "es"}` : "";
    return pairs([
      ["answer", e.answer || `none (${e.ending.replace(/_/g, " ")})`],
      ["right", e.answers.join(" | ")],
      ["F1", e.outcome === "right" ? "" : e.f1],
      ["judged", e.judged === null || e.judged === undefined ? "" : `${e.judged ? "right" : "wrong"} ${e.judge_says}`],
      ["reward", parts],
      ["right first tool", e.right_first.join(" or ")],
      ["answer in what was first found", e.tools.includes("none") ? "" : yes(e.facts.first_hit)],
      ["answer in evidence", e.tools.includes("none") ? "" : yes(e.facts.evidence_hit)],
      ["cited evidence supports it", e.turns.some((t) => t.citations && t.citations.length) ? yes(e.facts.cited_support) : ""],
      ["tokens", e.sampled_tokens === null ? "" : `${e.sampled_tokens} sampled${e.total_tokens ? `, ${e.total_tokens} in all` : ""}`],
      ["seconds", e.seconds],
      ["weights", e.versions.length ? `version ${e.versions.join(", ")}` : ""],
      ["attempts", e.attempts > 1 ? e.attempts : ""],
      ["problem", e.problem],
    ]);
  }
  function chips(episode) {
    const same = others(episode);
    if (same.length < 2) return null;
    return make("div", "chips", ...same.map((other) => {
      const chip = make("button", other === episode ? "on" : "", mark(other), armOf(other));
      chip.type = "button";
      chip.addEventListener("click", () => { goTo(other); });
      return chip;
    }));
  }
  function walk() {
    const buttons = [["‹ previous", -1], ["next ›", 1]].map(([words, by]) => {
      const node = make("button", "", words), at = shown.indexOf(current) + by;
      node.type = "button";
      node.disabled = at < 0 || at >= shown.length;
      node.addEventListener("click", () => { step(by); });
      return node;
    });
    return make("div", "walk", ...buttons);
  }
  function full(e) {
    const words = [e.step === null ? armOf(e) : `${armOf(e)} · step ${e.step}`, e.kind.replace(/_/g, " "),
      e.label ? `search ${e.label === "free" ? "not needed" : e.label === "required" ? "needed" : "unlabelled"}` : "",
      ...e.tags.map((tag) => tag.replace(/_/g, " ")), e.question_id].filter(Boolean).join(" · ");
    const boxes = {};
    for (const t of e.turns) if (t.call && t.call.image && t.call.box) (boxes[t.call.image] ||= []).push(t.call.box);
    const figures = e.images.map((sha) => make("figure", "", drawn(sha, null, boxes[sha])));
    return [
      make("div", "top", make("p", "muted", words), walk()),
      chips(e),
      make("div", "asked", figures.length ? make("div", "pictures", ...figures) : null,
        make("div", "", make("h3", "", mark(e), e.question), verdict(e))),
      e.turns.length ? make("ol", "turns", ...e.turns.map(turn)) : null,
      e.text ? make("pre", "", e.text) : null,
    ].filter(Boolean);
  }

  // --- the form --------------------------------------------------------------------------------------------------
  function fill() {
    for (const name of FILTERS) form.elements[name].value = state[name] || "";
    form.elements.q.value = state.q || "";
  }
  for (const name of FILTERS) {
    const field = form.elements[name];
    const option = (value, words) => { const node = make("option", "", words); node.value = value; return node; };
    field.replaceChildren(option("", "all"), ...values[name].map((v) => option(v, name === "kind" ? v.replace(/_/g, " ") : v)));
    field.closest("label").hidden = values[name].length < 2;
  }
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("input", () => {
    for (const name of [...FILTERS, "q"]) {
      const value = form.elements[name].value.trim();
      if (value) state[name] = value; else delete state[name];
    }
    refresh();
  });
  addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName)) return;
    const act = { j: () => step(1), k: () => step(-1), l: () => across(1), h: () => across(-1) }[event.key];
    if (act) { event.preventDefault(); act(); }
  });
  addEventListener("hashchange", () => {
    if (location.hash.includes("=")) { state = fromAddress(); fill(); refresh(); }
  });
  const wished = location.hash.includes("=");
  root.hidden = false;
  state = fromAddress();
  const section = wished ? null : location.hash;
  fill();
  refresh();
  if (wished) document.getElementById("episodes").scrollIntoView();
  else if (section === "") try { history.replaceState(null, "", location.pathname + location.search); } catch { /* a file */ }
})();
