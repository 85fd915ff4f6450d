// One conversation, turn by turn.

async function openReader(id) {
  const row = store.byId.get(id);
  const reader = $("reader");
  if (!row) {
    reader.replaceChildren(make("p", { class: "empty" }, id ? "This page has no such conversation." : "Select a conversation."));
    return;
  }
  const episode = await openEpisode(row.episode);
  if (list.chosen !== id) return; // another one was selected meanwhile
  const path = pathTo(episode, row.leaf);
  const beside = partnersOf(row).find((each) => each.phase === list.state.beside);
  const other = beside && (await openEpisode(beside.episode));
  if (list.chosen !== id) return;
  reader.replaceChildren(
    readerHead(row, episode),
    episode.nodes.length > path.length ? treeOf(episode, path) : "",
    openingOf(episode),
    ...(beside
      ? [make("div", { class: "pair" }, sideOf(row, episode), sideOf(beside, other))]
      : turnsOf(row, episode)),
    detailsOf(row, episode),
  );
  reader.scrollTop = 0;
}

function verdictOf(row) {
  return { success: `Success in turn ${row.first}`, failure: "No success", refused: "No success: refused every time", blocked: "No success: blocked by a filter", no_attack: "No success: the output had no attack", error: "Error", unscored: "Unscored" }[row.outcome];
}

function turnsOf(row, episode) {
  const path = pathTo(episode, row.leaf);
  if (path.length === 0) return [make("p", { class: "empty" }, "This conversation has no turns.")];
  return path.map((node, at) => turnOf(episode, episode.nodes[node], at + 1));
}

// One of two conversations side by side.
function sideOf(row, episode) {
  return make("section", { class: "side", "aria-label": row.phase },
    make("h3", {}, make("span", { class: `dot ${row.outcome}` }), ` ${row.phase}: `, make("a", { href: addressOf(row.id, list.state) }, verdictOf(row))),
    ...turnsOf(row, episode));
}

// Buttons that show the conversation of another evaluation with the same opening beside this one.
function besides(row) {
  return partnersOf(row).map((each) => {
    const shown = list.state.beside === each.phase;
    return make("button", { type: "button", class: "quiet", "aria-pressed": String(shown), onclick: () => go(row.id, { ...list.state, beside: shown ? "" : each.phase }) },
      make("span", { class: `dot ${each.outcome}`, title: OUTCOMES[each.outcome] }), ` Beside: ${each.phase}`);
  });
}

function readerHead(row, episode) {
  const leaf = episode.leaves[row.leaf];
  const at = list.shown.indexOf(row);
  const replay = store.replay.get(row.phase);
  const text = () => plainText(row, episode);
  return make("header", { class: "reader-head" },
    make("div", { class: "reader-title" },
      make("h2", {}, make("span", { class: `dot ${row.outcome}` }), verdictOf(row)),
      make("p", { class: "measure" }, [row.step === null ? row.phase : `${row.phase}, step ${row.step}`, row.kind ? `kind ${row.kind}` : null, row.category || null, `judge ${episode.judge}, threshold ${episode.threshold}`].filter(Boolean).join(" · "))),
    make("div", { class: "reader-tools" },
      make("button", { type: "button", class: "quiet", disabled: at <= 0, "aria-label": "Previous conversation", onclick: () => moveBy(-1) }, "↑"),
      make("button", { type: "button", class: "quiet", disabled: at < 0 || at >= list.shown.length - 1, "aria-label": "Next conversation", onclick: () => moveBy(1) }, "↓"),
      copyButton("Copy conversation", text),
      replay && row.turns ? copyButton("Copy replay command", () => `${replay} ${row.id}`) : null,
      copyButton("Copy link", () => location.href.split("#")[0] + `#/conversations/${row.id}`),
      ...besides(row)),
    leaf.error ? make("p", { class: "banner grave" }, make("b", {}, "Error. "), said(leaf.error, "span")) : null);
}

function openingOf(episode) {
  const parts = [["System message of the target", episode.system], ["Brief of the attacker", episode.brief]].filter(([, text]) => text);
  const facts = Object.entries(episode.facts || {});
  const opening = make("div", { class: "opening" });
  if (episode.prompt) opening.append(speech("opening", "Opening", "h3", episode.prompt));
  (episode.said || []).forEach((text, at) => opening.append(speech(at % 2 ? "target" : "attacker", at % 2 ? "Target, in the opening" : "Attacker, in the opening", "h3", text)));
  if (parts.length || facts.length) {
    opening.append(make("details", { class: "fold" }, make("summary", {}, "System message, brief and facts"),
      ...parts.flatMap(([label, text]) => [make("h3", {}, label), said(text)]),
      facts.length ? make("h3", {}, "Facts for the moderator and judge only") : null,
      facts.length ? tableOf(["Fact", "Value"], facts.map(([name, value]) => [name, said(value, "span")])) : null));
  }
  return opening;
}

function speech(role, label, heading, text, ...more) {
  return make("div", { class: `speech ${role}` },
    make("div", { class: "speech-head" }, make(heading, {}, label), ...more, copyButton("Copy", () => text)),
    text === "" || text === undefined ? make("p", { class: "aside" }, "(empty)") : said(text));
}

const folded = (label, text) => text ? make("details", { class: "fold" }, make("summary", {}, label), said(text)) : null;

