// An item that is not there yet: its codes and neighbours from the console, its rank among others from the rankers.
import { api, announce, ask, bar, h, post, rankerName, root } from "./console.js";

const [form, place, choice] = [document.getElementById("try"), document.getElementById("placed"), document.getElementById("ranker")];
const NEW = "an item that is not there yet";
const codes = (values) => h("span", { class: "codes", "aria-label": `codes ${values.join(", ")}` }, values.length ? values.map((code) => h("b", {}, String(code))) : h("i", {}, "none"));
const scrolls = (label, table) => h("div", { class: "scroll limited", tabindex: "0", role: "group", "aria-label": `${label}, scrolls sideways` }, table);
const heads = (...titles) => h("thead", {}, h("tr", {}, titles.map((title) => h("th", { scope: "col" }, title))));

function neighbours(title, note, near) {
  const rows = near.map((one) => h("tr", {},
    h("td", { class: "wrap" }, h("a", { href: `${root}items?item=${encodeURIComponent(one.item_id)}` }, one.title)),
    h("td", {}, codes(one.codes)),
    h("td", { class: "barred short" }, h("span", { class: "tabular" }, one.cosine.toFixed(3)), bar(one.cosine))));
  return h("section", {}, h("h2", {}, title), h("p", { class: "note" }, note),
    near.length ? scrolls(title, h("table", {}, heads("item", "codes", "cosine"), h("tbody", {}, rows))) : h("div", { class: "nothing" }, h("p", {}, "This run has no vectors of this kind.")));
}

function ranked(answer, told, titles) {
  const at = answer.items.findIndex((item) => item.item_id === NEW);
  const rows = answer.items.map((item, position) => h("tr", { class: position === at ? "mine" : null },
    h("td", { class: "num" }, String(position + 1)),
    h("th", { scope: "row", class: "wrap" }, titles[item.item_id] || item.item_id, position === at ? h("span", { class: "chip good" }, `new, by its ${item.basis}`) : null),
    h("td", { class: "barred" }, h("span", { class: "tabular" }, `${(100 * item.score).toFixed(1)} %`), bar(item.score))));
  return h("section", {}, h("h2", {}, `Place ${at + 1} of ${answer.items.length}`),
    h("p", { class: "note" }, `${rankerName(answer.ranker)} for ${answer.user.user_id}, ${answer.user.known ? "a known user" : "whom nobody knows: everyone's group stands in"}; ${(1000 * answer.seconds).toFixed(0)} ms.`),
    scrolls("Ranked candidates", h("table", {}, heads("#", "item", "probability"), h("tbody", {}, rows))));
}

function semantics(told) {
  const shares = told.sharing.map((count, at) => h("li", {}, h("b", {}, told.codes.slice(0, at + 1).join("-")), h("span", { class: "tabular" }, `${count} `, h("small", {}, "items of the run"))));
  return h("section", { class: "panel" }, h("h2", {}, "Semantic ID"), h("p", { class: "big-codes" }, codes(told.codes)), h("ul", { class: "words" }, shares),
    told.drift === null ? null : h("p", { class: "note" }, `Alignment moves items with these codes by ${told.drift.toFixed(3)} of a vector of length one: the new one too, from its first day.`));
}

async function tryIt(event) {
  event.preventDefault();
  const started = performance.now();
  const given = Object.fromEntries(new FormData(form));
  const button = form.querySelector("button");
  button.disabled = true;
  try {
    const query = new URLSearchParams(["title", "category", "brand", "price"].filter((name) => given[name]).map((name) => [name, given[name]]));
    const told = await ask(`try?${query}`);
    const category = given.category.split(">").map((part) => part.trim()).filter(Boolean);
    const item = { item_id: NEW, title: given.title, category, brand: given.brand || null, price: given.price ? Number(given.price) : null };
    const items = [item, ...told.candidates.map((one) => ({ item_id: one.id }))];
    const answer = await post(`${api}v1/rank`, { user_id: given.user, items, ranker: choice.value, explain: true });
    const titles = { [NEW]: given.title, ...Object.fromEntries(told.candidates.map((one) => [one.id, one.title])) };
    const took = performance.now() - started;
    place.replaceChildren(
      h("section", { class: "columns" }, semantics(told), ranked(answer, told, titles)),
      h("section", { class: "columns" },
        neighbours("Neighbours before", "By the frozen text encoder alone.", told.near.before),
        neighbours("Neighbours after", "By z, which behaviour taught the item encoder.", told.near.after)),
      h("p", { class: "note" }, `Encoded, placed and ranked in ${took.toFixed(0)} ms.`));
    const mine = place.querySelector(".mine"); // its row in the middle of the list, which scrolls by itself
    mine.closest(".scroll").scrollTop = mine.offsetTop - 200;
    announce("The item is placed and ranked.");
  } catch (problem) {
    place.replaceChildren(h("p", { class: "wrong pad", role: "alert" }, problem.message));
  }
  button.disabled = false;
}

async function start() {
  form.addEventListener("submit", tryIt);
  try {
    const told = await ask(`${api}v1/models`);
    const best = told.models.find((model) => model.name === "saviorrec")?.name;
    choice.replaceChildren(...told.models.map((model) => h("option", { value: model.name, selected: best ? model.name === best : model.default }, rankerName(model.name))));
    choice.disabled = false;
  } catch (problem) {
    place.replaceChildren(h("p", { class: "wrong pad" }, `The rankers do not answer: ${problem.message}`));
  }
}

start();
