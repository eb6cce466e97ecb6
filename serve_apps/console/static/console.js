// What every page has: the theme, the token, and how requests are sent and problems told.
const page = document.documentElement;
export const root = page.dataset.root;
export const api = page.dataset.api;
const TOKEN = "longtail-token";

export function isDark() {
  return page.dataset.theme ? page.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
}

export function announce(text) {
  document.getElementById("announce").textContent = text;
}

/** An element with attributes, classes and children; text is never taken as markup. */
export function h(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else element.setAttribute(key, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return element;
}

/** A problem as the application tells it, as an error with its remedy. */
export class Problem extends Error {
  constructor(told) {
    super([told.detail || told.title, told.remedy].filter(Boolean).join(" "));
    this.status = told.status;
  }
}

/** JSON from the application; `url` is relative to the page. Throws a Problem. */
export async function ask(url, options = {}) {
  const response = await fetch(url, { headers: { accept: "application/json", ...(options.headers || {}) }, ...options });
  if (response.status === 204) return null;
  const told = await response.json().catch(() => ({ status: response.status, title: response.statusText || "No answer" }));
  if (!response.ok) throw new Problem({ status: response.status, ...told });
  return told;
}

export function post(url, body) {
  return ask(url, { method: "POST", headers: { accept: "application/json", "content-type": "application/json" }, body: JSON.stringify(body) });
}

/** An action: a request with the token, which is asked for where the tab does not have it. Null where the reader thinks better of it. */
export async function act(url, body, method = "POST") {
  for (;;) {
    const token = sessionStorage.getItem(TOKEN) || (await askToken());
    if (!token) return null;
    const headers = { accept: "application/json", authorization: `Bearer ${token}`, "content-type": "application/json" };
    try {
      return await ask(url, { method, headers, body: body === undefined ? undefined : JSON.stringify(body) });
    } catch (problem) {
      if (problem.status !== 401) throw problem;
      sessionStorage.removeItem(TOKEN);
      if (!(await askToken())) return null;
    }
  }
}

/** The dialog; ends with the token once the console takes it, or null. */
export function askToken() {
  const dialog = document.getElementById("token-dialog");
  const [input, wrong, form] = [dialog.querySelector("input"), dialog.querySelector(".wrong"), dialog.querySelector("form")];
  input.value = sessionStorage.getItem(TOKEN) || "";
  wrong.hidden = true;
  dialog.showModal();
  input.select();
  return new Promise((resolve) => {
    const end = (token) => { controller.abort(); dialog.close(); resolve(token); };
    const controller = new AbortController();
    const { signal } = controller;
    form.addEventListener("submit", async (event) => {
      event.preventDefault();
      const token = input.value.trim();
      const response = await fetch(`${root}session`, { method: "POST", headers: { authorization: `Bearer ${token}` } });
      wrong.hidden = response.ok;
      if (!response.ok) return input.select();
      sessionStorage.setItem(TOKEN, token);
      announce("The token is kept until this tab is closed.");
      end(token);
    }, { signal });
    dialog.querySelector("[value=cancel]").addEventListener("click", () => end(null), { signal });
    dialog.querySelector("[value=forget]").addEventListener("click", () => { sessionStorage.removeItem(TOKEN); end(null); }, { signal });
    dialog.addEventListener("cancel", () => end(null), { signal });
  });
}

document.querySelector("[data-theme-toggle]").addEventListener("click", () => {
  const theme = isDark() ? "light" : "dark";
  page.dataset.theme = theme;
  try { localStorage.setItem("longtail-theme", theme); } catch { /* storage may be switched off */ }
  document.dispatchEvent(new CustomEvent("theme"));
  announce(`${theme} theme`);
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => document.dispatchEvent(new CustomEvent("theme")));

for (const button of document.querySelectorAll("[data-token]")) {
  button.addEventListener("click", async () => {
    if ((await askToken()) && button.dataset.token === "view") location.reload();
  });
}
document.querySelector(".side [aria-current]")?.scrollIntoView({ block: "nearest", inline: "center" });

export const NAMES = { choirrec: "ChoirRec", saviorrec: "SaviorRec", duet: "Duet" };
export const rankerName = (name) => NAMES[name] || name;
export const ranker = (name) => h("span", { class: `ranker tone-${name}` }, rankerName(name));
export const whole = (value) => Number(value).toLocaleString("en");

/** A share from 0 to 1 as a bar. */
export function bar(share, tone = "") {
  const NS = "http://www.w3.org/2000/svg";
  const svg = document.createElementNS(NS, "svg");
  for (const [key, value] of Object.entries({ class: `bar ${tone}`, viewBox: "0 0 100 6", preserveAspectRatio: "none", "aria-hidden": "true" })) svg.setAttribute(key, value);
  for (const [kind, width] of [["bar-back", 100], ["bar-fill", Math.max(0, Math.min(1, share)) * 100]]) {
    const rect = document.createElementNS(NS, "rect");
    for (const [key, value] of Object.entries({ class: kind, width, height: 6 })) rect.setAttribute(key, value);
    svg.append(rect);
  }
  return svg;
}
