// The address selects the view: #/view, #/conversations/ID, each with ?filter=value&...

const VIEWS = [...document.querySelectorAll(".view")].map((view) => view.dataset.view);
const root = document.documentElement;

function addressOf(id, state) {
  const kept = Object.entries(state).filter(([name, value]) => value && !(name === "sort" && value === "likely"));
  const query = new URLSearchParams(kept).toString();
  return `#/conversations${id ? `/${encodeURIComponent(id)}` : ""}${query ? `?${query}` : ""}`;
}

// Open a conversation, or the list with other filters. `replace` adds no entry to the history.
function go(id, state, { replace = false } = {}) {
  const address = addressOf(id, state);
  if (address === location.hash) return;
  history[replace ? "replaceState" : "pushState"](null, "", address);
  route();
}

async function route() {
  const [path, query] = location.hash.slice(1).split("?");
  const [, name, id] = path.split("/");
  const view = VIEWS.includes(name) ? name : "summary";
  const changed = root.dataset.view !== view;
  root.dataset.view = view;
  for (const link of document.querySelectorAll("[data-link]")) {
    if (link.dataset.link === view) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  if (changed) {
    for (const section of document.querySelectorAll(".view")) section.classList.toggle("current", section.dataset.view === view);
    window.scrollTo(0, 0);
  }
  if (view !== "conversations") return;
  await store.opened;
  const state = Object.fromEntries(new URLSearchParams(query || ""));
  list.chosen = id ? safely(() => decodeURIComponent(id), id) : null;
  root.dataset.reading = list.chosen ? "yes" : "no";
  const asked = JSON.stringify(state);
  if (asked !== list.asked) {
    list.asked = asked;
    await applyState(state);
    const at = list.shown.findIndex((row) => row.id === list.chosen);
    if (at >= 0) showRow(at);
    else $("list").scrollTop = 0;
  }
  drawList();
  await openReader(list.chosen);
  root.dataset.ready = location.hash; // the tests wait for this
}

function safely(work, otherwise) {
  try {
    return work();
  } catch {
    return otherwise;
  }
}

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const typing = event.target.matches("input:not([type=checkbox]):not([type=range]), select, textarea");
  if (event.key === "Escape" && typing) event.target.blur();
  if (typing) return;
  if (event.key === "r") $("reveal").click();
  else if (event.key === "/") {
    event.preventDefault();
    if (root.dataset.view !== "conversations") location.hash = "#/conversations";
    setTimeout(() => $("search").focus());
  } else if (root.dataset.view === "conversations" && (event.key === "j" || event.key === "k")) moveBy(event.key === "j" ? 1 : -1);
}

function switchTheme() {
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
}

root.classList.add("js");
$("theme").addEventListener("click", switchTheme);
$("reveal").addEventListener("change", (event) => announce(event.target.checked ? "Model text is shown" : "Model text is blurred"));
for (const button of document.querySelectorAll("[data-copy]")) button.addEventListener("click", () => copyText(button.parentElement.querySelector("pre").textContent, button));
// Points of a chart link to conversations that the table below the chart lists as well.
for (const point of document.querySelectorAll("svg a")) point.setAttribute("tabindex", "-1");
document.addEventListener("keydown", onKey);
window.addEventListener("hashchange", route);
// The index precedes this script and the texts follow it: conversations wait for both.
const arrived = new Promise((resume) => (document.readyState === "loading" ? document.addEventListener("DOMContentLoaded", resume) : resume()));
store.opened = openStore().then(() => { openList(); openSaving(); openSweeps(); return arrived; });
store.opened.then(() => { root.dataset.opened = "yes"; });
route();
