"use strict";
// Polls for a newer version of the page and announces it. Reloads automatically only if the user has
// not interacted with the page, so that reading is not interrupted.
(() => {
  const POLL_MS = 2000;
  const RELOAD_AFTER_MS = 10000;
  const shown = document.querySelector('meta[name="astra-version"]').content;
  const opened = Date.now();
  let touched = !["", "#/summary"].includes(location.hash); // the default view
  for (const event of ["pointerdown", "keydown", "wheel", "touchstart", "scroll"]) {
    addEventListener(event, () => { touched = true; }, { passive: true, capture: true });
  }

  let notice = null;
  function say(text, offersReload) {
    if (!notice) {
      notice = document.createElement("div");
      notice.id = "astra-live";
      notice.setAttribute("role", "status");
      Object.assign(notice.style, {
        position: "fixed", right: "1rem", bottom: "1rem", zIndex: "1000", padding: "0.6rem 1rem",
        font: "0.95rem/1.4 system-ui, sans-serif", color: "CanvasText", background: "Canvas",
        border: "1px solid GrayText", borderRadius: "0.5rem", maxWidth: "22rem",
      });
      document.body.append(notice);
    }
    if (notice.dataset.text === text) return;
    notice.dataset.text = text;
    notice.replaceChildren(document.createTextNode(text));
    if (offersReload) {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = "Refresh";
      Object.assign(button.style, { marginLeft: "0.75rem", font: "inherit" });
      button.addEventListener("click", () => location.reload());
      notice.append(button);
    }
  }

  async function poll() {
    try {
      const reply = await fetch("version", { cache: "no-store", credentials: "omit" });
      if (!reply.ok) throw new Error(reply.statusText);
      const { version, step } = await reply.json();
      if (version !== shown) {
        if (!touched && scrollY === 0 && Date.now() - opened > RELOAD_AFTER_MS) {
          location.reload();
          return;
        }
        say(step === null ? "New results." : `New results: training step ${step}.`, true);
      } else if (notice) {
        notice.remove();
        notice = null;
      }
    } catch {
      say("The server has stopped; this page is no longer updated.", false);
    }
    setTimeout(poll, document.hidden ? 5 * POLL_MS : POLL_MS);
  }
  // The label page of the server. It has no scores, and this page has, so it opens in its own tab.
  function offerLabels() {
    const tools = document.querySelector(".tools");
    if (!tools) return;
    const link = document.createElement("a");
    Object.assign(link, { href: "label", className: "button", target: "_blank", rel: "noopener", textContent: "Label" });
    tools.prepend(link);
  }

  addEventListener("DOMContentLoaded", () => { offerLabels(); poll(); });
})();
