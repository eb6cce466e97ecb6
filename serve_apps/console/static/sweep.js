// One sweep: its trials as they come, what they have in common, the finalists, its job; asks every two seconds until it is finished.
import { act, ask, bar, h, root } from "./console.js";
import { fill, pill, poll } from "./sweep_dom.js";
import { duration, score, signed, WORDS } from "./sweep_text.js";
import { curve, front, history, parallel } from "./trial_charts.js";

const $ = (id) => document.getElementById(id);
const key = $("sweep").dataset.key;
let sweep = null;
let opened = null; // the number of the trial whose details are shown
let publishing = null;

function figure(name, value, note = "") {
  return h("div", {}, h("dt", {}, name), h("dd", {}, value, note ? h("span", { class: "muted" }, ` ${note}`) : null));
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
  return h("tr", { "data-trial": trial.number, class: trial.number === sweep.best?.number ? "best-row" : "" },
    h("td", { class: "num" }, trial.rank == null ? "" : String(trial.rank)),
    h("td", { class: "num" }, h("button", { type: "button", class: "link", "data-open": trial.number, "data-keep": `t${trial.number}` }, String(trial.number))),
    h("td", {}, pill(trial.status), trial.why && trial.status === "finished" ? h("span", { class: "muted" }, ` ${trial.why}`) : null),
    h("td", { class: "num" }, score(trial.score)),
    h("td", { class: `num ${trial.against_start > 0 ? "up" : ""}` }, signed(trial.against_start)),
    h("td", { class: "num" }, score(trial.whole)),
    h("td", { class: "num" }, `${trial.epochs} / ${sweep.epochs}`),
    h("td", { class: "num" }, duration(took)),
    h("td", { class: "changes" }, h("div", { title: trial.changes }, changes(trial))));
}

// What a trial has that the config has not, without what all of its settings begin with.
function changes(trial) {
  const start = sweep.trials.find((one) => one.number === 0);
  if (trial.number === 0 || !start) return trial.changes;
  const changed = sweep.settings.filter(({ name }) => trial.point[name] !== start.point[name]);
  if (!changed.length) return "the same settings again";
  return changed.map(({ name }) => h("span", { class: "chip" }, h("span", {}, brief(name)), ` ${trial.point[name]}`));
}

function brief(name) {
  const parts = name.split(".");
  const same = sweep.settings.filter((one) => one.name.endsWith(`.${parts.at(-1)}`)).length;
  return parts.slice(same > 1 ? -2 : -1).join(".");
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
  const rows = told.rows.map((row) => h("tr", { class: row.winner ? "best-row" : "" },
    h("td", {}, row.window), h("td", {}, row.arm, row.winner ? h("span", { class: "muted" }, " winner") : null),
    h("td", { class: "num" }, score(row.mean)), h("td", { class: "num" }, score(row.all)), h("td", { class: "num" }, row.gain ?? "")));
  const head = ["Window", "Arm", "Slice", "All rows", "vs config, 95 % interval"].map((name, place) => h("th", { class: place > 1 ? "num" : "" }, name));
  const table = h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Finalists on both windows" },
    h("table", {}, h("thead", {}, h("tr", {}, head)), h("tbody", {}, rows)));
  fill($("finals-body"), h("p", { class: "headline" }, VERDICTS[told.verdict]), told.sentences.map((line) => h("p", { class: "note" }, line)), rows.length ? table : null);
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
    return h("tr", {}, h("th", { scope: "row" }, name), h("td", {}, own), h("td", { class: "muted" }, start && was !== own ? `config: ${was}` : ""));
  });
  const metrics = Object.entries(trial.metrics).map(([name, value]) => h("tr", {}, h("th", { scope: "row" }, name), h("td", { class: "num" }, Number.isInteger(value) ? String(value) : value.toFixed(4))));
  fill($("trial-body"),
    trial.why ? h("p", { class: trial.status === "finished" ? "said-warn" : "refusal" }, trial.why) : null,
    h("p", { class: "note" }, `${sweep.metric} by epoch`, start ? "; dashed: the config as it stands" : "", sweep.base ? "; dotted: the base ranker" : ""),
    h("div", { class: "fit" }, curve(trial, start, sweep, Math.min(600, window.innerWidth - 90))),
    h("h3", {}, "Settings"), h("table", {}, h("tbody", {}, points)),
    metrics.length ? h("details", {}, h("summary", {}, "All metrics of the kept epoch"), h("table", {}, h("tbody", {}, metrics))) : null);
}

