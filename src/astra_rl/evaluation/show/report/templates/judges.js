// The threshold slider. Rates and intervals were computed in Python when the page was made; the
// script only looks them up.

function openSweeps() {
  const panel = $("sweep");
  if (!panel) return;
  if (store.sweeps.length === 0) { panel.remove(); return; }
  const choice = $("sweep-choice"), slider = $("threshold");
  choice.replaceChildren(...store.sweeps.map((sweep, at) => make("option", { value: at }, `${sweep.evaluation}, ${sweep.judge}`)));
  const sweep = () => store.sweeps[choice.value];
  const draw = () => {
    const at = sweep().rates[slider.value - 1];
    const [estimate, low, high, lowest, highest] = at.words;
    const hidden = at.unscored ? ` ${count(at.unscored, "conversation", "conversations")} could not be judged: bounds ${lowest} to ${highest}.` : "";
    slider.setAttribute("aria-valuetext", at.threshold.toFixed(2));
    $("threshold-value").textContent = at.threshold.toFixed(2);
    $("sweep-estimate").textContent = estimate;
    $("sweep-words").textContent = `95% interval ${low} to ${high}; ${at.successes} successes of ${at.trials}.${hidden}`;
    place($("sweep-range"), at.low, at.high);
    place($("sweep-bounds"), at.lowest, at.highest);
    $("sweep-point").hidden = at.estimate === null;
    $("sweep-point").style.left = `${100 * (at.estimate || 0)}%`;
  };
  const reset = () => { slider.value = Math.round(100 * sweep().threshold); draw(); };
  slider.addEventListener("input", draw);
  choice.addEventListener("change", reset);
  $("threshold-reset").addEventListener("click", reset);
  reset();
}

function place(element, low, high) {
  element.style.left = `${100 * low}%`;
  element.style.width = `${100 * (high - low)}%`;
}
