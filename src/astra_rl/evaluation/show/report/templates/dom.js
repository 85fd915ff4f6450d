// Small helpers. Text is only ever put into the page as text.

const $ = (id) => document.getElementById(id);

// make("a", { class: "x", href: "#/y", onclick: f }, "text", element, ...)
function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined && child !== ""));
  return element;
}

const said = (text, name = "p") => make(name, { class: "said", dir: "auto" }, text);
const decimal = (value) => (value === null || value === undefined ? "—" : value.toFixed(2));
const signed = (value) => {
  if (value === null || value === undefined) return "—";
  const digits = Math.abs(value).toFixed(2);
  return digits === "0.00" ? digits : (value < 0 ? "−" : "+") + digits;
};
const count = (n, one, many) => `${n} ${n === 1 ? one : many}`;

const OUTCOMES = { success: "success", failure: "no success", refused: "refused", blocked: "blocked", no_attack: "no attack", error: "error", unscored: "unscored" };

function announce(text) {
  $("announce").textContent = text;
}

async function copyText(text, button) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    // Some browsers refuse the clipboard to pages opened from disk; selecting a field still works.
    const field = make("textarea", { class: "unseen", readonly: true });
    field.value = text;
    document.body.append(field);
    field.select();
    document.execCommand("copy");
    field.remove();
  }
  const label = button.textContent;
  button.textContent = "Copied";
  announce("Copied");
  setTimeout(() => { button.textContent = label; }, 1200);
}

const copyButton = (label, text) => make("button", { type: "button", class: "copy quiet", onclick: (event) => copyText(text(), event.currentTarget) }, label);
