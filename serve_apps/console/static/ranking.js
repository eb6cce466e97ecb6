// Candidates of a user, ranked by the application and explained: both channels' shares, and what attention weighed most.
import { api, announce, ask, bar, h, post, rankerName } from "./console.js";

const place = document.querySelector("[data-ranking]");
const data = JSON.parse(document.getElementById(place.dataset.ranking).textContent);
const [choice, list] = [place.querySelector("select"), place.querySelector("[data-ranked]")];

const points = (value) => `${(100 * value).toFixed(value < 0.1 ? 2 : 1)} %`;
const signed = (value) => `${value < 0 ? "\u2212" : "+"}${Math.abs(value).toFixed(2)}`;
const WHERE = { history: "own history", group: "the group's sequence", semantic: "what semantics weigh", behaviour: "what behaviour weighs" };
const BRIEF = { history: "own", group: "group", semantic: "semantics", behaviour: "behaviour" };

function attended(explanation, titles) {
  const chips = Object.entries(explanation.attended).flatMap(([name, most]) => most.slice(0, 1).map((one) =>
    h("span", { class: "chip", title: `${titles[one.item_id] || one.item_id}: ${points(one.weight)} of the attention on ${WHERE[name]}` },
      h("span", {}, `${BRIEF[name]} `), titles[one.item_id] || one.item_id)));
  return chips.length ? chips : [h("span", { class: "muted" }, "nothing to look at")];
}

/** The share of each channel in the score, and the logit that it asked for. */
function channels(explanation, head) {
  if (explanation.alpha_fusion === null) return h("td", {}, h("span", { class: "muted" }, "one channel"));
  const share = explanation.alpha_fusion;
  return h("td", { class: "channels" },
    h("span", { class: "split" },
      h("span", {}, `own ${points(1 - share)}`, h("small", {}, ` ${signed(explanation.individual[head])}`)),
      h("span", {}, `group ${points(share)}`, h("small", {}, ` ${signed(explanation.group[head])}`))),
    bar(1 - share, "two"));
}

function table(answer) {
  const head = answer.heads[0];
  const titles = { ...data.titles, ...Object.fromEntries(data.candidates.map((one) => [one.id, one.title])) };
  const rows = answer.items.map((item, position) =>
    h("tr", {},
      h("td", { class: "num" }, String(position + 1)),
      h("th", { scope: "row", class: "wrap" }, h("a", { href: `items?item=${encodeURIComponent(item.item_id)}` }, titles[item.item_id] || item.item_id)),
      h("td", { class: "barred" }, h("span", { class: "tabular" }, points(item.score)), bar(item.score)),
      channels(item.explanation, head),
      h("td", { class: "wrap attended" }, attended(item.explanation, titles))));
  return h("table", {},
    h("caption", {}, `${rankerName(answer.ranker)}, head ${head}, ${answer.items.length} candidates in ${(1000 * answer.seconds).toFixed(0)} ms. Beside a channel stands the logit that it asks for.`),
    h("thead", {}, h("tr", {}, ...["#", "item", "probability", "channels", "attention went to"].map((title, at) => h("th", { scope: "col", class: at ? null : "num" }, title)))),
    h("tbody", {}, rows));
}

async function rank() {
  list.setAttribute("aria-busy", "true");
  try {
    const body = { user_id: data.user, item_ids: data.candidates.map((one) => one.id), ranker: choice.value, explain: true };
    list.replaceChildren(table(await post(`${api}v1/rank`, body)));
    announce(`Ranked by ${rankerName(choice.value)}`);
  } catch (problem) {
    list.replaceChildren(h("p", { class: "pad wrong" }, problem.message));
  }
  list.removeAttribute("aria-busy");
}

async function start() {
  try {
    const told = await ask(`${api}v1/models`);
    choice.replaceChildren(...told.models.map((model) => h("option", { value: model.name, selected: model.default }, rankerName(model.name))));
    choice.disabled = false;
    choice.addEventListener("change", rank);
    await rank();
  } catch (problem) {
    list.replaceChildren(h("p", { class: "pad wrong" }, `The rankers do not answer: ${problem.message}`));
  }
}

start();
