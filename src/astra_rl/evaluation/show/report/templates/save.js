// Save the listed conversations as a file. Texts are as on the page: at most 20,000 characters each,
// with hidden characters made visible; `astra-rl export` writes the complete records.

async function recordsOf(rows) {
  const records = [];
  for (const row of rows) {
    const episode = await openEpisode(row.episode);
    const turns = pathTo(episode, row.leaf).map((node) => {
      const { attack, response, scores, reward } = episode.nodes[node];
      return { attack, response: response ?? "", scores, reward };
    });
    const { id, phase, outcome, score, nll, category, kind, step, trial, target } = row;
    records.push({ id, phase, outcome, score, nll, category, kind, step, trial, target, opening: episode.prompt ?? "", turns });
  }
  return records;
}

// As `csv_cell` of evaluation/show/escaping.py: spreadsheets must not take text for a formula.
function csvCell(value) {
  let text = value === null || value === undefined ? "" : String(value);
  if (typeof value !== "number" && /^\s*"?[=+\-@|%\uff1d\uff0b\uff0d\uff20]/.test(text)) text = `'${text}`;
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

function asCsv(records) {
  const fields = ["id", "phase", "outcome", "score", "nll", "category", "kind", "step", "trial", "target", "opening"];
  const longest = records.reduce((most, record) => Math.max(most, record.turns.length), 0);
  const numbers = Array.from({ length: longest }, (_, at) => at);
  const lines = [[...fields, ...numbers.flatMap((at) => [`attack ${at + 1}`, `response ${at + 1}`])]];
  for (const record of records) {
    lines.push([...fields.map((name) => record[name]), ...numbers.flatMap((at) => [record.turns[at]?.attack, record.turns[at]?.response])]);
  }
  return lines.map((line) => `${line.map(csvCell).join(",")}\r\n`).join("");
}

const asJson = (records) => records.map((record) => `${JSON.stringify(record)}\n`).join("");

async function save(name, type, write) {
  const records = await recordsOf(list.shown);
  const address = URL.createObjectURL(new Blob([write(records)], { type }));
  make("a", { href: address, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(address), 60_000);
  announce(`Saved ${count(records.length, "conversation", "conversations")}`);
}

function openSaving() {
  $("save-csv").addEventListener("click", () => save("conversations.csv", "text/csv", asCsv));
  $("save-json").addEventListener("click", () => save("conversations.jsonl", "application/jsonl", asJson));
}
