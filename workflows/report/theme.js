"use strict";
// Light, dark, or as the system has it; runs in the head so that nothing flashes. Storage may be forbidden to a file.
(() => {
  const KEY = "mmsearch-report-theme";
  const NEXT = { auto: "light", light: "dark", dark: "auto" };
  const kept = () => { try { return localStorage.getItem(KEY); } catch { return null; } };
  const keep = (theme) => { try { localStorage.setItem(KEY, theme); } catch { /* it lasts until the page is closed */ } };
  let theme = NEXT[kept()] ? kept() : "auto";
  const show = () => {
    if (theme === "auto") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = theme;
  };
  show();
  addEventListener("DOMContentLoaded", () => {
    const button = document.getElementById("theme");
    const say = () => {
      button.textContent = { auto: "◐", light: "○", dark: "●" }[theme];
      button.title = `colours: ${theme}`;
      button.setAttribute("aria-label", `Colours: ${theme}. Change`);
    };
    button.hidden = false;
    button.addEventListener("click", () => { theme = NEXT[theme]; keep(theme); show(); say(); });
    say();
    let closed = [];
    addEventListener("beforeprint", () => {
      closed = [...document.querySelectorAll("details:not([open])")];
      for (const part of closed) part.open = true;
    });
    addEventListener("afterprint", () => { for (const part of closed) part.open = false; });
  });
})();
