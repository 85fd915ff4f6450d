// The conversations: an index of all of them, and chunks of text, unpacked on first use.

async function unpack(id) {
  const packed = Uint8Array.from(atob(document.getElementById(id).textContent), (c) => c.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  return JSON.parse(await new Response(stream).text());
}

const store = { rows: [], byId: new Map(), starts: [], sweeps: [], chunks: new Map() };

async function openStore() {
  const { columns, chunks, sweeps, marks, replay } = await unpack("index");
  store.starts = chunks;
  store.sweeps = sweeps;
  store.replay = new Map(Object.entries(replay)); // start of the command, by phase
  store.marks = marks; // labels of the best and the worst sibling
  const names = Object.keys(columns);
  store.rows = columns.id.map((_, at) => {
    const row = { at };
    for (const name of names) row[name] = columns[name][at];
    return row;
  });
  // Conversations of other evaluations with the same opening; those of training are not paired.
  store.partners = Map.groupBy(store.rows.filter((row) => row.step === null), pairOf);
  store.byId = new Map(store.rows.map((row) => [row.id, row]));
}

const pairOf = (row) => JSON.stringify([row.prompt, row.trial]);

function partnersOf(row) {
  return row.step === null ? store.partners.get(pairOf(row)).filter((each) => each.phase !== row.phase) : [];
}

// Whether the attack succeeded; null if that is not known.
const wonOf = (row) => (row.outcome === "success" ? true : ["error", "unscored"].includes(row.outcome) ? null : false);

// Whether the outcome differs from that of a partner: of the one in the phase `beside`, or of any.
function differs(row, beside) {
  return partnersOf(row).some((each) => (!beside || each.phase === beside) && wonOf(row) !== null && wonOf(each) === !wonOf(row));
}

function chunkOf(episode) {
  let low = 0, high = store.starts.length - 1;
  while (low < high) {
    const middle = Math.ceil((low + high) / 2);
    if (store.starts[middle] <= episode) low = middle;
    else high = middle - 1;
  }
  return low;
}

function openChunk(number) {
  // Kept as a promise, so that two readers of one chunk unpack it once.
  if (!store.chunks.has(number)) store.chunks.set(number, unpack(`chunk-${number}`));
  return store.chunks.get(number);
}

async function openEpisode(number) {
  const chunk = chunkOf(number);
  return (await openChunk(chunk))[number - store.starts[chunk]];
}

// Nodes of a conversation, from the first turn to the last.
function pathTo(episode, leaf) {
  const path = [];
  for (let at = episode.leaves[leaf].node; at >= 0; at = episode.nodes[at].parent) path.unshift(at);
  return path;
}

// Lower-case text of every conversation for the search, made once, chunk by chunk to keep the page responsive.
async function openTexts(progress) {
  if (store.texts) return store.texts;
  const texts = new Map();
  for (let chunk = 0; chunk < store.starts.length; chunk++) {
    const episodes = await openChunk(chunk);
    episodes.forEach((episode, at) => {
      const opening = [episode.prompt, ...(episode.said || [])];
      episode.leaves.forEach((leaf, number) => {
        const turns = pathTo(episode, number).map((node) => episode.nodes[node]);
        const said = turns.flatMap((turn) => [turn.attack, turn.response, ...(turn.trace ? traceText(turn.trace) : [])]);
        texts.set(leaf.id, [...opening, ...said, leaf.id].join("\n").toLowerCase());
      });
    });
    progress(chunk + 1, store.starts.length);
    await new Promise((resume) => setTimeout(resume));
  }
  store.texts = texts;
  return texts;
}
