// The list of sweeps, the start form and the jobs; asks every two seconds.
import { act, at, getJson } from "./console.js";
import { el, fill, pill, poll } from "./sweep_dom.js";
import { ago, duration, score, signed, WORDS } from "./sweep_text.js";

const $ = (id) => document.getElementById(id);
const form = $("start");
let shown = null; // the job whose log is open
let room = null;

function sweepRow(sweep) {
  const gain = sweep.best && sweep.start != null && sweep.best.number !== 0 ? sweep.best.score - sweep.start : null;
  const failed = sweep.num_failed ? ` · ${sweep.num_failed} failed` : "";
  return el("tr", {},
    el("td", {}, el("a", { href: at(`sweeps/${sweep.key}`), "data-keep": sweep.key }, `${sweep.ranker ?? "a sweep"} `, el("code", {}, sweep.key.slice(0, 8)))),
    el("td", {}, pill(sweep.status), sweep.phase ? el("span", { class: "quiet-words" }, ` ${sweep.phase}`) : null),
    el("td", { class: "number" }, `${sweep.num_ended} / ${sweep.num_trials}${failed}`),
    el("td", { class: "number" }, sweep.best ? score(sweep.best.score) : "–"),
    el("td", { class: `number ${gain > 0 ? "up" : ""}` }, signed(gain)),
    el("td", {}, sweep.metric),
    el("td", {}, ago(sweep.changed)));
}

function jobRow(job) {
  const took = job.began == null ? null : (job.ended ?? Date.now() / 1000) - job.began;
  return el("tr", {},
    el("td", {}, el("code", {}, job.job)),
    el("td", {}, pill(job.status, WORDS[job.status])),
    el("td", {}, job.module ?? "not of this console"),
    el("td", {}, job.began == null ? "–" : ago(job.began)),
    el("td", { class: "number" }, duration(took)),
    el("td", { class: "row-actions" },
      el("button", { type: "button", class: "button small quiet", "data-keep": `log-${job.job}`, "data-log": job.job }, "Log"),
      job.alive ? el("button", { type: "button", class: "button small danger", "data-keep": `stop-${job.job}`, "data-stop": job.job }, "Stop") : null));
}

function render(told) {
  fill($("sweeps").tBodies[0], told.sweeps.map(sweepRow));
  fill($("jobs").tBodies[0], told.jobs.map(jobRow));
  $("no-sweeps").hidden = told.sweeps.length > 0;
  $("no-jobs").hidden = told.jobs.length > 0;
  $("problem").hidden = !told.problem;
  $("problem").textContent = told.problem ?? "";
  $("dashboard").hidden = !told.dashboard;
  if (told.dashboard) $("dashboard").href = told.dashboard;
  room = told.room;
  const gpus = room.total.GPU ? `, ${room.free.GPU} of ${room.total.GPU} GPUs` : "";
  fill($("room"), `Free now: ${room.free.CPU} of ${room.total.CPU} CPUs${gpus}; serving holds its share. Store: `, el("code", {}, told.store));
  return true;
}

async function showLog() {
  if (shown === null) return;
  const told = await getJson(`sweeps/api/jobs/${shown}/log`);
  $("job-log").hidden = false;
  $("job-log-head").textContent = `Log of ${told.job} (${WORDS[told.status]})`;
  $("job-error").hidden = !told.error;
  $("job-error").textContent = told.error ?? "";
  const pre = $("job-log").querySelector("pre");
  const atEnd = pre.scrollHeight - pre.scrollTop - pre.clientHeight < 40;
  if (pre.textContent !== told.log) pre.textContent = told.log || "nothing printed yet";
  if (atEnd) pre.scrollTop = pre.scrollHeight;
}

function order() {
  const data = new FormData(form);
  const own = data.get("config") === "";
  return { module: data.get("module"), config: own ? null : data.get("config"), toml: own ? data.get("toml") : null, settings: data.get("settings").split("\n").filter((line) => line.trim()) };
}

async function answered(work) {
  const answer = $("answer");
  for (const button of form.querySelectorAll("button")) button.disabled = true;
  try {
    answer.replaceChildren(...(await work()));
  } catch (error) {
    answer.replaceChildren(el("p", { class: "refusal", role: "alert" }, error.message));
  } finally {
    for (const button of form.querySelectorAll("button")) button.disabled = false;
  }
}

function checkedWords(told) {
  return [
    told.runs ? el("p", { class: "refusal" }, `These very settings run already: ${told.runs}.`) : null,
    el("p", { class: told.waits ? "warning" : "good" }, told.waits ?? "It would start at once: nothing it needs is taken."),
    el("pre", { class: "command" }, told.command),
  ].filter(Boolean);
}

$("check").addEventListener("click", () => answered(async () => checkedWords(await act("sweeps/api/jobs:check", order()))));
form.addEventListener("submit", (event) => {
  event.preventDefault();
  answered(async () => {
    const told = await act("sweeps/api/jobs", order());
    shown = told.job;
    again();
    return [el("p", { class: "good" }, "Started as ", el("code", {}, told.job), "; a sweep is in the list above as soon as it begins."), told.waits ? el("p", { class: "warning" }, told.waits) : null].filter(Boolean);
  });
});
form.elements.config.addEventListener("change", (event) => { $("toml-field").hidden = event.target.value !== ""; });
$("jobs").addEventListener("click", async (event) => {
  const { log, stop } = event.target.dataset;
  try {
    if (log) {
      shown = log;
      await showLog();
      $("job-log").scrollIntoView({ block: "nearest" });
    }
    if (stop && confirm(`Stop ${stop}? A sweep goes on from its trials when it is started again.`)) await act(`sweeps/api/jobs/${stop}/stop`);
  } catch (error) {
    $("problem").hidden = false;
    $("problem").textContent = error.message;
  }
});

const again = poll(async () => { await showLog(); return getJson("sweeps/api/sweeps"); }, render, (error) => {
  $("problem").hidden = false;
  $("problem").textContent = error.message;
});
