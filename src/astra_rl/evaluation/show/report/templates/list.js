// The list of conversations: search, filters, sorting; only the visible rows are drawn.

const ROW_HEIGHT = 58;
const FIELDS = ["phase", "outcome", "kind", "category", "slot", "step"];
const SELECTS = [...FIELDS, "tool", "differs"];
const missingLast = (value, sign) => (value === null ? Infinity : sign * value);
// A map, not an object: its keys come from the address, and an object also has "constructor".
const ORDERS = new Map(Object.entries({
  likely: ["Successes first, most likely on top", (row) => [row.outcome === "success" ? 0 : 1, missingLast(row.nll, 1)]],
  score: ["Highest score", (row) => [missingLast(row.score, -1)]],
  reward: ["Highest reward", (row) => [missingLast(row.reward, -1)]],
  turns: ["Most turns", (row) => [-row.turns]],
  step: ["Training step", (row) => [missingLast(row.step, 1)]],
  played: ["Order of recording", () => []],
}));

const list = { shown: [], chosen: null, state: { q: "", sort: "likely" }, run: 0 };

function compareKeys(a, b) {
  for (let at = 0; at < a.key.length; at++) if (a.key[at] !== b.key[at]) return a.key[at] < b.key[at] ? -1 : 1;
  return a.row.at - b.row.at;
}

function fillSelect(select, name, options) {
  const field = select.closest("label");
  field.hidden = options.length < 2;
  select.replaceChildren(make("option", { value: "" }, "all"), ...options.map(([value, label]) => make("option", { value }, label)));
}

function openList() {
  const values = (name) => [...new Set(store.rows.map((row) => row[name]).filter((value) => value !== null && value !== ""))];
  const numbers = (name) => values(name).sort((a, b) => a - b);
  fillSelect($("filter-phase"), "phase", values("phase").map((value) => [value, value]));
  fillSelect($("filter-outcome"), "outcome", Object.keys(OUTCOMES).filter((name) => values("outcome").includes(name)).map((name) => [name, OUTCOMES[name]]));
  fillSelect($("filter-kind"), "kind", numbers("kind").map((value) => [value, `kind ${value}`]));
  fillSelect($("filter-category"), "category", values("category").sort().map((value) => [value, value]));
  fillSelect($("filter-slot"), "slot", values("slot").sort().map((value) => [value, value]));
  fillSelect($("filter-tool"), "tool", [...new Set(store.rows.flatMap((row) => row.tools ?? []))].sort().map((value) => [value, value]));
  fillSelect($("filter-step"), "step", numbers("step").map((value) => [value, value]));
  fillSelect($("filter-differs"), "differs", [["yes", "outcomes differ"]]);
  $("filter-differs").closest("label").hidden = !store.rows.some((row) => differs(row));
  $("sort").replaceChildren(...[...ORDERS].map(([value, [label]]) => make("option", { value }, label)));
  for (const name of SELECTS) $(`filter-${name}`).addEventListener("change", readFilters);
  $("sort").addEventListener("change", readFilters);
  let waiting;
  $("search").addEventListener("input", () => {
    clearTimeout(waiting);
    waiting = setTimeout(readFilters, 150);
  });
  document.querySelector(".filters").addEventListener("submit", (event) => { event.preventDefault(); readFilters(); });
  $("clear").addEventListener("click", () => go(list.chosen, { sort: list.state.sort }));
  $("list").addEventListener("scroll", drawList, { passive: true });
  $("list").addEventListener("keydown", onListKey);
  new ResizeObserver(drawList).observe($("list"));
}

// The fields set the address; the address (see app.js) sets the list.
function readFilters() {
  const state = { q: $("search").value, sort: $("sort").value, beside: list.state.beside };
  for (const name of SELECTS) state[name] = $(`filter-${name}`).value;
  go(list.chosen, state);
}

