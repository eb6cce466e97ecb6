// The rollout as it stands, asked every two seconds; buttons change it with the token.
import { act, announce, api, ask, bar, h, ranker, whole } from "./console.js";
import { draw } from "./charts.js";

const $ = (id) => document.getElementById(id);
const URL_OF = `${api}v1/rollout`;
let told = null;
let releases = [];

const short = (key) => (key ? h("code", { title: key }, key.slice(0, 10)) : h("span", { class: "muted" }, "none"));
const percent = (share) => `${(100 * share).toLocaleString("en", { maximumFractionDigits: 1 })} %`;
const milliseconds = (value) => (value == null ? "–" : `${value.toLocaleString("en", { maximumFractionDigits: 1 })} ms`);

function card(title, key, ...more) {
  const one = releases.find((release) => release.release === key);
  return h("article", { class: "card" },
    h("h3", {}, h("span", { class: "role" }, title), short(key)),
    one && !one.problem ? h("dl", {}, h("div", {}, h("dt", {}, "run"), h("dd", {}, one.run)), h("div", {}, h("dt", {}, "published"), h("dd", {}, one.published.replace("T", " ").replace("Z", "")))) : null,
    ...more);
}

function showNow({ state, replicas }) {
  const others = state.canary ? 1 - state.weight : 1;
  const cards = [card("Stable", state.stable, h("p", { class: "weight" }, percent(others)), bar(others))];
  if (state.canary) cards.push(card("Canary", state.canary, h("p", { class: "weight" }, percent(state.weight)), bar(state.weight)));
  if (state.shadow) cards.push(card("Shadow", state.shadow, h("p", { class: "muted" }, "ranks unseen")));
  const up = Object.values(replicas).filter((one) => one.silent_s < 10).length;
  cards.push(h("article", { class: "card" }, h("h3", {}, "Replicas"), h("p", { class: "weight" }, whole(up)), h("p", { class: "muted" }, `${whole(told.entries)} entries told so far`)));
  $("now").replaceChildren(...cards);
  $("now").setAttribute("aria-busy", "false");
  $("reason").textContent = state.reason ? `Last change: ${state.reason}` : "";
  $("actions").hidden = false;
  $("promote").hidden = !state.canary;
  $("rollback").hidden = !state.canary && !state.previous;
  $("rollback").textContent = state.canary ? "Take the canary back" : "Roll back the last promotion";
  $("stop").hidden = !state.shadow;
}

function showSeen({ state, releases: seen, guards, psi }) {
  $("seen").hidden = !state.canary;
  if (!state.canary) return;
  $("guards").textContent = `Taken back by itself when its failures exceed the stable release’s by ${percent(guards.max_error_frac)}, its p95 ${guards.max_latency_ratio} times, or the PSI of its scores ${guards.max_psi}; after ${whole(guards.min_requests)} requests of each.`;
  $("stats").replaceChildren(...[["stable", state.stable], ["canary", state.canary]].map(([role, key]) => {
    const one = seen[key] ?? { requests: 0, errors: 0, p50_ms: null, p95_ms: null };
    return h("tr", {}, h("th", { scope: "row" }, `${role} `, short(key)), h("td", { class: "num" }, whole(one.requests)),
      h("td", { class: `num ${one.errors ? "bad" : ""}` }, whole(one.errors)), h("td", { class: "num" }, milliseconds(one.p50_ms)), h("td", { class: "num" }, milliseconds(one.p95_ms)));
  }));
  const edges = JSON.parse($("score-edges").textContent);
  const step = edges[1] - edges[0];
  const middles = [edges[0] - step / 2, ...edges.map((edge) => edge + step / 2)];
  const trace = (name, key, color) => {
    const counts = seen[key]?.scores_K ?? [];
    const total = counts.reduce((sum, one) => sum + one, 0) || 1;
    return { type: "bar", name, x: middles, y: middles.map((_, place) => (counts[place] ?? 0) / total), marker: { color }, opacity: 0.65 };
  };
  const filled = middles.filter((_, place) => seen[state.stable]?.scores_K[place] || seen[state.canary]?.scores_K[place]);
  const range = filled.length ? [filled[0] - 3 * step, filled[filled.length - 1] + 3 * step] : [edges[0], edges[edges.length - 1]];
  draw($("scores"), {
    data: [trace("stable", state.stable, "--base"), trace("canary", state.canary, "--accent")],
    layout: { barmode: "overlay", xaxis: { title: { text: "logit" }, range }, yaxis: { title: { text: "share of candidates" }, tickformat: ".0%" }, legend: { orientation: "h", y: 1.15 } },
  });
  $("drift").textContent = psi == null ? "No score of both yet." : `PSI ${psi.toFixed(3)}: ${psi < 0.1 ? "little drift" : psi < 0.25 ? "some drift" : "much drift"}.`;
}

