// What both Sweeps pages do to the document: states, parts that are drawn anew only where they differ, asking again and again.
import { h } from "./console.js";

const TONES = { running: "good lively", finished: "good", succeeded: "good", failed: "bad", refused: "bad", interrupted: "warn", stopped: "warn" };

export function pill(status, words = status) {
  return h("span", { class: `chip ${TONES[status] ?? ""}` }, words);
}

const filled = new WeakMap();

// Put `children` in place of what `at` holds, where they differ: whoever reads or has the focus there is not disturbed.
export function fill(at, ...children) {
  const made = document.createElement(at.tagName);
  made.append(...children.flat().filter((child) => child != null));
  if (made.innerHTML === filled.get(at)) return false;
  filled.set(at, made.innerHTML);
  const focused = at.contains(document.activeElement) ? document.activeElement.dataset.keep : null;
  at.replaceChildren(...made.childNodes);
  if (focused) at.querySelector(`[data-keep="${CSS.escape(focused)}"]`)?.focus();
  return true;
}

// Ask every two seconds while `again()` says so and somebody looks; a failed answer is shown and asked again.
export function poll(ask, again, failed, every = 2000) {
  let timer = null;
  async function turn() {
    clearTimeout(timer);
    let on = true;
    if (!document.hidden) {
      try {
        on = again(await ask());
      } catch (error) {
        failed(error);
      }
    }
    if (on) timer = setTimeout(turn, every);
  }
  document.addEventListener("visibilitychange", () => { if (!document.hidden) turn(); });
  turn();
  return turn;
}
