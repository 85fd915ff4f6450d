
"use strict";

// Filter: hides the conversations, and the findings, in which nobody said what is asked for.
const filter = document.getElementById("filter");
const tally = document.getElementById("tally");
const conversations = [...document.querySelectorAll(".conversation")].map((element) => ({
  element,
  said: [...element.querySelectorAll(".said")].map((part) => part.textContent).join("\n").toLowerCase(),
}));

function applyFilter() {
  const wanted = filter.value.trim().toLowerCase();
  let shown = 0;
  for (const { element, said } of conversations) {
    element.hidden = !said.includes(wanted);
    shown += element.hidden ? 0 : 1;
  }
  for (const finding of document.querySelectorAll(".finding")) {
    finding.hidden = wanted !== "" && !finding.querySelector(".conversation:not([hidden])");
  }
  tally.textContent = wanted === "" ? "" : `${shown} of ${conversations.length} conversations`;
}

if (filter) {
  filter.closest("[hidden]").hidden = false; // without scripts there is no filter to show
  filter.addEventListener("input", applyFilter);
}

// Paper has nothing to click: print everything unfolded, then fold it again.
let folded = [];
window.addEventListener("beforeprint", () => {
  folded = [...document.querySelectorAll("details:not([open])")];
  for (const element of folded) element.open = true;
});
window.addEventListener("afterprint", () => {
  for (const element of folded) element.open = false;
});
