// Elements without inline scripts or styles.

export function el(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (value === true) made.setAttribute(key, "");
    else if (value !== false && value != null) made.setAttribute(key, value);
  }
  made.append(...children.flat().filter((child) => child != null));
  return made;
}

export function pill(status, words = status) {
  return el("span", { class: `pill pill-${status}` }, words);
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
