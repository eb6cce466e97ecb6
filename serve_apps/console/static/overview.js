// What is serving, asked of the application itself; and the lineage's lines lit up under the pointer or the focus.
import { api, ask, h, ranker, whole } from "./console.js";

async function showModels() {
  const place = document.getElementById("models");
  try {
    const told = await ask(`${api}v1/models`);
    place.replaceChildren(...told.models.map((model) =>
      h("article", { class: "card" },
        h("h3", {}, ranker(model.name), model.default ? h("span", { class: "chip good" }, "default") : null),
        h("dl", {},
          h("div", {}, h("dt", {}, "version"), h("dd", {}, h("code", {}, model.version.slice(0, 10)))),
          h("div", {}, h("dt", {}, "heads"), h("dd", {}, model.heads.join(", "))),
          h("div", {}, h("dt", {}, "trained"), h("dd", {}, model.trained.slice(0, 16).replace("T", " "))),
          h("div", {}, h("dt", {}, "limit"), h("dd", {}, `${whole(told.max_items)} candidates`))))));
  } catch (problem) {
    place.replaceChildren(h("p", { class: "wrong" }, `The rankers do not answer: ${problem.message}`));
  }
  place.removeAttribute("aria-busy");
}

const drawing = document.querySelector(".lineage svg");
function light(node) {
  for (const path of drawing.querySelectorAll("path")) {
    path.classList.toggle("lit", node !== null && (path.dataset.source === node || path.dataset.target === node));
  }
}
for (const box of drawing.querySelectorAll("a")) {
  for (const kind of ["pointerenter", "focus"]) box.addEventListener(kind, () => light(box.dataset.node));
  for (const kind of ["pointerleave", "blur"]) box.addEventListener(kind, () => light(null));
}

showModels();
