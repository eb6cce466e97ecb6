// One sweep: its trials as they come, what they have in common, the finalists, its job; asks every two seconds until it is finished.
import { act, at, getJson } from "./console.js";
import { el, fill, pill, poll } from "./sweep_dom.js";
import { duration, score, signed, WORDS } from "./sweep_text.js";
import { curve, front, history, parallel } from "./trial_charts.js";

const $ = (id) => document.getElementById(id);
const key = $("sweep").dataset.key;
let sweep = null;
let opened = null; // the number of the trial whose details are shown
let publishing = null;

function figure(name, value, note = "") {
  return el("div", {}, el("dt", {}, name), el("dd", {}, value, note ? el("span", { class: "quiet-words" }, ` ${note}`) : null));
}

function figures() {
  const best = sweep.best;
  const gain = best && best.number !== 0 && sweep.start != null ? `${signed(best.score - sweep.start)} vs config` : "";
  const failed = sweep.num_failed ? `${sweep.num_failed} failed` : "";
  return [
    figure("Trials ended", `${sweep.num_ended} / ${sweep.num_trials}`, failed),
    figure(sweep.status === "finished" ? "Recommended" : "Best so far", best ? score(best.score) : "–", best ? [`trial ${best.number}`, gain].filter(Boolean).join(", ") : ""),
    figure("Config as it stands", score(sweep.start)),
    figure("Base ranker", score(sweep.base?.score), sweep.floor == null ? "" : `all rows not below ${score(sweep.floor)}`),
    sweep.status === "running" ? figure("Left", sweep.seconds_left == null ? (sweep.phase ?? "–") : `about ${duration(sweep.seconds_left)}`, sweep.seconds_left == null ? "" : "of the search")
      : figure("Took", sweep.minutes ? duration(60 * Object.values(sweep.minutes).reduce((a, b) => a + b, 0)) : "–"),
  ];
}

function trialRow(trial) {
  const took = trial.seconds ?? (trial.status === "running" && trial.began ? Date.now() / 1000 - trial.began : null);
  return el("tr", { "data-trial": trial.number, class: trial.number === sweep.best?.number ? "best-row" : "" },
    el("td", { class: "number" }, trial.rank == null ? "" : String(trial.rank)),
    el("td", { class: "number" }, el("button", { type: "button", class: "link", "data-open": trial.number, "data-keep": `t${trial.number}` }, String(trial.number))),
    el("td", {}, pill(trial.status), trial.why && trial.status === "finished" ? el("span", { class: "quiet-words" }, ` ${trial.why}`) : null),
    el("td", { class: "number" }, score(trial.score)),
    el("td", { class: `number ${trial.against_start > 0 ? "up" : ""}` }, signed(trial.against_start)),
    el("td", { class: "number" }, score(trial.whole)),
    el("td", { class: "number" }, `${trial.epochs} / ${sweep.epochs}`),
    el("td", { class: "number" }, duration(took)),
    el("td", { class: "changes" }, trial.changes || "the same settings again"));
}

const VERDICTS = {
  better: "The winner beats the config as it stood, on a test window that was opened for this once.",
  unclear: "Not shown to be better than the config as it stood: the interval holds zero.",
  worse: "On the test window the winner is worse than the config as it stood.",
  start: "No finalist beats the config as it stood, which stays.",
  unproven: "No finalist was trained again: what looks best is the best of many with one seed, and flattered.",
};

function finals() {
  const told = sweep.finals;
  $("finals").hidden = !told;
  if (!told) return;
  $("finals").dataset.verdict = told.verdict;
  const rows = told.rows.map((row) => el("tr", { class: row.winner ? "best-row" : "" },
    el("td", {}, row.window), el("td", {}, row.arm, row.winner ? el("span", { class: "quiet-words" }, " winner") : null),
    el("td", { class: "number" }, score(row.mean)), el("td", { class: "number" }, score(row.all)), el("td", { class: "number" }, row.gain ?? "")));
  const head = ["Window", "Arm", "Slice", "All rows", "vs config, 95 % interval"].map((name, place) => el("th", { class: place > 1 ? "number" : "" }, name));
  const table = el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Finalists on both windows" },
    el("table", { class: "data" }, el("thead", {}, el("tr", {}, head)), el("tbody", {}, rows)));
  fill($("finals-body"), el("p", { class: "headline" }, VERDICTS[told.verdict]), told.sentences.map((line) => el("p", { class: "note" }, line)), rows.length ? table : null);
  $("promote").hidden = !sweep.best;
  $("promote").textContent = told.verdict === "better" ? "Promote the best" : "Promote it all the same";
  if (sweep.best?.number === 0) $("promote").textContent = "Publish the config as it stands";
}