function links() {
  const made = [];
  if (sweep.status === "finished") made.push(h("a", { class: "button", href: `${root}sweeps/${key}/report` }, "Report"));
  if (sweep.status === "finished" && sweep.best) made.push(h("a", { class: "button", href: `${root}sweeps/${key}/best` }, "best.toml"));
  if (sweep.dashboard) made.push(h("a", { class: "button", href: sweep.dashboard }, "Ray’s dashboard"));
  fill($("links"), made);
}

// The width that a chart may take, so that its letters keep their size on a phone.
function room(at) {
  return Math.min(680, Math.max(280, at.clientWidth - 18));
}

function charts() {
  fill($("parallel"), parallel(sweep, $("by").value, open, $("parallel").clientWidth - 2));
  fill($("front"), front(sweep, open, room($("front"))));
  fill($("history"), history(sweep, open, room($("history"))));
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
  $("no-trials").textContent = sweep.status === "running" ? "No trial has begun: what all of them share is being made." : "No trial had begun.";
  $("trials").closest(".scroll").hidden = sweep.trials.length === 0;
  finals();
  links();
  charts();
  const shares = Object.entries(sweep.importance).sort((a, b) => b[1] - a[1]);
  $("importance-card").hidden = !shares.length;
  fill($("importance"), shares.map(([name, share]) => h("div", { class: "share" }, h("span", {}, name), bar(share), h("span", { class: "num" }, share.toFixed(2)))));
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
  const told = await ask(`${root}sweeps/api/jobs/${job.job}/log`);
  const pre = $("log"), atEnd = pre.scrollHeight - pre.scrollTop - pre.clientHeight < 40;
  if (pre.textContent !== told.log) pre.textContent = told.log || "nothing printed yet";
  if (atEnd) pre.scrollTop = pre.scrollHeight;
  $("job-error").hidden = !told.error;
  $("job-error").textContent = told.error ?? "";
}

async function showPromotion() {
  publishing ??= sweep?.publishing?.job ?? null;
  if (publishing === null) return;
  const told = await ask(`${root}sweeps/api/jobs/${publishing}/log`);
  const release = told.result?.release;
  if (told.status === "succeeded") {
    fill($("promoted"), h("span", { class: "said-good" }, release ? "Published as " : "Published. ", release ? h("code", {}, String(release)) : null, " "), h("a", { href: `${root}rollouts` }, "Start its canary"));
    publishing = null;
  } else if (told.alive) {
    fill($("promoted"), pill(told.status, WORDS[told.status]), " job ", h("code", {}, told.job));
  } else {
    fill($("promoted"), h("span", { class: "refusal" }, told.error ?? told.message ?? `the job ${told.status}`));
    publishing = null;
  }
}

function failed(error) {
  $("problem").hidden = false;
  $("problem").textContent = error.message;
}

$("by").addEventListener("change", charts);
let resized = null;
addEventListener("resize", () => {
  clearTimeout(resized);
  resized = setTimeout(() => { if (sweep) charts(); }, 150);
});
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
    await act(`${root}sweeps/api/jobs/${sweep.job_told.job}/stop`);
    again();
  } catch (error) { failed(error); }
});
$("promote").addEventListener("click", async () => {
  $("promote").disabled = true;
  try {
    const told = await act(`${root}sweeps/api/sweeps/${key}/promote`);
    publishing = told?.job ?? null;
    again();
  } catch (error) {
    fill($("promoted"), h("span", { class: "refusal" }, error.message));
  } finally {
    $("promote").disabled = false;
  }
});

const again = poll(async () => {
  const told = await ask(`${root}sweeps/api/sweeps/${key}`);
  sweep = told;
  await Promise.all([showJob(), showPromotion()]);
  return told;
}, render, failed);
