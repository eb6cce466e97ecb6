// The list of sweeps, the start form and the jobs; asks every two seconds.
import { act, ask, h, root } from "./console.js";
import { fill, pill, poll } from "./sweep_dom.js";
import { ago, duration, score, signed, WORDS } from "./sweep_text.js";

const $ = (id) => document.getElementById(id);
const form = $("start");
let shown = null; // the job whose log is open
let room = null;

// What the finalists came to, in a word.
const VERDICTS = {
  better: "better", unclear: "not shown to be better", worse: "worse", start: "the config stays", unproven: "none were trained",
};

function sweepRow(sweep) {
  const gain = sweep.best && sweep.start != null && sweep.best.number !== 0 ? sweep.best.score - sweep.start : null;
  const failed = sweep.num_failed ? ` · ${sweep.num_failed} failed` : "";
  return h("tr", {},
    h("td", {}, h("a", { href: `${root}sweeps/${sweep.key}`, "data-keep": sweep.key }, `${sweep.ranker ?? "a sweep"} `, h("code", {}, sweep.key.slice(0, 8)))),
    h("td", {}, pill(sweep.status), sweep.phase ? h("span", { class: "muted" }, ` ${sweep.phase}`) : null),
    h("td", { class: "num" }, `${sweep.num_ended} / ${sweep.num_trials}${failed}`),
    h("td", { class: "num" }, sweep.best ? score(sweep.best.score) : "–"),
    h("td", { class: `num ${gain > 0 ? "up" : ""}` }, signed(gain)),
    h("td", {}, VERDICTS[sweep.verdict] ?? ""),
    h("td", {}, sweep.metric),
    h("td", {}, ago(sweep.changed)));
}

function jobRow(job) {
  const took = job.began == null ? null : (job.ended ?? Date.now() / 1000) - job.began;
  return h("tr", {},
    h("td", {}, h("code", {}, job.job)),
    h("td", {}, pill(job.status, WORDS[job.status])),
    h("td", {}, job.module ?? "not of this console"),
    h("td", {}, job.began == null ? "–" : ago(job.began)),
    h("td", { class: "num" }, duration(took)),
    h("td", { class: "row-actions" },
      h("button", { type: "button", class: "button small quiet", "data-keep": `log-${job.job}`, "data-log": job.job }, "Log"),
      job.alive ? h("button", { type: "button", class: "button small danger", "data-keep": `stop-${job.job}`, "data-stop": job.job }, "Stop") : null));
}

function render(told) {
  fill($("sweeps").tBodies[0], told.sweeps.map(sweepRow));
  fill($("jobs").tBodies[0], told.jobs.map(jobRow));
  for (const [name, rows] of [["sweeps", told.sweeps], ["jobs", told.jobs]]) {
    $(`no-${name}`).hidden = rows.length > 0;
    $(name).closest(".scroll").hidden = rows.length === 0;
  }
  $("problem").hidden = !told.problem;
  $("problem").textContent = told.problem ?? "";
  $("dashboard").hidden = !told.dashboard;
  if (told.dashboard) $("dashboard").href = told.dashboard;
  room = told.room;
  const gpus = room.total.GPU ? `, ${room.free.GPU} of ${room.total.GPU} GPUs` : "";
  const free = room.total.CPU == null ? "What is free is not known." : `Free now: ${room.free.CPU} of ${room.total.CPU} CPUs${gpus}; serving holds its share.`;
  fill($("room"), `${free} Store: `, h("code", {}, told.store));
  return true;
}

async function showLog() {
  if (shown === null) return;
  const told = await ask(`${root}sweeps/api/jobs/${shown}/log`);
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
    answer.replaceChildren(h("p", { class: "refusal", role: "alert" }, error.message));
  } finally {
    for (const button of form.querySelectorAll("button")) button.disabled = false;
  }
}

function checkedWords(told) {
  if (told === null) return []; // no token was given
  return [
    told.runs ? h("p", { class: "refusal" }, `These very settings run already: ${told.runs}.`) : null,
    h("p", { class: told.waits ? "said-warn" : "said-good" }, told.waits ?? "It would start at once: nothing it needs is taken."),
    h("pre", { class: "command" }, told.command),
  ].filter(Boolean);
}

$("check").addEventListener("click", () => answered(async () => checkedWords(await act(`${root}sweeps/api/jobs:check`, order()))));
form.addEventListener("submit", (event) => {
  event.preventDefault();
  answered(async () => {
    const told = await act(`${root}sweeps/api/jobs`, order());
    if (told === null) return [];
    shown = told.job;
    again();
    return [h("p", { class: "said-good" }, "Started as ", h("code", {}, told.job), "; a sweep is in the list above as soon as it begins."), told.waits ? h("p", { class: "said-warn" }, told.waits) : null].filter(Boolean);
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
    if (stop && confirm(`Stop ${stop}? A sweep goes on from its trials when it is started again.`)) await act(`${root}sweeps/api/jobs/${stop}/stop`);
  } catch (error) {
    $("problem").hidden = false;
    $("problem").textContent = error.message;
  }
});

const again = poll(async () => { await showLog(); return ask(`${root}sweeps/api/sweeps`); }, render, (error) => {
  $("problem").hidden = false;
  $("problem").textContent = error.message;
});