async function applyState(state) {
  const run = ++list.run;
  list.state = { q: "", sort: "likely", ...state };
  if (!ORDERS.has(list.state.sort)) list.state.sort = "likely";
  if ($("search").value !== list.state.q) $("search").value = list.state.q;
  $("sort").value = list.state.sort;
  for (const name of SELECTS) $(`filter-${name}`).value = list.state[name] || "";
  const words = list.state.q.trim().toLowerCase();
  let texts = null;
  if (words) {
    texts = await openTexts((done, all) => { if (run === list.run && !store.texts) $("tally").textContent = `Reading ${done} of ${all} ...`; });
    if (run !== list.run) return; // the filters changed meanwhile
  }
  const fits = (row) => FIELDS.every((name) => !list.state[name] || String(row[name]) === list.state[name]) && (!list.state.tool || (row.tools ?? []).includes(list.state.tool)) && (list.state.differs !== "yes" || differs(row, list.state.beside)) && (!texts || texts.get(row.id).includes(words));
  const key = ORDERS.get(list.state.sort)[1];
  list.shown = store.rows.filter(fits).map((row) => ({ row, key: key(row) })).sort(compareKeys).map(({ row }) => row);
  const filtered = words || SELECTS.some((name) => list.state[name]);
  $("tally").textContent = filtered ? `${list.shown.length} of ${count(store.rows.length, "conversation", "conversations")}` : count(store.rows.length, "conversation", "conversations");
  $("clear").hidden = !filtered;
  $("list").querySelector(".runway").style.height = `${list.shown.length * ROW_HEIGHT}px`;
  drawList();
}

function drawList() {
  const box = $("list"), runway = box.querySelector(".runway");
  const first = Math.max(0, Math.floor(box.scrollTop / ROW_HEIGHT) - 5);
  const last = Math.min(list.shown.length, Math.ceil((box.scrollTop + box.clientHeight) / ROW_HEIGHT) + 5);
  runway.replaceChildren(...list.shown.slice(first, last).map((row, offset) => drawRow(row, first + offset)));
  if (list.shown.length === 0) runway.replaceChildren(make("p", { class: "empty" }, store.rows.length ? "No conversation matches the filters." : "No conversation was recorded."));
  const chosen = list.shown.findIndex((row) => row.id === list.chosen);
  if (chosen >= first && chosen < last) box.setAttribute("aria-activedescendant", `row-${chosen}`);
  else box.removeAttribute("aria-activedescendant");
}

function drawRow(row, at) {
  const place = row.step === null ? row.phase : `step ${row.step}`;
  const likelihood = row.nll === null ? null : `${decimal(row.nll)} nats`;
  const facts = [place, row.turns > 1 ? `${row.turns} turns` : null, likelihood].filter(Boolean).join(" · ");
  const element = make("div", { id: `row-${at}`, class: "row", role: "option", "aria-selected": String(row.id === list.chosen), "aria-posinset": at + 1, "aria-setsize": list.shown.length, onclick: () => go(row.id, list.state) },
    make("span", { class: `dot ${row.outcome}`, title: OUTCOMES[row.outcome] }),
    make("span", { class: "row-text said", dir: "auto" }, row.preview || "(empty)"),
    make("span", { class: "row-score" }, decimal(row.score)),
    make("span", { class: "row-facts" }, make("span", { class: "unseen" }, OUTCOMES[row.outcome] + ", "), facts));
  element.style.top = `${at * ROW_HEIGHT}px`;
  return element;
}

function showRow(at) {
  const box = $("list"), top = at * ROW_HEIGHT;
  if (top < box.scrollTop) box.scrollTop = top;
  else if (top + ROW_HEIGHT > box.scrollTop + box.clientHeight) box.scrollTop = top + ROW_HEIGHT - box.clientHeight;
  drawList();
}

// Select the conversation `rows` further down.
function moveBy(rows) {
  const now = list.shown.findIndex((row) => row.id === list.chosen);
  const next = now < 0 ? 0 : Math.min(list.shown.length - 1, Math.max(0, now + rows));
  if (!list.shown[next]) return;
  go(list.shown[next].id, list.state, { replace: true });
  showRow(next);
}

function onListKey(event) {
  const page = Math.max(1, Math.floor($("list").clientHeight / ROW_HEIGHT) - 1);
  const steps = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -Infinity, End: Infinity };
  if (event.key in steps) {
    event.preventDefault();
    moveBy(steps[event.key]);
  } else if (event.key === "Enter" && list.chosen) {
    event.preventDefault();
    $("reader").focus();
  }
}
