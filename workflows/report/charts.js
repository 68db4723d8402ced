"use strict";
// A crosshair with values over each chart: by mouse, by finger, and by the arrow keys. Charts are whole without it.
(() => {
  const charts = JSON.parse(document.getElementById("data").textContent).charts;
  const shown = (value) => {
    const size = Math.abs(value);
    if (size >= 1e4) return `${+(value / 1e3).toPrecision(4)}k`;
    return String(+value.toPrecision(3));
  };

  function follow(figure, chart) {
    const svg = figure.querySelector("svg"), readout = figure.querySelector(".readout");
    const cross = svg.querySelector(".cross");
    const [left, right] = chart.plot, [low, high] = chart.x;
    const width = svg.viewBox.baseVal.width;
    const places = [...new Set(chart.lines.flatMap((line) => line.x))].sort((a, b) => a - b);
    let at = -1;

    function show(i) {
      at = Math.max(0, Math.min(places.length - 1, i));
      const step = places[at], x = left + ((step - low) / (high - low || 1)) * (right - left);
      cross.setAttribute("x1", x);
      cross.setAttribute("x2", x);
      figure.classList.add("read");
      const title = document.createElement("b");
      title.textContent = `step ${step}`;
      const rows = chart.lines.map((line) => {
        const value = line.y[line.x.indexOf(step)];
        if (value === undefined || value === null) return null;
        const row = document.createElement("div"), dot = document.createElement("i"), name = document.createElement("span");
        const number = document.createElement("span");
        dot.className = `swatch c${line.c}`;
        name.textContent = line.name;
        number.className = "n";
        number.textContent = chart.stacked ? `${Math.round(value * 100)} %` : shown(value);
        row.append(dot, name, number);
        return row;
      });
      readout.replaceChildren(title, ...rows.filter(Boolean));
      readout.hidden = false;
      const share = x / width;
      readout.style.left = share < 0.5 ? `calc(${share * 100}% + 10px)` : "auto";
      readout.style.right = share < 0.5 ? "auto" : `calc(${(1 - share) * 100}% + 10px)`;
    }
    function hide() {
      figure.classList.remove("read");
      readout.hidden = true;
      at = -1;
    }
    function point(event) {
      const box = svg.getBoundingClientRect();
      const step = low + (((event.clientX - box.left) / box.width) * width - left) / (right - left) * (high - low);
      let best = 0;
      places.forEach((place, i) => { if (Math.abs(place - step) < Math.abs(places[best] - step)) best = i; });
      show(best);
    }
    svg.addEventListener("pointermove", point);
    svg.addEventListener("pointerdown", point);
    figure.addEventListener("pointerleave", hide);
    figure.addEventListener("blur", hide);
    figure.addEventListener("keydown", (event) => {
      const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (by) { event.preventDefault(); show(at < 0 ? (by > 0 ? 0 : places.length - 1) : at + by); }
      if (event.key === "Escape") hide();
    });
  }

  for (const figure of document.querySelectorAll("[data-chart]")) {
    const chart = charts[figure.dataset.chart];
    if (chart) follow(figure, chart);
  }
})();
