"use strict";
(() => {
  const byId = (id) => document.getElementById(id);
  const settings = JSON.parse(byId("settings").textContent);
  const SHOWN_AT_ONCE = 50, RIGHT = "0";
  const rows = [], contexts = new Map(), lowered = new Map();
  const chips = [...document.querySelectorAll(".chip[data-outcome]")];
  const state = {
    text: "", outcome: chips.find((chip) => chip.getAttribute("aria-pressed") === "true").dataset.outcome,
    slice: null, order: "cost", change: "", shown: SHOWN_AT_ONCE, selected: [],
  };

  // ---- the rows: the first block is plain JSON, the others are compressed ----
  const add = (block) => {
    for (const [index, text] of block.contexts) contexts.set(index, text);
    for (const values of block.rows) {
      const row = {};
      settings.fields.forEach((name, i) => { row[name] = values[i]; });
      row.text = [row.id, row.title, row.question, row.answer, row.golds.join("\n"), row.otherAnswer ?? ""]
        .join("\n").toLowerCase();
      row.number = rows.length;
      rows.push(row);
    }
  };
  const unpack = async (base64) => {
    const text = atob(base64), bytes = new Uint8Array(text.length);
    for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return JSON.parse(await new Response(stream).text());
  };
  let problem = "";
  const load = async () => {
    try {
      for (const element of document.querySelectorAll("script.block")) {
        add(await unpack(element.textContent));
        element.remove();
        if (performance.now() > nextUpdate) { update(true); nextUpdate = performance.now() + 400; }
      }
    } catch (error) {
      problem = `The other questions cannot be shown: this browser cannot unpack them (${error.message}). `;
    }
    document.documentElement.dataset.loaded = "true";
    update(true);
  };
  let nextUpdate = 0;

  // ---- which rows are shown ----
  const contextHas = (index, text) => {
    if (!lowered.has(index)) lowered.set(index, contexts.get(index).toLowerCase());
    return lowered.get(index).includes(text);
  };
  const cost = (row) => (row.confidence ?? 1) * (1 - row.f1);
  const orders = {
    cost: (a, b) => cost(b) - cost(a),
    low: (a, b) => (a.confidence ?? 0) - (b.confidence ?? 0),
    high: (a, b) => (b.confidence ?? 0) - (a.confidence ?? 0),
    f1: (a, b) => a.f1 - b.f1 || (b.confidence ?? 0) - (a.confidence ?? 0),
  };
  const select = () => {
    const found = new Map();
    const inContext = (row) => {
      if (!found.has(row.context)) found.set(row.context, contextHas(row.context, state.text));
      return found.get(row.context);
    };
    const { text, outcome, slice, change } = state;
    return rows.filter((row) => {
      const kind = String(row.outcome);
      if (outcome === "mistakes" ? kind === RIGHT : outcome !== "all" && kind !== outcome) return false;
      if (slice && row.groups[slice.slice] !== slice.group) return false;
      if (change !== "" && String(row.change) !== change) return false;
      return !text || row.text.includes(text) || inContext(row);
    }).sort((a, b) => orders[state.order](a, b) || a.number - b.number);
  };

  // ---- elements; texts enter the page through textContent only ----
  const element = (tag, kind, text) => {
    const made = document.createElement(tag);
    if (kind) made.className = kind;
    if (text !== undefined) made.textContent = text;
    return made;
  };
  const dataText = (tag, kind, text, empty) => {
    if (!text.trim()) return element(tag, "nothing", empty);
    const made = element(tag, kind, text);
    made.dir = "auto";
    if (settings.language) made.lang = settings.language;
    return made;
  };
  const percent = (value) => `${(100 * value).toFixed(value < 0.1 ? 1 : 0)}%`;
  const count = (value) => value.toLocaleString("en");
  const plural = (value, noun) => `${count(value)} ${noun}${value === 1 ? "" : "s"}`;

  const pairs = (row) => {
    const list = element("dl", "pair");
    const line = (name, texts, empty) => {
      list.append(element("dt", "", name));
      const value = element("dd");
      if (!texts.length) value.append(element("span", "nothing", empty));
      texts.forEach((text, i) => value.append(i ? " · " : "", dataText("bdi", "", text, "no answer")));
      list.append(value);
    };
    line("answer", [row.answer], "");
    if (settings.isLabelled && row.exact !== 1) line("gold", row.golds, "no answer");
    if (row.otherAnswer !== null && row.otherAnswer !== row.answer) line("other", [row.otherAnswer], "");
    return list;
  };

  // Cuts a context where a mark begins or ends, so that overlapping marks are shown, too.
  const marked = (row) => {
    const text = contexts.get(row.context), box = dataText("div", "context", text, "no context");
    if (!text.trim()) return box;
    box.tabIndex = 0;
    const answer = row.answerPlace ? [row.answerPlace] : [];
    const cuts = [...new Set([0, text.length, ...row.goldPlaces.flat(), ...answer.flat()])].sort((a, b) => a - b);
    box.textContent = "";
    const covers = (places, start, end) => places.some((place) => place[0] <= start && end <= place[1]);
    cuts.slice(0, -1).forEach((start, i) => {
      const end = cuts[i + 1], part = text.slice(start, end);
      const isGold = covers(row.goldPlaces, start, end), isAnswer = covers(answer, start, end);
      if (!isGold && !isAnswer) box.append(part);
      else box.append(element("mark", isGold && isAnswer ? "both" : isGold ? "gold" : "answer", part));
    });
    return box;
  };
  const marks = (row) => {
    const line = element("div", "marks");
    if (row.answerPlace) line.append(element("mark", "answer", "the model's answer"));
    if (row.goldPlaces.length) line.append(element("mark", "gold", "gold"));
    const [start, end] = row.answerPlace ?? [0, 0];
    if (row.goldPlaces.some((gold) => gold[0] < end && start < gold[1])) line.append(element("mark", "both", "both"));
    if (row.occurrences > 1) {
      line.append(element("span", "", `The answer's text occurs ${row.occurrences} times here; one place is marked.`));
    }
    if (row.occurrences === 0 && row.answer.trim()) {
      line.append(element("span", "", "The answer's text is not in this context."));
    }
    if (row.golds.length && !row.goldPlaces.length) {
      line.append(element("span", "", "The gold answer is not in the context at its place."));
    }
    return line;
  };
  const nBest = (row) => {
    const table = element("table", "nbest"), head = element("tr"), body = element("tbody");
    const names = ["", "n-best answers", "probability"];
    names.forEach((name) => { const cell = element("th", "", name); cell.scope = "col"; head.append(cell); });
    const top = element("thead");
    top.append(head);
    row.nBest.forEach(([text, probability], i) => {
      const line = element("tr"), number = element("th", "", String(i + 1)), cell = element("td");
      number.scope = "row";
      cell.append(dataText("bdi", "", text, "no answer"));
      line.append(number, cell, element("td", "", percent(probability)));
      body.append(line);
    });
    table.append(top, body);
    return table;
  };
  const facts = (row) => {
    const line = element("p", "facts"), parts = [];
    if (settings.isLabelled) parts.push(settings.outcomes[row.outcome], `F1 ${(100 * row.f1).toFixed(1)}`);
    if (row.change !== null && settings.changes[row.change]) parts.push(settings.changes[row.change]);
    if (row.windows !== null) parts.push(plural(row.windows, "window"));
    line.append(parts.join(" · "), parts.length ? " · " : "");
    if (row.title) line.append(dataText("bdi", "", row.title, ""), " · ");
    line.append(dataText("bdi", "", row.id, "no id"));
    return line;
  };
  const item = (row) => {
    const box = element("details", `q outcome-${row.outcome}`), summary = element("summary");
    summary.append(dataText("span", "question", row.question, "no question"));
    summary.append(element("span", "sure", row.confidence === null ? "" : percent(row.confidence)));
    summary.lastChild.title = "confidence";
    summary.append(pairs(row));
    box.append(summary);
    box.addEventListener("toggle", () => {
      if (!box.open || box.children.length > 1) return;
      const detail = element("div", "detail");
      detail.append(facts(row), marked(row), marks(row));
      if (row.nBest.length) detail.append(nBest(row));
      box.append(detail);
    });
    return box;
  };

  // ---- the list ----
  const status = () => {
    const found = plural(state.selected.length, "question"), loaded = rows.length, listed = settings.count;
    let text = problem + found;
    if (state.selected.length !== loaded) text += ` of ${count(loaded)}`;
    if (loaded < listed && !problem) text += `; reading the other ${count(listed - loaded)}`;
    if (listed < settings.total) text += ` (this page lists ${count(listed)} of ${count(settings.total)})`;
    byId("status").textContent = `${text}.`;
  };
  const draw = () => {
    const list = byId("list"), open = new Set([...list.querySelectorAll("details[open]")].map((box) => box.row));
    list.textContent = "";
    state.selected.slice(0, state.shown).forEach((row) => {
      const box = item(row);
      box.row = row;
      box.open = open.has(row);
      list.append(box);
    });
    byId("more").hidden = state.selected.length <= state.shown;
  };
  // More rows that change nothing in what is shown leave the list, and what is open in it, alone.
  const update = (isLoading) => {
    const before = state.selected.slice(0, state.shown);
    state.selected = select();
    status();
    const now = state.selected.slice(0, state.shown);
    const isSame = before.length === now.length && before.every((row, i) => row === now[i]);
    if (!isLoading || !isSame) draw();
    byId("more").hidden = state.selected.length <= state.shown;
  };
  const change = (values) => {
    Object.assign(state, { shown: SHOWN_AT_ONCE }, values);
    chips.forEach((chip) => chip.setAttribute("aria-pressed", String(chip.dataset.outcome === state.outcome)));
    const chip = byId("slice");
    chip.hidden = !state.slice;
    if (state.slice) {
      const { name, labels } = settings.slices[state.slice.slice];
      chip.textContent = `${name}: ${labels[state.slice.group]} ✕`;
      chip.setAttribute("aria-label", `Remove the filter ${name}: ${labels[state.slice.group]}`);
    }
    if (byId("change")) byId("change").value = state.change;
    byId("order").value = state.order;
    update(false);
  };
  const go = (values) => {
    change(values);
    byId("questions").scrollIntoView();
    byId("search").focus({ preventScroll: true });
  };

  let timer = 0;
  byId("search").addEventListener("input", (event) => {
    clearTimeout(timer);
    timer = setTimeout(() => change({ text: event.target.value.trim().toLowerCase() }), 120);
  });
  byId("order").addEventListener("change", (event) => change({ order: event.target.value }));
  byId("change")?.addEventListener("change", (event) => change({ change: event.target.value }));
  byId("slice").addEventListener("click", () => change({ slice: null }));
  byId("more").addEventListener("click", () => { state.shown += SHOWN_AT_ONCE; draw(); });
  chips.forEach((chip) => chip.addEventListener("click", () => change({ outcome: chip.dataset.outcome })));
  document.querySelectorAll(".legend [data-outcome]").forEach((button) => {
    button.addEventListener("click", () => go({ outcome: button.dataset.outcome }));
  });
  document.querySelectorAll("[data-change]").forEach((button) => {
    button.addEventListener("click", () => go({ change: button.dataset.change, outcome: "all" }));
  });
  document.querySelectorAll("[data-slice]").forEach((button) => {
    const slice = { slice: Number(button.dataset.slice), group: Number(button.dataset.group) };
    button.addEventListener("click", () => go({ slice, outcome: "all" }));
  });

  add(JSON.parse(byId("first").textContent));
  if (!settings.isLabelled || rows.every((row) => row.confidence === null)) {
    state.order = settings.isLabelled ? "f1" : "low";
    byId("order").value = state.order;
  }
  byId("order").value = state.order;
  update(false);
  const firstBox = byId("list").querySelector("details");
  if (firstBox) firstBox.open = true;
  setTimeout(load, 0);
})();