function scoresOf(episode, turn) {
  const reasons = new Map(Object.entries(turn.unscored || {}));
  return Object.entries(turn.scores || {}).map(([judge, value]) => {
    const fails = value !== null && value >= episode.threshold;
    const why = reasons.get(judge);
    const chip = make("span", { class: `chip${fails ? " fails" : ""}${value === null ? " missing" : ""}`, title: why || `score of ${judge}` }, `${judge} ${value === null ? "no score" : decimal(value)}`);
    return chip;
  });
}

function turnOf(episode, turn, number) {
  const likelihoods = Object.entries(turn.nll || {}).map(([who, [total, tokens]]) => [who, decimal(total), tokens, decimal(tokens ? total / tokens : null)]);
  const terms = Object.entries(turn.terms || {}).map(([name, value]) => [name, value === null ? "—" : String(value)]);
  const reasons = Object.entries(turn.unscored || {});
  const why = reasons.map(([judge, reason]) => make("p", { class: "aside" }, `${judge} gave no score: `, said(reason, "span")));
  const more = terms.length || likelihoods.length || turn.finish ? make("details", { class: "fold" },
    make("summary", {}, turn.reward === undefined ? "Measurements" : `Reward ${signed(turn.reward)} and its terms`),
    terms.length ? tableOf(["Reward term", "Value"], terms) : null,
    likelihoods.length ? tableOf(["NLL under", "Nats", "Tokens", "Nats per token"], likelihoods) : null,
    turn.finish ? make("p", { class: "aside" }, `Finish reason of the target: ${turn.finish}.`) : null,
    turn.refused === undefined ? null : make("p", { class: "aside" }, turn.refused ? "Detected as a refusal." : "Not detected as a refusal.")) : null;
  return make("section", { class: "turn", "aria-label": `Turn ${number}` },
    make("h3", { class: "turn-number" }, `Turn ${number}`),
    folded("Whole output of the attacker, not sent", turn.written),
    folded("Reasoning of the attacker, not part of the attack", turn.attack_reasoning),
    speech("attacker", "Attacker", "h4", turn.attack),
    turn.trace ? traceOf(turn.trace) : null,
    folded("Reasoning of the target, not part of the reply", turn.reasoning),
    speech("target", "Target", "h4", turn.response, ...scoresOf(episode, turn)),
    ...why, more);
}

// What an agent did: each message, call and result; what the attacker wrote is marked.
function traceOf(trace) {
  const share = (value) => (value === null ? "unknown" : decimal(value));
  const names = { user: "User", assistant: "Agent", tool: "Result", system: "System" };
  return make("details", { class: "trace", open: true },
    make("summary", {}, `${count(trace.messages.length, "message", "messages")}; goal of the attacker reached: ${share(trace.hijack)}; task of the user done: ${share(trace.utility)}; ended: ${trace.ended}`),
    make("ol", {}, ...trace.messages.map((message, at) => make("li", { class: at === trace.failed_at ? "fails" : null },
      make("b", {}, names[message.role] || ""), message.name ? said(` ${message.name}`, "span") : null,
      ...(at === trace.failed_at ? [" ", make("span", { class: "chip fails" }, "the goal was reached here")] : []),
      (message.parts || []).length ? make("p", { class: "said", dir: "auto" }, ...message.parts.map(([text, own]) => own ? make("mark", { title: "written by the attacker" }, text) : text)) : null,
      ...(message.calls || []).map((call) => make("p", { class: "call" }, make("code", { class: "said" }, call.error ? `call that could not be read: ${call.error}` : `${call.name}(${call.arguments})`)))))));
}

function traceText(trace) {
  return trace.messages.map((message) => [`  ${message.role} ${message.name || ""}`.trimEnd() + ": " + (message.parts || []).map(([text]) => text).join(""), ...(message.calls || []).map((call) => `    ${call.name || "?"}(${call.arguments || ""})`)].join("\n"));
}

function detailsOf(row, episode) {
  const leaf = episode.leaves[row.leaf];
  const facts = [["Identifier", row.id], ["Attacker", episode.attacker], ["Target", episode.target], ["Prompt", row.prompt], ["Trial", leaf.trial || 0], ["Seed", episode.seed]];
  return make("details", { class: "fold" }, make("summary", {}, "About this conversation"), tableOf(["Field", "Value"], facts.filter(([, value]) => value !== undefined).map(([name, value]) => [name, String(value)])));
}

function tableOf(head, rows) {
  const cell = (value, at) => make("td", { class: at && typeof value !== "string" && !(value instanceof Node) ? "number" : null }, value instanceof Node ? value : String(value));
  return make("div", { class: "scroll" }, make("table", { class: "narrow" },
    make("thead", {}, make("tr", {}, ...head.map((name) => make("th", { scope: "col" }, name)))),
    make("tbody", {}, ...rows.map((row) => make("tr", {}, ...row.map(cell))))));
}

function plainText(row, episode) {
  const lines = episode.prompt ? [`Opening: ${episode.prompt}`] : [];
  for (const node of pathTo(episode, row.leaf)) {
    const turn = episode.nodes[node];
    const scores = Object.entries(turn.scores || {}).map(([judge, value]) => `${judge} ${value === null ? "no score" : decimal(value)}`);
    lines.push(`Attacker: ${turn.attack}`, ...(turn.trace ? traceText(turn.trace) : []), `Target: ${turn.response || ""}`, `Scores: ${scores.join(", ")}`);
  }
  return lines.join("\n");
}