function open(number) {
  opened = number;
  details();
  if (!$("trial").open) $("trial").showModal();
}

function details() {
  const trial = sweep.trials.find((one) => one.number === opened);
  if (!trial) return;
  const start = trial.number === 0 ? null : sweep.trials.find((one) => one.number === 0);
  fill($("trial-head"), `Trial ${trial.number} `, pill(trial.status));
  const points = sweep.settings.map(({ name }) => {
    const own = trial.point[name], was = start?.point[name];
    return el("tr", {}, el("th", { scope: "row" }, name), el("td", {}, own), el("td", { class: "quiet-words" }, start && was !== own ? `config: ${was}` : ""));
  });
  const metrics = Object.entries(trial.metrics).map(([name, value]) => el("tr", {}, el("th", { scope: "row" }, name), el("td", { class: "number" }, Number.isInteger(value) ? String(value) : value.toFixed(4))));
  fill($("trial-body"),
    trial.why ? el("p", { class: trial.status === "finished" ? "warning" : "refusal" }, trial.why) : null,
    el("p", { class: "note" }, `${sweep.metric} by epoch`, start ? "; dashed: the config as it stands" : "", sweep.base ? "; dotted: the base ranker" : ""),
    el("div", { class: "fit" }, curve(trial, start, sweep)),
    el("h3", {}, "Settings"), el("table", { class: "data" }, el("tbody", {}, points)),
    metrics.length ? el("details", {}, el("summary", {}, "All metrics of the kept epoch"), el("table", { class: "data" }, el("tbody", {}, metrics))) : null);
}

function links() {
  const made = [];
  if (sweep.status === "finished") made.push(el("a", { class: "button quiet", href: at(`sweeps/${key}/report`) }, "Report"));
  if (sweep.status === "finished" && sweep.best) made.push(el("a", { class: "button quiet", href: at(`sweeps/${key}/best`) }, "best.toml"));
  if (sweep.dashboard) made.push(el("a", { class: "button quiet", href: sweep.dashboard }, "Ray’s dashboard"));
  fill($("links"), made);
}

function charts() {
  fill($("parallel"), parallel(sweep, $("by").value, open));
  fill($("front"), front(sweep, open));
  fill($("history"), history(sweep, open));
}

function render(told) {
  sweep = told;
  const words = sweep.status === "running" && sweep.phase ? `running: ${sweep.phase}` : sweep.status;
  $("name").textContent = sweep.ranker ? `${sweep.ranker} sweep` : "Sweep";
  $("metric-head").textContent = sweep.metric;
  document.querySelector('#by [value="score"]').textContent = sweep.metric;
  document.querySelector('#by [value="whole"]').textContent = sweep.whole;
  fill($("state"), pill(sweep.status, words));
  const how = sweep.searcher ? `${sweep.searcher}, scheduler ${sweep.scheduler}, ${sweep.settings.length} settings, ${sweep.epochs} epochs` : "";
  $("lead").textContent = [how, sweep.commit ? `commit ${sweep.commit}` : ""].filter(Boolean).join(" · ");
  const said = [sweep.problem, sweep.unread ? `${sweep.unread} file(s) of the journal cannot be read yet.` : null,
    sweep.status === "interrupted" ? "It ended before its last trial. Start it again with the same settings: it goes on where it was." : null].filter(Boolean).join(" ");
  $("problem").hidden = !said;
  $("problem").textContent = said;
  $("progress").setAttribute("aria-valuemax", sweep.num_trials);
  $("progress").setAttribute("aria-valuenow", sweep.num_ended);
  $("progress").firstElementChild.style.width = `${(100 * sweep.num_ended) / Math.max(1, sweep.num_trials)}%`;
  fill($("figures"), figures());
  fill($("trials").tBodies[0], sweep.trials.map(trialRow));
  $("no-trials").hidden = sweep.trials.length > 0;
  finals();
  links();
  charts();
  const shares = Object.entries(sweep.importance);
  $("importance-card").hidden = !shares.length;
  fill($("importance"), shares.map(([name, share]) => el("div", { class: "share" }, el("span", {}, name), el("meter", { min: 0, max: 1, value: share, "aria-label": name }), el("span", { class: "number" }, share.toFixed(2)))));
  if ($("trial").open) details();
  return sweep.status === "running" || publishing !== null || sweep.job_told?.alive === true;
}

