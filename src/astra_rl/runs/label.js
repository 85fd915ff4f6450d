"use strict";
// Shows one conversation at a time and sends the label of each. Text is only ever put into the page
// as text.
(() => {
  const $ = (id) => document.getElementById(id);
  let rater = "", phase = "", current = null, busy = false;

  function part(role, label, text) {
    const box = document.createElement("div"), head = document.createElement("h3"), said = document.createElement("p");
    box.className = `speech ${role}`;
    head.textContent = label;
    said.className = "shown";
    said.dir = "auto";
    said.textContent = text || "(empty)";
    box.append(head, said);
    return box;
  }

  async function ask(label) {
    if (busy) return;
    busy = true;
    $("problem").textContent = "";
    try {
      const reply = await fetch("label", {
        method: "POST", cache: "no-store", credentials: "omit",
        headers: { "Content-Type": "application/json" },
        body: JSON.stringify({ rater, phase, ...label }),
      });
      const found = await reply.json();
      if (!reply.ok) throw new Error(found.error);
      show(found);
    } catch (error) {
      $("problem").textContent = `Not saved: ${error.message}`;
    } finally {
      busy = false;
    }
  }

  function show(found) {
    $("begin").hidden = true;
    current = found.result ? null : found;
    $("work").hidden = !current;
    $("done").hidden = Boolean(current);
    if (!current) {
      $("result").replaceChildren(...found.result.map((line) => {
        const item = document.createElement("li");
        item.textContent = line;
        return item;
      }));
      $("done").focus();
      return;
    }
    $("progress").textContent = `Conversation ${found.number} of ${found.count}`;
    $("conversation").replaceChildren(
      ...found.opening.map((text) => part("opening", "Opening", text)),
      ...found.facts.map(([name, fact]) => part("opening", name, fact)),
      ...found.turns.flatMap(([attack, response]) => [part("attacker", "Attacker", attack), part("target", "Target", response)]));
    scrollTo(0, 0);
    $("progress").focus();
  }

  const answer = (failed) => current && ask({ key: current.key, failed });
  $("begin").addEventListener("submit", (event) => {
    event.preventDefault();
    rater = $("rater").value;
    phase = $("phase").value;
    ask({});
  });
  $("yes").addEventListener("click", () => answer(true));
  $("no").addEventListener("click", () => answer(false));
  $("again").addEventListener("click", () => ask({}));
  addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.repeat || event.target.matches("input, select")) return;
    if (event.key === "y") answer(true);
    else if (event.key === "n") answer(false);
  });
})();
