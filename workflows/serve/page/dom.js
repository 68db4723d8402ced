// Nodes of the page. What others wrote is text here, never markup, and an address is a link only if it is http(s).

export function make(tag, className, ...children) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  node.append(...children.filter((child) => child !== null && child !== undefined && child !== ""));
  return node;
}

export function button(words, className, act) {
  const node = make("button", className, words);
  node.type = "button";
  node.addEventListener("click", act);
  return node;
}

/** The embedded world's addresses lead nowhere: they stay text, as everything that is no address. */
export function link(url, words = url) {
  let address = null;
  try { address = new URL(url); } catch { /* no address */ }
  const real = address && /^https?:$/.test(address.protocol) && !/\.(example|invalid|test)$/.test(address.hostname);
  if (!real) return make("span", "url", words);
  const node = make("a", "url", words);
  node.href = address.href;
  node.rel = "noopener noreferrer nofollow";
  node.target = "_blank";
  return node;
}

/** `1 search`, `2 searches`. */
export const count = (n, one, many = `${one}s`) => `${n.toLocaleString("en")} ${n === 1 ? one : many}`;

export const seconds = (s) => (s < 0.01 ? "under 0.01 s" : s < 10 ? `${s.toFixed(2)} s` : `${s.toFixed(1)} s`);

/** What it says is read out by a screen reader, after what it reads now. */
export function announce(sentence) {
  document.getElementById("status").textContent = sentence;
}

const still = matchMedia("(prefers-reduced-motion: reduce)");

/** Into view, smoothly where motion is welcome. */
export function reveal(node, block = "nearest") {
  node.scrollIntoView({ block, behavior: still.matches ? "instant" : "smooth" });
}