function showShadow({ state, shadow }) {
  $("shadow").hidden = !state.shadow;
  const of = Math.max(shadow.compared, 1);
  const figures = [["compared", whole(shadow.compared)], ["same first item", percent(shadow.same_first / of)], ["first ten in common", percent(shadow.overlap / of)],
    ["mean difference of scores", (shadow.score_difference / of).toFixed(4)], ["failed", whole(shadow.errors)], ["left out", whole(shadow.dropped)]];
  $("differences").replaceChildren(...figures.map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value))));
}

function showReleases({ state, failures }) {
  const roles = { [state.stable]: "stable", [state.canary]: "canary", [state.shadow]: "shadow", [state.previous]: "before" };
  $("releases").replaceChildren(...releases.map((one) => {
    const role = roles[one.release];
    const why = failures[one.release] ?? one.problem;
    const buttons = why || role === "stable" ? [] : [
      h("button", { type: "button", class: "button", onclick: () => change({ action: "canary", release: one.release, weight: $("weight").valueAsNumber / 100 }) }, role === "canary" ? "Set share" : "Canary"),
      role === "shadow" ? null : h("button", { type: "button", class: "button", onclick: () => change({ action: "shadow", release: one.release }) }, "Shadow"),
      h("button", { type: "button", class: "button", onclick: () => change({ action: "promote", release: one.release }) }, "Promote"),
    ];
    return h("tr", {}, h("th", { scope: "row" }, short(one.release), " ", role ? h("span", { class: `chip ${role === "stable" ? "good" : ""}` }, role) : null),
      h("td", { class: "wrap" }, one.run ?? "", why ? h("p", { class: "bad" }, why) : null),
      h("td", {}, ...buttons), h("td", {}, ...Object.keys(one.rankers ?? {}).flatMap((name) => [ranker(name), " "])),
      h("td", {}, (one.published ?? "").replace("T", " ").replace("Z", "")), h("td", {}, h("code", {}, one.commit ?? "")));
  }));
}

function showHistory({ history }) {
  $("history").replaceChildren(...[...history].reverse().map((one) => {
    const parts = [["stable", one.stable], ["canary", one.canary && `${one.canary.slice(0, 10)} for ${percent(one.weight)}`], ["shadow", one.shadow]];
    return h("li", { class: /rolled back|rollback/.test(one.reason) ? "back" : null }, h("p", {}, one.reason || "changed"),
      h("p", { class: "muted" }, [one.time.slice(0, 19).replace("T", " "), ...parts.filter(([, value]) => value).map(([name, value]) => `${name} ${String(value).slice(0, 26)}`)].join(" · ")));
  }));
}

let drawn = "";
function show() {
  const now = JSON.stringify([told, releases]);
  if (now === drawn || document.activeElement?.closest("#releases")) return; // nothing new, or a button is about to be pressed
  drawn = now;
  for (const part of [showNow, showSeen, showShadow, showReleases, showHistory]) part(told);
}

function tell(problem) {
  $("problem").hidden = !problem;
  $("problem").textContent = problem ? problem.message : "";
}

async function refresh(withReleases = false) {
  try {
    if (withReleases || releases.length === 0) releases = (await ask(`${api}v1/releases`)).releases;
    told = await ask(URL_OF);
    show();
  } catch (problem) {
    tell(problem);
  }
}

async function change(body) {
  try {
    const reason = $("why").value.trim();
    const changed = await act(URL_OF, reason ? { ...body, reason } : body);
    if (!changed) return;
    tell(null);
    document.activeElement?.blur();
    announce(`Done: ${body.action}`);
    await refresh(true);
  } catch (problem) {
    tell(problem);
  }
}

$("choice").addEventListener("submit", (event) => event.preventDefault());
for (const action of ["promote", "rollback", "stop"]) $(action).addEventListener("click", () => change(action === "rollback" ? { action, release: told.state.canary ?? told.state.stable } : { action }));
document.addEventListener("theme", () => { drawn = ""; show(); });
refresh(true);
let turns = 0;
setInterval(() => document.hidden || refresh(++turns % 10 === 0), 2000);
