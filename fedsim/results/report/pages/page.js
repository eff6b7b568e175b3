"use strict";
// Draws the charts of a page, and makes its tables sortable. Names come from users: they are only ever set as text.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const root = document.documentElement;
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const make = (tag, properties = {}, ...children) => {
    const node = document.createElement(tag);
    for (const [key, value] of Object.entries(properties)) {
      if (key in node) node[key] = value; else node.setAttribute(key, value);
    }
    node.append(...children);
    return node;
  };

  // --- Theme: the system's, unless the reader has chosen the other one.
  const remembered = (key, value) => {
    try { return value === undefined ? localStorage.getItem(key) : localStorage.setItem(key, value); } catch { return null; }
  };
  const theme = () => root.dataset.theme || (dark.matches ? "dark" : "light");
  const toggle = document.getElementById("theme");
  const nameToggle = () => { toggle.textContent = theme() === "dark" ? "Light" : "Dark"; };
  const stored = remembered("fedsim-theme");
  if (stored === "light" || stored === "dark") root.dataset.theme = stored;
  toggle.hidden = false;
  nameToggle();
  toggle.addEventListener("click", () => {
    root.dataset.theme = theme() === "dark" ? "light" : "dark";
    remembered("fedsim-theme", root.dataset.theme);
    nameToggle();
  });
  dark.addEventListener("change", nameToggle);

  // --- Charts.
  const datasets = new Map(Object.entries(data.datasets).map(([key, table]) => [key, rowsOf(table)]));
  function rowsOf({ names, values }) {
    const columns = values.map((column) => Array.isArray(column) ? column : column.places.map((place) => column.texts[place]));
    const count = columns.length ? columns[0].length : 0;
    return Array.from({ length: count }, (_, row) => Object.fromEntries(names.map((name, at) => [name, columns[at][row]])));
  }

  // Calls a function on each view of a specification, from the outside inwards.
  function eachView(spec, call) {
    call(spec);
    for (const key of ["layer", "concat", "hconcat", "vconcat"]) (spec[key] || []).forEach((part) => eachView(part, call));
    if (spec.spec) eachView(spec.spec, call);
  }

  function merge(into, changes) {
    for (const [key, value] of Object.entries(changes)) {
      const both = value && typeof value === "object" && !Array.isArray(value) && into[key] && typeof into[key] === "object";
      if (both) merge(into[key], value); else into[key] = value;
    }
  }

  // Panels side by side get equal parts of the width, and fewer of them where it is narrow.
  const AXIS = 62, GAP = 20, NARROWEST = 240;
  function fit(spec, width) {
    if (spec.vconcat) {
      spec.vconcat.forEach((part) => fit(part, width));
    } else if (spec.hconcat || spec.concat) {
      const parts = spec.hconcat || spec.concat;
      const columns = Math.max(1, Math.min(parts.length, spec.columns || parts.length, Math.floor(width / (NARROWEST + AXIS))));
      delete spec.hconcat;
      Object.assign(spec, { concat: parts, columns });
      parts.forEach((part) => fit(part, (width - GAP * (columns - 1)) / columns));
    } else if (spec.spec) {
      const facet = spec.facet || {};
      const most = facet.column ? 0 : spec.columns || spec.usermeta?.panels || 4;
      if (most) spec.columns = Math.max(1, Math.min(most, Math.floor((width - AXIS) / NARROWEST)));
      const columns = spec.columns || spec.usermeta?.panels || 1;
      fit(spec.spec, AXIS + (width - AXIS - GAP * (columns - 1)) / columns);
    } else {
      spec.width = Math.max(40, Math.floor(width - AXIS));
    }
  }

  function specification(chart, width) {
    const spec = structuredClone(data.charts[chart.name]);
    for (const choice of spec.usermeta?.choices || []) {
      const chosen = choice.options[chart.chosen.get(choice.param) || 0];
      spec.params.find((param) => param.name === choice.param).value = chosen.value;
      eachView(spec, (view) => {
        for (const [channel, changes] of Object.entries(chosen.encoding || {})) {
          if (view.encoding?.[channel]?.field) merge(view.encoding[channel], changes);
        }
      });
    }
    const isSingle = !(spec.vconcat || spec.hconcat || spec.concat || spec.spec);
    if (isSingle) Object.assign(spec, { width: "container", autosize: { type: "fit-x", contains: "padding" } });
    else fit(spec, width);
    spec.description = chart.box.closest("section")?.querySelector("h2")?.textContent || chart.name;
    spec.datasets = Object.fromEntries([...namesOfData(spec)].map((name) => [name, datasets.get(name)]));
    return spec;
  }

  function namesOfData(spec) {
    const found = new Set();
    JSON.stringify(spec, (key, value) => {
      if (value && typeof value === "object" && typeof value.name === "string" && datasets.has(value.name)) found.add(value.name);
      return value;
    });
    return found;
  }

  function configuration(width) {
    const config = structuredClone(data.config);
    // Entries of a legend have about the same width, so that they stand in columns.
    config.legend.columns = Math.max(1, Math.floor(width / (config.legend.labelLimit + 40)));
    return config;
  }

  async function draw(chart) {
    const width = chart.box.clientWidth;
    if (!width) return;
    const turn = ++chart.turn;
    chart.view?.finalize();
    for (let attempt = 0, room = width; attempt < 3; attempt++) {
      const options = {
        mode: "vega-lite", logLevel: 1, renderer: "svg", actions: false, ast: true, defaultStyle: false, config: configuration(width),
        tooltip: { disableDefaultStyle: true }, downloadFileName: chart.name,
      };
      const drawn = await vegaEmbed(chart.box, specification(chart, room), options);
      if (turn !== chart.turn) return drawn.finalize();
      chart.view = drawn;
      const over = (chart.box.querySelector("svg")?.getBoundingClientRect().width || 0) - width;
      if (over <= 0.5) break;
      drawn.finalize();
      room -= over + 1;
    }
    chart.box.dataset.width = width;
    // A group of no marks is nothing that a screen reader could name.
    chart.box.querySelectorAll('g[role="graphics-symbol"]:empty').forEach((group) => group.removeAttribute("role"));
    chart.box.querySelectorAll(".vega-bind input:not([type=radio]), .vega-bind select").forEach((input) => {
      input.ariaLabel = input.closest(".vega-bind").querySelector(".vega-bind-name")?.textContent || chart.name;
    });
  }

  const charts = [...document.querySelectorAll(".chart")].map((box) => ({ box, name: box.dataset.chart, chosen: new Map(), turn: 0 }));
  for (const chart of charts) {
    const choices = data.charts[chart.name].usermeta?.choices || [];
    if (choices.length) chart.box.before(make("div", { className: "controls" }, ...choices.map((choice) => control(chart, choice))));
  }

  function control(chart, choice) {
    const select = (place) => { chart.chosen.set(choice.param, place); draw(chart); };
    if (choice.options.length > 6) {
      const options = choice.options.map((option, place) => make("option", { value: place, textContent: option.label }));
      const list = make("select", { onchange: () => select(Number(list.value)) }, ...options);
      return make("label", {}, make("span", { className: "muted", textContent: choice.label }), list);
    }
    const group = `${chart.name}-${choice.param}`;
    const radios = choice.options.map((option, place) => make("label", {},
      make("input", { type: "radio", name: group, checked: !place, onchange: () => select(place) }), option.label));
    return make("fieldset", {}, make("legend", { textContent: choice.label }), ...radios);
  }

  let waiting;
  async function drawAll() {
    const mine = waiting = {};
    for (const chart of charts) {
      if (mine !== waiting) return;
      try { await draw(chart); } catch (error) { console.error(`${chart.name}: ${error.message}`); }
      await new Promise((next) => setTimeout(next));
    }
    if (mine === waiting) root.dataset.drawn = String(charts.length);
  }
  let resized;
  addEventListener("resize", () => {
    clearTimeout(resized);
    resized = setTimeout(() => {
      if (charts.some((chart) => Number(chart.box.dataset.width) !== chart.box.clientWidth)) drawAll();
    }, 150);
  });

  // On paper charts are drawn for its narrower side, so that letters can be read, and scaled to its width.
  const PAPER = 680;
  addEventListener("beforeprint", () => {
    for (const { view, box } of charts) {
      if (!view || !box.clientWidth) continue;
      const share = Math.min(1, PAPER / box.clientWidth);
      const widths = view.view.getState({ signals: (name) => /(^|_|child)width$/i.test(name), data: () => false }).signals;
      for (const [name, width] of Object.entries(widths)) if (width > 0) view.view.signal(name, width * share);
      view.view.resize().run();
    }
  });
  addEventListener("afterprint", drawAll);

  // --- Tables: sorted by a click on a heading, filtered by text.
  function valueOf(cell) {
    const text = cell.dataset.value ?? cell.textContent.trim();
    const number = text === "" || text === "-" ? NaN : Number(text.replace(/^([+-]?[\d.,]+).*$/, "$1").replaceAll(",", ""));
    return { number, text };
  }
  function order(one, other, down) {
    const [a, b] = [valueOf(one), valueOf(other)];
    if (Number.isNaN(a.number) !== Number.isNaN(b.number)) return Number.isNaN(a.number) ? 1 : -1;
    const sign = Number.isNaN(a.number) ? a.text.localeCompare(b.text, undefined, { numeric: true }) : a.number - b.number;
    return down ? -sign : sign;
  }
  function sortBy(table, heading) {
    const down = heading.ariaSort === "ascending" || (heading.ariaSort !== "descending" && heading.classList.contains("number"));
    for (const each of table.tHead.rows[0].cells) each.removeAttribute("aria-sort");
    heading.setAttribute("aria-sort", down ? "descending" : "ascending");
    const body = table.tBodies[0];
    body.append(...[...body.rows].sort((a, b) => order(a.cells[heading.cellIndex], b.cells[heading.cellIndex], down)));
  }
  function sortable(table) {
    for (const heading of table.tHead.rows[0].cells) {
      const name = heading.querySelector(".name");
      const button = make("button", { type: "button", className: "sort" });
      button.append(...name.childNodes);
      button.addEventListener("click", () => sortBy(table, heading));
      name.append(button);
    }
  }
  function filter(table, text) {
    const words = text.toLocaleLowerCase().split(/\s+/).filter(Boolean);
    for (const row of table.tBodies[0].rows) {
      const own = row.textContent.toLocaleLowerCase();
      row.classList.toggle("hidden", !words.every((word) => own.includes(word)));
    }
  }
  for (const table of document.querySelectorAll("table.sortable")) {
    sortable(table);
    if (table.tBodies[0].rows.length < 5) continue;
    const input = make("input", { type: "search", placeholder: "filter rows", ariaLabel: `Filter the rows of ${table.ariaLabel}` });
    input.addEventListener("input", () => filter(table, input.value));
    table.parentElement.before(make("div", { className: "controls" }, input));
  }
  // --- The pivot: a method in each row, the values of one setting in the columns.
  function pivotTable(pivot, state) {
    const [place, measure] = [state.setting, state.measure];
    const columns = [...new Set(pivot.lines.map(([, values]) => values[place]))];
    const lines = new Map();
    for (const [method, values, cells] of pivot.lines) {
      const others = pivot.settings.map((name, at) => [name, values[at]]).filter((_, at) => at !== place);
      const name = [method, ...others.map(([key, value]) => `${key.split(".").pop()} ${value}`)].join(", ");
      if (!lines.has(name)) lines.set(name, new Map());
      lines.get(name).set(values[place], cells[measure]);
    }
    const heading = (text, number, hint) => make("th", { scope: "col", className: number ? "number" : "" }, make("span", { className: "name", textContent: text, title: hint || "" }));
    const hasMarks = pivot.lines.some(([, , cells]) => cells[measure][2]);
    const setting = pivot.settings[place].split(".").pop();
    const head = make("tr", {}, heading("method"), ...columns.map((value) => heading(`${setting} ${value}`, true)));
    if (hasMarks) head.append(heading("win / tie / loss", true, "In how many settings the method is the best, not distinguishable from the best, or distinguishably worse."));
    const body = make("tbody");
    for (const [name, cells] of lines) {
      const row = make("tr", {}, make("th", { scope: "row", textContent: name }));
      const count = { best: 0, tied: 0, worse: 0 };
      for (const value of columns) {
        const [text, number, mark] = cells.get(value) || ["-", null, ""];
        if (mark in count) count[mark]++;
        row.append(make("td", { className: `number ${mark}`, "data-value": number ?? "", textContent: text }));
      }
      if (hasMarks) row.append(make("td", { className: "number", "data-value": count.best + count.tied / 1000, textContent: `${count.best} / ${count.tied} / ${count.worse}` }));
      body.append(row);
    }
    return make("table", { ariaLabel: `${pivot.measures[measure].heading} by ${setting}` }, make("thead", {}, head), body);
  }
  function showPivot(pivot) {
    const [section, state] = [document.getElementById("pivot"), { measure: 0, setting: 0 }];
    const [controls, box] = [section.querySelector(".controls"), section.querySelector(".wide")];
    const hint = make("span", { className: "muted" });
    const search = make("input", { type: "search", placeholder: "filter methods", ariaLabel: "Filter the methods" });
    const show = () => {
      const table = pivotTable(pivot, state);
      sortable(table);
      box.replaceChildren(table);
      hint.textContent = pivot.measures[state.measure].hint;
      filter(table, search.value);
    };
    const list = (label, names, key) => {
      const node = make("select", {}, ...names.map((name, place) => make("option", { value: place, textContent: name })));
      node.addEventListener("change", () => { state[key] = Number(node.value); show(); });
      return make("label", {}, make("span", { className: "muted", textContent: label }), node);
    };
    controls.append(list("measure", pivot.measures.map((measure) => measure.heading), "measure"));
    if (pivot.settings.length > 1) controls.append(list("columns", pivot.settings, "setting"));
    controls.append(search, hint);
    search.addEventListener("input", () => filter(box.querySelector("table"), search.value));
    section.hidden = false;
    show();
  }
  if (data.pivot) showPivot(data.pivot);

  // --- Copying, also where the browser lets no page write to the clipboard.
  async function copy(text) {
    try { await navigator.clipboard.writeText(text); return true; } catch { /* the old way */ }
    const area = make("textarea", { value: text, readOnly: true });
    document.body.append(area);
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    return done;
  }
  for (const controls of document.querySelectorAll(".copies")) {
    controls.hidden = false;
    const status = controls.querySelector(".status");
    for (const button of controls.querySelectorAll("button")) {
      button.addEventListener("click", async () => {
        const text = "copyAbove" in button.dataset ? controls.previousElementSibling.textContent : data.texts[button.dataset.copy];
        status.textContent = await copy(text) ? "copied" : "the browser does not allow it";
        setTimeout(() => { status.textContent = ""; }, 2500);
      });
    }
  }

  // A hint opens below its button.
  for (const hint of document.querySelectorAll("[popover]")) {
    hint.addEventListener("toggle", (event) => {
      const button = document.querySelector(`[popovertarget="${CSS.escape(hint.id)}"]`);
      if (event.newState !== "open" || !button) return;
      const place = button.getBoundingClientRect();
      const left = Math.max(8, Math.min(place.left, innerWidth - hint.offsetWidth - 8));
      Object.assign(hint.style, { margin: 0, inset: "auto", left: `${left}px`, top: `${Math.min(place.bottom + 6, innerHeight - hint.offsetHeight - 8)}px` });
    });
  }

  drawAll();
})();
