// Charts: figures that the page carries as JSON, drawn by plotly.js in the theme's colours. A colour written "--name" is that custom property's.

let loading = null;
function plotly() {
  loading ??= new Promise((resolve, reject) => {
    const script = document.createElement("script");
    script.src = new URL("plotly.min.js", import.meta.url).href;
    script.addEventListener("load", () => resolve(window.Plotly));
    script.addEventListener("error", () => reject(new Error("plotly.js did not load")));
    document.head.append(script);
  });
  return loading;
}

/** `value` with every string "--name" replaced by the colour that it stands for. */
export function coloured(value) {
  const style = getComputedStyle(document.documentElement);
  const walk = (one) => {
    if (typeof one === "string") return one.startsWith("--") ? style.getPropertyValue(one).trim() : one;
    if (Array.isArray(one)) return one.map(walk);
    if (one && typeof one === "object") return Object.fromEntries(Object.entries(one).map(([key, inner]) => [key, walk(inner)]));
    return one;
  };
  return walk(value);
}

const AXIS = { gridcolor: "--line", linecolor: "--strong-line", zerolinecolor: "--strong-line", tickcolor: "--line", automargin: true };
const LAYOUT = {
  paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
  font: { family: "system-ui, sans-serif", size: 12, color: "--soft" },
  margin: { l: 50, r: 16, t: 16, b: 44 },
  hoverlabel: { bgcolor: "--panel", bordercolor: "--strong-line", font: { color: "--ink" } },
  legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom" },
  dragmode: false,
};

/** Draw a figure {data, layout} into an element, over what is there. */
export async function draw(element, figure) {
  const library = await plotly();
  const layout = { ...LAYOUT, ...figure.layout };
  for (const name of ["xaxis", "yaxis"]) layout[name] = { ...AXIS, ...(figure.layout?.[name] || {}) };
  const config = { displayModeBar: false, responsive: true };
  await library.react(element, coloured(figure.data), coloured(layout), config);
  element.figure = figure;
  element.classList.add("drawn");
  return element;
}

export async function drawAll() {
  for (const element of document.querySelectorAll("[data-chart]")) {
    await draw(element, JSON.parse(document.getElementById(element.dataset.chart).textContent));
  }
}

document.addEventListener("theme", () => {
  for (const element of document.querySelectorAll(".drawn")) draw(element, element.figure);
});
drawAll();
