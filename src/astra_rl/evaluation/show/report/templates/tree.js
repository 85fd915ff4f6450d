// The rollout tree: the siblings of a conversation, their rewards, and which was best and worst.

function treeOf(episode, path) {
  const children = new Map();
  episode.nodes.forEach((node, at) => children.set(node.parent, [...(children.get(node.parent) || []), at]));
  for (const group of children.values()) group.sort((a, b) => episode.nodes[a].branch - episode.nodes[b].branch);
  const marks = siblingMarks(episode, children);
  const onPath = new Set(path);
  const rewards = episode.nodes.map((node) => node.reward).filter((value) => value !== undefined && value !== null);
  const low = Math.min(0, ...rewards), high = Math.max(0, ...rewards);

  const branch = (at) => {
    const node = episode.nodes[at];
    const failing = Object.entries(node.scores || {}).some(([judge, value]) => judge === episode.judge && value !== null && value >= episode.threshold);
    const mark = marks.get(at);
    const label = `Branch ${node.branch + 1}${mark ? `, ${mark}` : ""}, reward ${signed(node.reward)}${failing ? ", success" : ""}`;
    const bar = make("span", { class: `earned${node.reward < 0 ? " loss" : ""}`, "aria-hidden": "true" });
    if (high > low && typeof node.reward === "number") {
      bar.style.left = `${(100 * (Math.min(0, node.reward) - low)) / (high - low)}%`;
      bar.style.width = `${(100 * Math.abs(node.reward)) / (high - low)}%`;
    }
    const button = make("button", { type: "button", class: `branch${onPath.has(at) ? " on-path" : ""}`, "aria-label": label, "aria-current": onPath.has(at) ? "true" : null, onclick: () => go(leafUnder(episode, children, at, onPath), list.state, { replace: true }) },
      make("span", { class: `dot ${failing ? "success" : "failure"}` }),
      make("span", { class: "said branch-text", dir: "auto" }, node.attack || "(empty)"),
      make("span", { class: `mark ${mark || ""}` }, mark || ""),
      make("span", { class: "earnings", "aria-hidden": "true" }, bar),
      make("span", { class: "reward" }, signed(node.reward)));
    const below = children.get(at) || [];
    return make("li", {}, button, below.length ? make("ul", {}, ...below.map(branch)) : null);
  };
  const roots = children.get(-1) || [];
  const seen = make("p", { class: "aside" }, `${count(episode.leaves.length, "conversation", "conversations")} from one opening. A red dot marks a success of the attack; the bar shows the reward.`);
  return make("details", { class: "tree", open: true }, make("summary", {}, "Rollout tree"), seen, make("ul", { class: "branches" }, ...roots.map(branch)));
}

// Which siblings form the preference pair: the first of the best and the last of the worst, as in
// algorithms/pairing.py. Siblings with equal rewards or equal texts form none.
function siblingMarks(episode, children) {
  const marks = new Map();
  for (const group of children.values()) {
    const known = group.filter((at) => typeof episode.nodes[at].reward === "number");
    const ranked = known.toSorted((a, b) => episode.nodes[b].reward - episode.nodes[a].reward);
    const best = episode.nodes[ranked[0]], worst = episode.nodes[ranked.at(-1)];
    if (ranked.length < 2 || best.reward === worst.reward || best.attack === worst.attack) continue;
    marks.set(ranked[0], store.marks[0]);
    marks.set(ranked.at(-1), store.marks[1]);
  }
  return marks;
}

// A conversation through this turn: the open one if it contains the turn, otherwise the first.
function leafUnder(episode, children, at, onPath) {
  let node = at;
  for (let below = children.get(node); below && below.length; below = children.get(node)) node = below.find((each) => onPath.has(each)) ?? below[0];
  return episode.leaves.find((leaf) => leaf.node === node).id;
}