async function showJob() {
  const job = sweep?.job_told ?? null;
  $("job-card").hidden = !sweep?.command;
  $("command").textContent = job?.command ?? sweep?.command ?? "";
  $("stop").hidden = !job?.alive;
  $("log").hidden = !job;
  $("job-head").textContent = job ? `Job ${job.job} (${WORDS[job.status]})` : "Started from a command line";
  if (!job) return;
  const told = await getJson(`sweeps/api/jobs/${job.job}/log`);
  const pre = $("log"), atEnd = pre.scrollHeight - pre.scrollTop - pre.clientHeight < 40;
  if (pre.textContent !== told.log) pre.textContent = told.log || "nothing printed yet";
  if (atEnd) pre.scrollTop = pre.scrollHeight;
  $("job-error").hidden = !told.error;
  $("job-error").textContent = told.error ?? "";
}

async function showPromotion() {
  publishing ??= sweep?.publishing?.job ?? null;
  if (publishing === null) return;
  const told = await getJson(`sweeps/api/jobs/${publishing}/log`);
  const release = told.result?.release;
  if (told.status === "succeeded") {
    fill($("promoted"), el("span", { class: "good" }, release ? "Published as " : "Published. ", release ? el("code", {}, String(release)) : null, " "), el("a", { href: at("rollouts") }, "Start its canary"));
    publishing = null;
  } else if (told.alive) {
    fill($("promoted"), pill(told.status, WORDS[told.status]), " job ", el("code", {}, told.job));
  } else {
    fill($("promoted"), el("span", { class: "refusal" }, told.error ?? told.message ?? `the job ${told.status}`));
    publishing = null;
  }
}

function failed(error) {
  $("problem").hidden = false;
  $("problem").textContent = error.message;
}

$("by").addEventListener("change", charts);
$("trials").addEventListener("click", (event) => {
  const row = event.target.closest("[data-trial]");
  if (row) open(Number(row.dataset.trial));
});
for (const [on, lit] of [["mouseover", true], ["mouseout", false], ["focusin", true], ["focusout", false]]) {
  $("sweep").addEventListener(on, (event) => {
    const number = event.target.closest?.("[data-trial]")?.dataset.trial;
    if (number !== undefined) for (const one of document.querySelectorAll(`[data-trial="${number}"]`)) one.classList.toggle("lit", lit);
  });
}
$("close-trial").addEventListener("click", () => $("trial").close());
$("trial").addEventListener("click", (event) => { if (event.target === $("trial")) $("trial").close(); });
$("stop").addEventListener("click", async () => {
  if (!confirm("Stop this sweep? Started again with the same settings, it goes on from its trials.")) return;
  try {
    await act(`sweeps/api/jobs/${sweep.job_told.job}/stop`);
    again();
  } catch (error) { failed(error); }
});
$("promote").addEventListener("click", async () => {
  $("promote").disabled = true;
  try {
    publishing = (await act(`sweeps/api/sweeps/${key}/promote`)).job;
    again();
  } catch (error) {
    fill($("promoted"), el("span", { class: "refusal" }, error.message));
  } finally {
    $("promote").disabled = false;
  }
});

const again = poll(async () => {
  const told = await getJson(`sweeps/api/sweeps/${key}`);
  sweep = told;
  await Promise.all([showJob(), showPromotion()]);
  return told;
}, render, failed);
